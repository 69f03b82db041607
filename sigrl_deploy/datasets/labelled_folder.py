"""A folder of pictures with `labels.csv`, which may have either of two forms.

A column a label: 1 where the picture has it, 0 where it does not, nothing where nobody knows.

    path,dog,cat
    photos/a.jpg,1,0
    photos/b.jpg,,1

A file that holds a -1 anywhere uses this program's own convention: -1 where the picture does not have the label, and 0, like
nothing, where nobody knows.

Or the columns `path` and `labels` alone, with the labels that a picture has, separated by semicolons. It has none of the others
that the file names; the columns of the targets are in alphabetical order.

    path,labels
    photos/a.jpg,dog
    photos/b.jpg,cat;dog

In both forms a column `split` may stand directly behind `path`: it says of every picture whether it is for train, val or test.
A label of that name may stand in any other column.

    path,split,labels
    photos/a.jpg,train,dog
    photos/b.jpg,val,cat;dog

The file is UTF-8. Paths are relative to its folder and stay inside it.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.datasets.dataset import NEGATIVE, POSITIVE, SPLITS, UNKNOWN
from sigrl_deploy.datasets.picture_files import PictureFiles
from sigrl_deploy.datasets.reading import check_size, picture_path, read_csv, shown, unique_labels
from sigrl_deploy.errors import DatasetError, UsageError

LABELS_CSV = "labels.csv"
_SPLIT = "split"
_LARGEST = 1 << 30  # bytes of labels.csv
_ZERO = 2  # what a 0 stands for is known once the whole file has been read
_CELLS = {"1": POSITIVE, "-1": NEGATIVE, "0": _ZERO, "": UNKNOWN}


def read_folder(root: Path, split: str | None = None, validation_share: float | None = None) -> PictureFiles:
    """root: a folder that holds `labels.csv`, or a CSV file of that form. Pictures are in the order of the file.

    split: None for all pictures, or "train", "val" or "test" by the column `split`. Without that column all pictures are both
    "train" and "test", and none are "val"; `validation_share` (0 to 1) then sets about that share of them apart as "val", and
    the rest is "train". Which ones depends on their paths alone, so that a picture stays where it is when others are added.

    Raises DatasetError with the line number where the file is missing or is not as described above, UsageError for a split that
    it does not have.
    """
    path = find_csv(root)
    rows = read_csv(path, _LARGEST)
    header = [cell.strip() for cell in next(rows, (1, []))[1]]
    first = _first_label(path, header)
    columns = _Listed(path) if header[first:] == ["labels"] else _Table(path, header[first:])
    lines: dict[str, int] = {}  # by picture
    splits = []
    for line, cells in rows:
        place = f"{path}, line {line}"
        if len(cells) != len(header):
            raise DatasetError(
                f"{place}: {len(cells)} cells, expected {len(header)} as in the first line; quote cells that hold a comma"
            )
        picture = picture_path(cells[0].strip(), place)
        if picture in lines:
            raise DatasetError(f"{place}: {shown(picture)} repeats line {lines[picture]}; remove one of the two")
        lines[picture] = line
        if first == 2:
            splits.append(_split_of(cells[1].strip(), place))
        check_size(path, len(lines), len(header) - first)
        columns.add(cells[first:], place)
    labels, targets = columns.finished()
    pictures = list(lines)
    kept = _rows_of(path, pictures, splits if first == 2 else None, split, validation_share)
    return PictureFiles(path.parent, [pictures[row] for row in kept], targets[kept], labels)


def find_csv(root: Path) -> Path:
    """The CSV file of a folder, or the file itself. Raises DatasetError where there is none."""
    if not os.path.exists(root) and root.suffix.lower() != ".csv":
        raise DatasetError(f"{root}: is no folder or file; expected a folder that holds pictures and {LABELS_CSV}")
    path = root / LABELS_CSV if os.path.isdir(root) else root
    if not os.path.exists(path):
        raise DatasetError(
            f"{path}: is not there; expected a CSV file with the columns path and labels, or path and a label each"
        )
    return path


def has_split_column(root: Path) -> bool:
    """Whether the file says of its pictures which split they are for. Raises DatasetError as `read_folder` does."""
    path = find_csv(root)
    header = [cell.strip() for cell in next(read_csv(path, _LARGEST), (1, []))[1]]
    return _first_label(path, header) == 2


def _first_label(path: Path, header: Sequence[str]) -> int:
    """The first column behind `path` and `split`."""
    first = 2 if header[1:2] == [_SPLIT] else 1
    if header[:1] != ["path"] or len(header) <= first:
        raise DatasetError(
            f"{path}, line 1: expected 'path,labels', or 'path' and then a comma and a name for each label; a column "
            "'split' may stand directly behind 'path'"
        )
    return first


def _split_of(cell: str, place: str) -> int:
    if cell not in SPLITS:
        raise DatasetError(
            f"{place}: {shown(cell)} for 'split', expected {', '.join(SPLITS)}; a label of that name goes into another column"
        )
    return SPLITS.index(cell)


class _Table:
    """Targets of a column a label."""

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self._labels = unique_labels(labels, path)
        self._values = array("b")

    def add(self, cells: Sequence[str], place: str) -> None:
        values = [_CELLS.get(cell.strip()) for cell in cells]
        if None in values:
            at = values.index(None)
            raise DatasetError(
                f"{place}: {shown(cells[at])} for {self._labels[at]!r}, expected 1, 0, -1 or nothing; correct the cell"
            )
        self._values.extend(value for value in values if value is not None)

    def finished(self) -> tuple[tuple[str, ...], NDArray[np.int8]]:
        targets = np.frombuffer(self._values, np.int8).reshape(-1, len(self._labels))
        targets[targets == _ZERO] = UNKNOWN if (targets == NEGATIVE).any() else NEGATIVE
        return self._labels, targets


class _Listed:
    """Targets of one column, which holds the labels that a picture has."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers: dict[str, int] = {}  # by label, as they come
        self._rows, self._found, self._count = array("q"), array("q"), 0

    def add(self, cells: Sequence[str], place: str) -> None:
        for label in {label.strip() for label in cells[0].split(";")} - {""}:
            self._found.append(self._numbers.setdefault(label, len(self._numbers)))
            self._rows.append(self._count)
        self._count += 1
        check_size(self._path, self._count, len(self._numbers))

    def finished(self) -> tuple[tuple[str, ...], NDArray[np.int8]]:
        labels = unique_labels(sorted(self._numbers), self._path)
        place = {label: i for i, label in enumerate(labels)}
        column = np.array([place[label] for label in self._numbers])
        targets = np.full((self._count, len(labels)), NEGATIVE, np.int8)
        targets[np.frombuffer(self._rows, np.int64), column[np.frombuffer(self._found, np.int64)]] = POSITIVE
        return labels, targets


