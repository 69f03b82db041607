"""Which pictures a run is about: files, folders, globs and a list on standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from sigrl_deploy.errors import UsageError
from sigrl_deploy.images import is_image_path

STDIN = "-"


def find_pictures(arguments: Sequence[str], stdin: BinaryIO, null_separated: bool = False) -> list[str]:
    """Paths in the order given, each once; folders recursively and sorted, picture files only.

    `-` reads files and folders from `stdin`, one a line, or each ended by a null byte. A file that is not there stays in the
    list: it becomes an error record like any other picture that cannot be read. Raises UsageError for a folder without
    pictures or that cannot be listed, a glob without matches, or nothing at all.
    """
    listed = (_read_list(stdin, null_separated) if argument == STDIN else _expand(argument) for argument in arguments)
    paths = list(dict.fromkeys(path for paths in listed for path in paths))
    if not paths and STDIN in arguments:
        raise UsageError("-: the list on standard input is empty; expected a path on each line")
    if not paths:
        raise UsageError("no pictures given; expected files, folders, globs, or - with a list on standard input")
    return paths


def _read_list(stdin: BinaryIO, null_separated: bool) -> Iterator[str]:
    """No globs here: a program that lists files means each name as it is, brackets and all."""
    for name in stdin.read().split(b"\0") if null_separated else (line.rstrip(b"\r\n") for line in stdin):
        path = os.fsdecode(name)  # as bytes, since a file name need not be text
        if path.strip():
            yield from _folder(path) if os.path.isdir(path) else [path]


def _expand(argument: str) -> list[str]:
    if os.path.isdir(argument):
        return _folder(argument)
    if os.path.exists(argument) or not glob.has_magic(argument):
        return [argument]
    matches = sorted(glob.glob(argument, recursive=True))
    if not matches:
        raise UsageError(f"{argument}: matches no file; check the pattern")
    return [path for match in matches for path in (_walk(match) if os.path.isdir(match) else [match])]


def _folder(folder: str) -> list[str]:
    paths = _walk(folder)
    if not paths:
        raise UsageError(
            f"{folder}: no picture in this folder or below it; expected .jpg, .png, .webp, .tif, .gif, .bmp or .avif files"
        )
    return paths


def _walk(folder: str) -> list[str]:
    """Links to folders are not followed: they may lead in circles."""
    walk = os.walk(folder, onerror=_refuse)
    return sorted(
        path for parent, _, names in walk for path in (os.path.join(parent, name) for name in names) if is_image_path(path)
    )


def _refuse(error: OSError) -> None:
    # os.walk skips what it cannot list, and pictures would be missing without a word.
    raise UsageError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions, or leave it out")
