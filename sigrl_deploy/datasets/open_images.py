"""Open Images V4 to V7, with the image-level labels that people have verified.

Below the root, under the file names of any version: `class-descriptions.csv`, `classes-trainable.txt`,
`{train,validation,test}-annotations-human-imagelabels.csv` and the pictures `{train,validation,test}/<ImageID>.jpg`. The
zero-shot protocol also needs `classes-unseen.txt`, which the owners do not publish: the MIDs of the unseen labels that you
choose, one per line.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from sigrl_deploy.datasets.dataset import NEGATIVE, POSITIVE, UNKNOWN
from sigrl_deploy.datasets.reading import find_files, read_csv, unique_labels
from sigrl_deploy.errors import DatasetError
from sigrl_deploy.labels.names import read_labels
from sigrl_deploy.pictures.reading import read_image

UNSEEN_CLASSES = "classes-unseen.txt"
_LARGEST = 1 << 34  # bytes of the annotation file
_LARGEST_LIST = 1 << 24  # bytes of the class descriptions
_FOLDERS = {"train": "train", "val": "validation", "test": "test"}
_CONFIDENCES = {"1": POSITIVE, "1.0": POSITIVE, "0": NEGATIVE, "0.0": NEGATIVE}
_COLUMNS = ("ImageID", "LabelName", "Confidence")
_is_image_id = re.compile("[0-9a-f]{16}").fullmatch


@dataclass(frozen=True)
class _Classes:
    """`ranks` numbers the MIDs so that those of one label are adjacent; `columns` [MIDs] is the label's column by rank."""

    labels: tuple[str, ...]
    label_sets: Mapping[str, tuple[str, ...]]
    ranks: dict[str, int]
    columns: NDArray[np.int32]


class OpenImages:
    """One split. Labels are display names: the seen ones in the order of `classes-trainable.txt`, then the unseen ones.

    Several MIDs with one display name ("Crane" is a bird and a machine) are one label, since a text encoder cannot tell them
    apart: POSITIVE where one of them is, NEGATIVE where all of them are, UNKNOWN otherwise. Where annotators contradict each
    other about one MID, it is POSITIVE.

    Pictures without a known label are left out; the others are ordered by id. Only known targets are kept in memory. Reading
    the 60 million rows of the training file takes minutes and about 4 GB.

    Raises DatasetError where files are missing or damaged, or a label is both seen and unseen.
    """

    def __init__(self, root: Path, split: str) -> None:
        folder = _FOLDERS[split]
        names = [folder, f"oidv6-{folder}", f"oidv7-{'val' if split == 'val' else folder}"]
        annotations, descriptions, trainable, self._folder = find_files(
            root,
            "Open Images",
            tuple(f"{name}-annotations-human-imagelabels.csv" for name in names),
            ("class-descriptions.csv", "oidv6-class-descriptions.csv", "oidv7-class-descriptions.csv"),
            ("classes-trainable.txt", "oidv6-classes-trainable.txt", "oidv7-classes-trainable.txt"),
            f"{folder}/",
        )
        classes = _read_classes(descriptions, trainable, root / UNSEEN_CLASSES)
        self.labels = classes.labels
        self.label_sets = classes.label_sets
        ids, self._columns, self._values = _known_targets(*_read_rows(annotations, classes.ranks), classes.columns)
        if not len(ids):
            raise DatasetError(f"{annotations}: has no row about any of the {len(self.labels)} labels; check the class lists")
        starts = _run_starts(ids)
        self._ids = ids[starts]
        self._bounds = np.append(starts, len(ids))

    def __len__(self) -> int:
        return len(self._ids)

    def name(self, index: int) -> str:
        return str(self._folder / f"{self._ids[index]:016x}.jpg")

    def image(self, index: int) -> Image.Image:
        return read_image(self.name(index))

    def targets(self, index: int) -> NDArray[np.int8]:
        row = range(len(self))[index]
        known = slice(self._bounds[row], self._bounds[row + 1])
        targets = np.full(len(self.labels), UNKNOWN, np.int8)
        targets[self._columns[known]] = self._values[known]
        return targets


