"""What the readers of data sets share: finding files, reading text and CSV, and checking labels and paths.

Sizes of files, rows and targets are checked before anything of that size is built.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path, PurePath
from typing import TextIO

from sigrl_deploy.errors import DatasetError, LabelError
from sigrl_deploy.files import open_regular
from sigrl_deploy.labels.names import check_labels

MAX_PICTURES = 10_000_000  # of a split
MAX_LABELS = 100_000
MAX_TARGETS = 1 << 31  # pictures × labels, one byte each
_LONGEST_ROW = 1 << 22  # characters of a CSV row, enough for MAX_LABELS columns
_SHOWN = 100  # characters of a file's content in an error message


def find_files(root: Path, what: str, *wanted: str | tuple[str, ...]) -> list[Path]:
    """The path of each wanted file below `root`.

    A name that ends in "/" is a folder; a tuple lists alternatives, preferred ones first. `what` is the name of the data set in
    messages. Raises a DatasetError that lists everything missing.
    """
    if not os.path.isdir(root):
        raise DatasetError(f"{root}: is not a folder; expected the folder that {what} was unpacked in")
    found, missing = [], []
    for names in wanted:
        alternatives = (names,) if isinstance(names, str) else names
        present = [name for name in alternatives if (os.path.isdir if name.endswith("/") else os.path.isfile)(root / name)]
        if present:
            found.append(root / present[0])
        else:
            missing.append(" or ".join(alternatives))
    if missing:
        raise DatasetError(f"{root}: {what} is incomplete; missing: {', '.join(missing)}; unpack or link them")
    return found


@contextmanager
def open_text(path: Path, largest: int, encoding: str = "utf-8") -> Iterator[TextIO]:
    """Open a text file with its line endings unchanged.

    Raises DatasetError for a device or pipe, a file of more than `largest` bytes or that cannot be read, and, while it is being
    read, one that is not UTF-8.
    """
    try:
        with open_regular(path, largest) as file, TextIOWrapper(file, encoding, newline="") as text:
            yield text
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: is not UTF-8; save the file as UTF-8") from None


def read_csv(path: Path, largest: int) -> Iterator[tuple[int, list[str]]]:
    """The line number and the cells of each row that is not blank.

    Raises DatasetError where the file has more than `largest` bytes, is not CSV in UTF-8, or has a row of more than
    _LONGEST_ROW characters.
    """
    taken = 0  # characters of the current row

    def lines(file: TextIO) -> Iterator[str]:
        nonlocal taken
        while line := file.readline(_LONGEST_ROW + 1 - taken):
            taken += len(line)
            if taken > _LONGEST_ROW:
                raise DatasetError(
                    f"{path}, line {reader.line_num + 1}: the row has more than {_LONGEST_ROW} characters; expected "
                    "comma-separated values"
                )
            yield line

    with open_text(path, largest, "utf-8-sig") as file:
        reader = csv.reader(lines(file), strict=True)
        try:
            for cells in reader:
                taken = 0
                if cells:
                    yield reader.line_num, cells
        except csv.Error as error:
            raise DatasetError(f"{path}, line {reader.line_num}: {error}; expected comma-separated values") from None


def check_size(source: Path, pictures: int, labels: int) -> None:
    """Raise DatasetError for more pictures, labels, or products of the two than a split may have."""
    for count, most, what in (
        (pictures, MAX_PICTURES, "pictures"),
        (labels, MAX_LABELS, "labels"),
        (pictures * labels, MAX_TARGETS, "pictures times labels"),
    ):
        if count > most:
            raise DatasetError(f"{source}: has {count} {what}, expected {most} at most; use a part of it")


def shown(text: str) -> str:
    """Content of a file for an error message: quoted, and shortened."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}…"


def unique_labels(labels: Sequence[str], source: Path) -> tuple[str, ...]:
    """The labels of an annotation file, stripped. Raises DatasetError for too many, and where `check_labels` refuses them."""
    check_size(source, 0, len(labels))
    try:
        return check_labels(labels)
    except LabelError as error:
        raise DatasetError(f"{source}: {error.problem}") from None


def picture_path(entry: str, place: str) -> str:
    """A path from an annotation file. Raises DatasetError unless it is relative and has no "..".

    Only the text of the path is checked. Symbolic links in the picture folder are the user's own and may lead anywhere.
    """
    path = PurePath(entry)
    if not path.name or path.anchor or ".." in path.parts or "\0" in entry:
        raise DatasetError(f"{place}: {shown(entry)} is not a path inside the data set; expected a relative path without '..'")
    return entry
