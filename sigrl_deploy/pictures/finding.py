"""Finding the pictures of a run: in files, folders, globs and a list on standard input."""

from __future__ import annotations

import errno
import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from sigrl_deploy.errors import UsageError
from sigrl_deploy.extras import install_command
from sigrl_deploy.pictures.reading import is_image_path

STDIN = "-"
_ARGUMENT = "pictures"

_LINKS = "linked folder"
_LONG_PATH = 300  # characters of a path that a message shows
_ALLOW = "check its permissions, or leave it out"
_TOO_DEEP = "move it to a shorter path"
_SEPARATORS = re.escape(os.sep + (os.altsep or ""))
_ANY_DEPTH = re.compile(rf"(?:^|(?<=[{_SEPARATORS}]))\*\*(?:[{_SEPARATORS}]+|$)")

_HEIC = (".heic", ".heif", ".hif")
# Files that people take for pictures and read_image does not open. They are counted, so that none is lost without a word.
_OTHER_PICTURES = {
    *_HEIC,
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw"),
    *(".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
    *(".ai", ".avif", ".cur", ".dds", ".dib", ".eps", ".exr", ".hdr", ".heics", ".heifs", ".icns", ".ico", ".j2k", ".jp2"),
    *(".jpx", ".jxl", ".jxr", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".svg", ".svgz", ".tga", ".wmf"),
    ".xcf",
}


@dataclass(frozen=True)
class Found:
    """The paths of pictures, without repeats, and by extension the number of files in folders that were skipped."""

    paths: list[str]
    skipped: Counter[str]

    @property
    def skipped_line(self) -> str:
        """One line about the skipped files, for the end of a run; "" where there are none."""
        number = self.skipped.total()
        return f"{number} {'was' if number == 1 else 'were'} skipped: {_kinds(self.skipped)}" if number else ""


def find_pictures(pictures: Sequence[str], stdin: BinaryIO, null_separated: bool = False) -> Found:
    """The paths that `pictures` name, in their order and without repeats. Folders are searched recursively and sorted.

    `-` reads files and folders from `stdin`, one per line, or with a null byte after each as `find -print0` writes them. A
    missing file stays in the list and becomes an error record, like any other picture that cannot be read.

    Raises UsageError where none of the named files and folders exists, for a folder that has no pictures or cannot be listed,
    for a glob without matches, and for an empty list.
    """
    if pictures and all(_is_missing(argument) for argument in pictures):
        others = f" and {len(pictures) - 1} more" if len(pictures) > 1 else ""
        raise UsageError("no such file or folder; check the path", argument=_ARGUMENT, value=f"{pictures[0]}{others}")
    skipped: Counter[str] = Counter()
    paths: dict[str, None] = {}
    for argument in pictures:
        expanded = _read_list(stdin, null_separated, skipped) if argument == STDIN else _expand(argument, skipped)
        paths.update(dict.fromkeys(expanded))
    if not paths and STDIN in pictures:
        raise UsageError("the list on standard input is empty; expected a path on each line", argument=_ARGUMENT, value=STDIN)
    if not paths:
        raise UsageError("expected files, folders, globs, or - with a list on standard input", argument=_ARGUMENT)
    return Found(list(paths), skipped)


def _is_missing(argument: str) -> bool:
    if argument == STDIN or glob.has_magic(argument):
        return False
    try:
        os.lstat(argument)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False  # whoever opens it reports why that fails
    return False


def _read_list(stdin: BinaryIO, null_separated: bool, skipped: Counter[str]) -> Iterator[str]:
    """The names are not globs: a program that lists files means each name literally, brackets and all."""
    lines = stdin.read().split(b"\0") if null_separated else [line.rstrip(b"\r\n") for line in stdin if line.strip()]
    for line in lines:
        path = os.fsdecode(line)  # as bytes, since a file name need not be text
        if path:
            yield from _folder(path, skipped) if os.path.isdir(path) else [path]


def _expand(argument: str, skipped: Counter[str]) -> list[str]:
    if os.path.isdir(argument):
        return _folder(argument, skipped)
    if os.path.lexists(argument) or not glob.has_magic(argument):
        return [argument]
    matches = sorted(matching(argument))
    if not matches:
        raise UsageError("matches no file; check the pattern", argument=_ARGUMENT, value=argument)
    return [path for match in matches for path in (_walk(match, skipped) if os.path.isdir(match) else [match])]


def _folder(folder: str, skipped: Counter[str]) -> list[str]:
    here: Counter[str] = Counter()
    paths = _walk(folder, here)
    skipped.update(here)
    if not paths:
        only = f", only {_kinds(here)}" if here else ""
        raise UsageError(
            f"no picture in this folder or below it{only}; expected .jpg, .png, .webp, .tif, .gif, .bmp or .avif files",
            argument=_ARGUMENT,
            value=folder,
        )
    return paths


def _walk(folder: str, skipped: Counter[str]) -> list[str]:
    return sorted(pictures_among(files_below(folder, skipped), skipped))


def files_below(folder: str, skipped: Counter[str]) -> Iterator[str]:
    """The files in a folder and those below it, as `find_pictures` goes through them. Links to folders are counted as skipped.

    Raises UsageError for a folder that cannot be listed.
    """
    for parent, names, links in _levels(folder):
        skipped.update([_LINKS] * links)
        yield from (os.path.join(parent, name) for name in names)


def pictures_among(paths: Iterable[str], skipped: Counter[str]) -> Iterator[str]:
    """Those that `read_image` opens, by their extension; files of other formats that people take for pictures are counted."""
    for path in paths:
        extension = os.path.splitext(path)[1].lower()
        if is_image_path(path):
            yield path
        elif extension in _OTHER_PICTURES:
            skipped[extension] += 1


def _levels(folder: str) -> Iterator[tuple[str, list[str], int]]:
    """`folder` and each folder below it, with the names of its files and the number of its links to folders.

    Like os.walk, which before Python 3.12 recurses and so fails on deep folders. Links to folders are not followed: they may
    form circles. Hidden files and folders are left out, such as thumbnails and the files that macOS writes beside pictures.
    """
    waiting = [folder]
    while waiting:
        parent = waiting.pop()
        files, links = [], 0
        try:
            with os.scandir(parent or ".") as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if not entry.is_dir():
                        files.append(entry.name)
                    elif entry.is_symlink():
                        links += 1
                    else:
                        waiting.append(os.path.join(parent, entry.name))
        except OSError as error:  # going on without this folder would lose pictures
            place = parent if len(parent) < _LONG_PATH else f"{parent[:_LONG_PATH]}..."
            remedy = _TOO_DEEP if error.errno == errno.ENAMETOOLONG else _ALLOW
            raise UsageError(f"cannot be listed ({error.strerror}); {remedy}", argument=_ARGUMENT, value=place) from None
        yield parent, files, links


def matching(pattern: str, root: str = "") -> list[str]:
    """Files and folders, as glob.glob(recursive=True), which before Python 3.12 recurses, and follows links in circles."""
    base, *rest = _ANY_DEPTH.split(pattern, maxsplit=1)
    if not rest:
        return [os.path.join(root, path) for path in glob.glob(pattern, root_dir=root or None)]
    starts = matching(base, root) if base else [root]
    if not rest[0]:
        return starts
    return [path for start in starts for level, _, _ in _levels(start) for path in matching(rest[0], level)]


def _kinds(skipped: Counter[str]) -> str:
    """Such as "10 .heic (pip install ... reads them), 2 .cr2"."""
    return ", ".join(
        f"{number} {extension}"
        + ("s" if extension == _LINKS and number > 1 else "")
        + (f" ({install_command('heif')} to read them)" if extension in _HEIC else "")
        for extension, number in sorted(skipped.items(), key=lambda kind: (-kind[1], kind[0]))
    )
