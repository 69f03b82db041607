"""A folder of pictures with `labels.csv`, in either of two forms.

One column per label: 1 where the picture has it, 0 where it does not, and empty where that is unknown.

    path,dog,cat
    photos/a.jpg,1,0
    photos/b.jpg,,1

In a file that has a -1 anywhere, -1 means that the picture does not have the label, and 0, like an empty cell, that it is
unknown.

Or only the columns `path` and `labels`, with the labels that a picture has, separated by semicolons. It does not have any other
label of the file. Targets are then in alphabetical order of the labels.

    path,labels
    photos/a.jpg,dog
    photos/b.jpg,cat;dog

In both forms, a column `split` directly after `path` assigns each picture to train, val or test. In any other place, a column
of that name is a label.

    path,split,labels
    photos/a.jpg,train,dog
    photos/b.jpg,val,cat;dog

The file is UTF-8. Paths are relative to its folder and must stay inside it.
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
_ZERO = 2  # the meaning of a 0 is known once the whole file has been read
_CELLS = {"1": POSITIVE, "-1": NEGATIVE, "0": _ZERO, "": UNKNOWN}


def read_folder(root: Path, split: str | None = None, validation_share: float | None = None) -> PictureFiles:
    """The pictures of a folder that has a `labels.csv`, or of a CSV file of that form, in the order of the file.

    split: None for all pictures, or "train", "val" or "test" by the column `split`. Without that column, all pictures are both
        "train" and "test", and none are "val".
    validation_share: for a file without a column `split`: about this share of the pictures (0 to 1) becomes "val", and the rest
        "train". The choice depends on each path alone, so that a picture keeps its split when others are added.

    Raises DatasetError where the file is missing, or, with the line number, where it is not as described above; UsageError for
    a split that it does not have.
    """
    path = find_csv(root)
    rows = read_csv(path, _LARGEST)
    header = [cell.strip() for cell in next(rows, (1, []))[1]]
    first = _first_label(path, header)
    columns = _Listed(path) if header[first:] == ["labels"] else _Table(path, header[first:])
    lines: dict[str, int] = {}  # line number by picture
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
        raise DatasetError(f"{root}: no such folder; expected a folder with pictures and {LABELS_CSV}")
    path = root / LABELS_CSV if os.path.isdir(root) else root
    if not os.path.exists(path):
        raise DatasetError(
            f"{path}: no such file; expected a CSV file with the columns path and labels, or path and one column per label"
        )
    return path


def has_split_column(root: Path) -> bool:
    """Whether the file has a column `split`. Raises DatasetError as `read_folder` does."""
    path = find_csv(root)
    header = [cell.strip() for cell in next(read_csv(path, _LARGEST), (1, []))[1]]
    return _first_label(path, header) == 2


def _first_label(path: Path, header: Sequence[str]) -> int:
    """The number of the first column after `path` and `split`."""
    first = 2 if header[1:2] == [_SPLIT] else 1
    if header[:1] != ["path"] or len(header) <= first:
        found = shown(",".join(header))
        raise DatasetError(
            f"{path}, line 1: {found}, expected 'path,labels', or 'path' and the name of each label, separated by commas; a "
            "column 'split' may follow directly after 'path'"
        )
    if header[first:] == ["labels", _SPLIT]:
        raise DatasetError(f"{path}, line 1: the column 'split' stands behind 'labels'; move it directly after 'path'")
    return first


def _split_of(cell: str, place: str) -> int:
    if cell not in SPLITS:
        raise DatasetError(
            f"{place}: {shown(cell)} for 'split', expected {', '.join(SPLITS)}; if it is a label, move its column elsewhere"
        )
    return SPLITS.index(cell)


class _Table:
    """Targets from one column per label."""

    def __init__(self, path: Path, labels: Sequence[str]) -> None:
        self._labels = unique_labels(labels, path)
        self._values = array("b")

    def add(self, cells: Sequence[str], place: str) -> None:
        values = [_CELLS.get(cell.strip()) for cell in cells]
        if None in values:
            at = values.index(None)
            raise DatasetError(f"{place}: {shown(cells[at])} for {self._labels[at]!r}, expected 1, 0, -1 or an empty cell")
        self._values.extend(value for value in values if value is not None)

    def finished(self) -> tuple[tuple[str, ...], NDArray[np.int8]]:
        targets = np.frombuffer(self._values, np.int8).reshape(-1, len(self._labels))
        targets[targets == _ZERO] = UNKNOWN if (targets == NEGATIVE).any() else NEGATIVE
        return self._labels, targets


class _Listed:
    """Targets from one column with the labels that each picture has."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._numbers: dict[str, int] = {}  # by label, in order of appearance
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
    """The rows of a split. Raises UsageError where there are none, or `validation_share` does not apply."""
    everything = np.arange(len(pictures))
    if splits is not None and validation_share is not None:
        raise UsageError(f"{path} has a column split already; leave out one of the two", argument="validation_share")
    if split is None:
        return everything
    if splits is not None:
        rows = np.flatnonzero(np.array(splits) == SPLITS.index(split))
        if not len(rows):
            raise UsageError(f"{path}: no picture has {split!r} in the column split; choose another `split`")
        return rows
    if validation_share is None:
        if split == "val":
            raise UsageError(
                f"{path}: has no validation pictures; add a column split after path, or set some pictures apart with "
                "`validation_share`"
            )
        return everything
    if split == "test":
        raise UsageError("leaves no pictures for the split test; use `split='val'`", argument="validation_share")
    held_out = np.array([_place_of(picture) < validation_share for picture in pictures], bool)
    rows = np.flatnonzero(held_out == (split == "val"))
    if not len(rows):
        raise UsageError(
            f"leaves none of the {len(pictures)} pictures in {path} for {split}; choose another share, or add a column split",
            argument="validation_share",
            value=f"{validation_share:g}",
        )
    return rows


def _place_of(picture: str) -> float:
    """A number from 0 to 1 for a path: evenly spread, and always the same."""
    digest = hashlib.sha256(PurePath(picture).as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