def _read_classes(descriptions: Path, trainable: Path, unseen_classes: Path) -> _Classes:
    names = _read_descriptions(descriptions)
    seen_mids = _read_mids(trainable, names, descriptions)
    unseen_mids = _read_mids(unseen_classes, names, descriptions) if os.path.isfile(unseen_classes) else ()
    seen, unseen = (tuple(dict.fromkeys(names[mid] for mid in mids)) for mids in (seen_mids, unseen_mids))
    both = sorted({*seen} & {*unseen})
    if both:
        raise DatasetError(f"{unseen_classes}: {both[0]!r} is also a label of {trainable}; remove its MID from one of them")
    labels = unique_labels(seen + unseen, descriptions)
    column = {label: i for i, label in enumerate(labels)}
    mids = sorted(seen_mids + unseen_mids, key=lambda mid: column[names[mid]])
    return _Classes(
        labels,
        {"seen": seen, "unseen": unseen, "all": labels} if unseen else {"all": labels},
        {mid: rank for rank, mid in enumerate(mids)},
        np.array([column[names[mid]] for mid in mids], np.int32),
    )


def _read_descriptions(path: Path) -> dict[str, str]:
    """MID → display name. The files of V6 and V7 have a header, those of V4 and V5 do not."""
    names = {}
    for line, cells in read_csv(path, _LARGEST_LIST):
        if len(cells) != 2:
            raise DatasetError(f"{path}, line {line}: {len(cells)} cells, expected a MID and a display name")
        if cells != ["LabelName", "DisplayName"]:
            names[cells[0].strip()] = cells[1].strip()
    return names


def _read_mids(path: Path, names: Mapping[str, str], descriptions: Path) -> tuple[str, ...]:
    mids = read_labels(path, argument="data")
    for mid in mids:
        if mid not in names:
            raise DatasetError(f"{path}: {mid!r} is not in {descriptions}; take both from one version of Open Images")
    return mids


def _read_rows(path: Path, ranks: Mapping[str, int]) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int8]]:
    """The image id, the MID's rank and the value of each row whose MID has a rank."""
    rows = read_csv(path, _LARGEST)
    _, header = next(rows, (1, []))
    try:
        id_at, mid_at, confidence_at = map(header.index, _COLUMNS)
    except ValueError:
        raise DatasetError(f"{path}, line 1: expected the columns {', '.join(_COLUMNS)}; download the file again") from None
    ids, ranked, values = array("Q"), array("i"), array("b")
    for line, cells in tqdm(rows, desc=path.name, unit="row", unit_scale=True, disable=None):
        if len(cells) != len(header):
            raise DatasetError(f"{path}, line {line}: {len(cells)} cells, expected {len(header)}; download the file again")
        rank = ranks.get(cells[mid_at])
        if rank is None:
            continue
        value = _CONFIDENCES.get(cells[confidence_at])
        if value is None or not _is_image_id(cells[id_at]):
            raise DatasetError(
                f"{path}, line {line}: expected an image id of 16 hexadecimal digits and a confidence of 1 or 0; "
                "download the file again"
            )
        ids.append(int(cells[id_at], 16))
        ranked.append(rank)
        values.append(value)
    return np.frombuffer(ids, np.uint64), np.frombuffer(ranked, np.int32), np.frombuffer(values, np.int8)


def _known_targets(
    ids: NDArray[np.uint64], ranks: NDArray[np.int32], values: NDArray[np.int8], columns_of: NDArray[np.int32]
) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.int8]]:
    """Rows about MIDs → image id, column and value of each known target, ordered by id and column."""
    order = np.lexsort((ranks, ids))
    ids, ranks, values = ids[order], ranks[order], values[order]
    starts = _run_starts(ids, ranks)
    ids, columns, values = ids[starts], columns_of[ranks[starts]], np.maximum.reduceat(values, starts)
    starts = _run_starts(ids, columns)
    mids = np.diff(np.append(starts, len(ids)))
    ids, columns, values = ids[starts], columns[starts], np.maximum.reduceat(values, starts)
    known = (values == POSITIVE) | (mids == np.bincount(columns_of)[columns])
    return ids[known], columns[known], values[known]


def _run_starts(*keys: NDArray[Any]) -> NDArray[np.int64]:
    """The positions where runs of equal keys begin."""
    changes = np.ones(len(keys[0]), bool)
    changes[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.flatnonzero(changes)