def _rows_of(
    path: Path, pictures: Sequence[str], splits: Sequence[int] | None, split: str | None, validation_share: float | None
) -> NDArray[np.intp]:
    """The rows of a split."""
    everything = np.arange(len(pictures))
    if splits is not None and validation_share is not None:
        raise UsageError(f"--validation-share: {path} has a column split, which says what validates; leave out one of the two")
    if split is None:
        return everything
    if splits is not None:
        rows = np.flatnonzero(np.array(splits) == SPLITS.index(split))
        if not len(rows):
            raise UsageError(f"{path}: no picture has the split {split}; give some, or choose another split")
        return rows
    if validation_share is None:
        if split == "val":
            raise UsageError(
                f"{path}: sets no pictures apart for validation; give it a column split behind path with train, val or test, "
                "or train and evaluate with --validation-share"
            )
        return everything
    if split == "test":
        raise UsageError("--validation-share: parts val from train, and leaves no pictures for test; add --split val")
    held_out = np.array([_place_of(picture) < validation_share for picture in pictures], bool)
    rows = np.flatnonzero(held_out == (split == "val"))
    if not len(rows):
        raise UsageError(
            f"--validation-share {validation_share:g}: leaves none of the {len(pictures)} pictures of {path} for {split}; "
            "choose another share, or give the file a column split"
        )
    return rows


def _place_of(picture: str) -> float:
    """Where a path lies between 0 and 1: as good as at random, and always the same."""
    digest = hashlib.sha256(PurePath(picture).as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
