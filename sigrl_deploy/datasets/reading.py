"""What the readers share: which files are missing, text and CSV files, label names, and paths that must stay inside.

What a file may make a reader build is bounded before it is built: files, rows, and the targets of a split.
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
from sigrl_deploy.vocabulary.label_files import check_labels

MAX_PICTURES = 10_000_000  # of a split
MAX_LABELS = 100_000
MAX_TARGETS = 1 << 31  # pictures × labels, a byte each
_LONGEST_ROW = 1 << 22  # characters of a row of a CSV file, with room for MAX_LABELS
_SHOWN = 100  # characters of what a file holds in an error message


def find_files(root: Path, what: str, *wanted: str | tuple[str, ...]) -> list[Path]:
    """Where each of `wanted` lies below `root`; a name that ends in "/" is a folder, a tuple holds alternatives, best first.

    Raises DatasetError that names everything missing at once; `what` is what it calls the data set.
    """
    if not os.path.isdir(root):
        raise DatasetError(f"{root}: is no folder; expected the folder that {what} was unpacked in")
    found, missing = [], []
    for names in wanted:
        alternatives = (names,) if isinstance(names, str) else names
        present = [name for name in alternatives if (os.path.isdir if name.endswith("/") else os.path.isfile)(root / name)]
        if present:
            found.append(root / present[0])
        else:
            missing.append(" or ".join(alternatives))
    if missing:
        raise DatasetError(f"{root}: {what} is incomplete; not there: {', '.join(missing)}; unpack or link what is missing")
    return found


@contextmanager
def open_text(path: Path, largest: int, encoding: str = "utf-8") -> Iterator[TextIO]:
    """A text file, line feeds as they are. Raises DatasetError where it is a device or pipe, has more than `largest` bytes,
    cannot be read, or (while it is read) is not UTF-8.
    """
    try:
        with open_regular(path, largest) as file, TextIOWrapper(file, encoding, newline="") as text:
            yield text
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check path and permissions") from None
    except UnicodeDecodeError:
        raise DatasetError(f"{path}: is not UTF-8; save the file as UTF-8") from None


def read_csv(path: Path, largest: int) -> Iterator[tuple[int, list[str]]]:
    """(line number, cells) of every line that is not blank. Raises DatasetError where a file of at most `largest` bytes cannot
    be read as UTF-8 CSV, or a row is longer than any data set's.
    """
    taken = 0  # characters of the row that is being read

    def lines(file: TextIO) -> Iterator[str]:
        nonlocal taken
        while line := file.readline(_LONGEST_ROW + 1 - taken):
            taken += len(line)
            if taken > _LONGEST_ROW:
                raise DatasetError(
                    f"{path}, line {reader.line_num + 1}: a row of more than {_LONGEST_ROW} characters; expected "
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
    """Raise DatasetError for more pictures, labels, or targets of both than a split can have."""
    for count, most, what in (
        (pictures, MAX_PICTURES, "pictures"),
        (labels, MAX_LABELS, "labels"),
        (pictures * labels, MAX_TARGETS, "pictures times labels"),
    ):
        if count > most:
            raise DatasetError(f"{source}: has {count} {what}, expected at most {most}; take a part of it")


def shown(text: str) -> str:
    """What a file holds, for an error message: quoted, and cut where it is long."""
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}…"


def unique_labels(labels: Sequence[str], source: Path) -> tuple[str, ...]:
    """Label names of an annotation file, stripped. Raises DatasetError for too many, or what `check_labels` refuses."""
    check_size(source, 0, len(labels))
    try:
        return check_labels(labels)
    except LabelError as error:
        raise DatasetError(f"{source}: {error.problem}") from None


def picture_path(entry: str, place: str) -> str:
    """A path as an annotation file gives it. Raises DatasetError unless it stays below the folder that it is relative to.

    The name alone is judged: a folder of pictures that is a symbolic link to elsewhere is the user's own doing.
    """
    path = PurePath(entry)
    if not path.name or path.anchor or ".." in path.parts or "\0" in entry:
        raise DatasetError(f"{place}: {shown(entry)} is no path inside the data set; expected a relative one without '..'")
    return entry
