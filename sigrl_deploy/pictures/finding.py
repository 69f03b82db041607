"""Which pictures a run is about: files, folders, globs and a list on standard input."""

from __future__ import annotations

import errno
import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from sigrl_deploy.errors import UsageError, printable
from sigrl_deploy.pictures.reading import INSTALL_HEIF, is_image_path

STDIN = "-"

_LINKS = "linked folder"
_LONG_PATH = 300  # of which a message has only the beginning
_ALLOW = "check its permissions, or leave it out"
_TOO_DEEP = "move it to a place that is less deep"
_SEPARATORS = re.escape(os.sep + (os.altsep or ""))
_ANY_DEPTH = re.compile(rf"(?:^|(?<=[{_SEPARATORS}]))\*\*(?:[{_SEPARATORS}]+|$)")

_HEIC = (".heic", ".heif", ".hif")
# Of files that hold a picture to people, but not to read_image: to pass them over without a word would lose pictures.
_OTHER_PICTURES = {
    *_HEIC,
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw"),
    *(".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
    *(
        ".ai",
        ".avif",
        ".cur",
        ".dds",
        ".dib",
        ".eps",
        ".exr",
        ".hdr",
        ".heics",
        ".heifs",
        ".icns",
        ".ico",
        ".j2k",
        ".jp2",
        ".jpx",
    ),
    *(".jxl", ".jxr", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".svg", ".svgz", ".tga", ".wmf", ".xcf"),
}


@dataclass(frozen=True)
class Found:
    """Pictures, each once, and how many files of folders were passed over because of their kind, by extension."""

    paths: list[str]
    skipped: Counter[str]

    @property
    def skipped_line(self) -> str:
        """What to say of the skipped files at the end of a run, in one line; empty where there are none."""
        number = self.skipped.total()
        return f"{number} {'was' if number == 1 else 'were'} skipped: {_kinds(self.skipped)}" if number else ""


def find_pictures(arguments: Sequence[str], stdin: BinaryIO, null_separated: bool = False) -> Found:
    """Paths in the order given, each once; folders recursively and sorted, picture files only.

    `-` reads files and folders from `stdin`, one a line, or with a null byte after each as `find -print0` writes them. A file
    that is not there stays in the list, as it becomes an error record like any other picture that cannot be read, but for this:
    where arguments name files or folders and none of them is there, nothing was meant.

    Raises UsageError then, and for a folder without pictures or that cannot be listed, a glob without matches, or nothing at
    all.
    """
    if arguments and all(_is_missing(argument) for argument in arguments):
        others = f" and {len(arguments) - 1} more" if len(arguments) > 1 else ""
        raise UsageError(f"{printable(arguments[0])}{others}: no such file or folder; check the path")
    skipped: Counter[str] = Counter()
    paths: dict[str, None] = {}
    for argument in arguments:
        expanded = _read_list(stdin, null_separated, skipped) if argument == STDIN else _expand(argument, skipped)
        paths.update(dict.fromkeys(expanded))
    if not paths and STDIN in arguments:
        raise UsageError("-: the list on standard input is empty; expected a path on each line")
    if not paths:
        raise UsageError("no pictures given; expected files, folders, globs, or - with a list on standard input")
    return Found(list(paths), skipped)


def _is_missing(argument: str) -> bool:
    if argument == STDIN or glob.has_magic(argument):
        return False
    try:
        os.lstat(argument)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        return False  # there or not: whoever opens it says why it cannot
    return False


def _read_list(stdin: BinaryIO, null_separated: bool, skipped: Counter[str]) -> Iterator[str]:
    """No globs here: a program that lists files means each name as it is, brackets and all."""
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
    matches = sorted(_glob(argument))
    if not matches:
        raise UsageError(f"{printable(argument)}: matches no file; check the pattern")
    return [path for match in matches for path in (_walk(match, skipped) if os.path.isdir(match) else [match])]


def _folder(folder: str, skipped: Counter[str]) -> list[str]:
    here: Counter[str] = Counter()
    paths = _walk(folder, here)
    skipped.update(here)
    if not paths:
        only = f", only {_kinds(here)}" if here else ""
        raise UsageError(
            f"{printable(folder)}: no picture in this folder or below it{only}; "
            "expected .jpg, .png, .webp, .tif, .gif, .bmp or .avif files"
        )
    return paths


def _walk(folder: str, skipped: Counter[str]) -> list[str]:
    found = []
    for parent, names, links in _levels(folder):
        skipped.update([_LINKS] * links)
        for name in names:
            extension = os.path.splitext(name)[1].lower()
            if is_image_path(name):
                found.append(os.path.join(parent, name))
            elif extension in _OTHER_PICTURES:
                skipped[extension] += 1
    return sorted(found)


def _levels(folder: str) -> Iterator[tuple[str, list[str], int]]:
    """Each folder at or below `folder`, with the names of its files, and how many links to folders it holds; as os.walk, which
    recurses before Python 3.12.

    Links to folders are not followed: they may lead in circles. What is hidden is left out: thumbnails, and what macOS writes
    beside a picture.
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
        except OSError as error:  # to go on without it would lose pictures
            place = parent if len(parent) < _LONG_PATH else f"{parent[:_LONG_PATH]}..."
            remedy = _TOO_DEEP if error.errno == errno.ENAMETOOLONG else _ALLOW
            raise UsageError(f"{printable(place)}: cannot be listed ({error.strerror}); {remedy}") from None
        yield parent, files, links


def _glob(pattern: str, root: str = "") -> list[str]:
    """As glob.glob, recursive, which before Python 3.12 recurses and always follows links in circles."""
    base, *rest = _ANY_DEPTH.split(pattern, maxsplit=1)
    if not rest:
        return [os.path.join(root, path) for path in glob.glob(pattern, root_dir=root or None)]
    starts = _glob(base, root) if base else [root]
    if not rest[0]:
        return starts
    return [path for start in starts for level, _, _ in _levels(start) for path in _glob(rest[0], level)]


def _kinds(skipped: Counter[str]) -> str:
    """10 .heic (how to read them), 2 .cr2"""
    return ", ".join(
        f"{number} {extension}"
        + ("s" if extension == _LINKS and number > 1 else "")
        + (f" ({INSTALL_HEIF} reads them)" if extension in _HEIC else "")
        for extension, number in sorted(skipped.items(), key=lambda kind: (-kind[1], kind[0]))
    )
