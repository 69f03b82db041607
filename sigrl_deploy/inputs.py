"""Which pictures a run is about: files, folders, globs and a list on standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from sigrl_deploy.errors import UsageError
from sigrl_deploy.images import is_image_path

STDIN = "-"


def find_pictures(arguments: Sequence[str], stdin: TextIO) -> list[str]:
    """Paths in the order given, each once; folders recursively and sorted, picture files only.

    `-` reads paths from `stdin`, one a line. A file that is not there stays in the list: it becomes an error record
    like any other picture that cannot be read. Raises UsageError for a folder without pictures, a glob without matches, or nothing at all.
    """
    paths = list(dict.fromkeys(_expand_all(arguments, stdin)))
    if not paths:
        raise UsageError("no pictures given; expected files, folders, globs, or - with a list on standard input")
    return paths


def _expand_all(arguments: Iterable[str], stdin: TextIO) -> Iterator[str]:
    for argument in arguments:
        if argument == STDIN:
            yield from _expand_all((line.rstrip("\r\n") for line in stdin if line.strip() not in ("", STDIN)), stdin)
        else:
            yield from _expand(argument)


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
    found = (os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if is_image_path(path))
