"""Pascal VOC 2012: `ImageSets/Main/<class>_{train,val}.txt` and `JPEGImages` in `VOCdevkit/VOC2012`."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sigrl_deploy.datasets.dataset import NEGATIVE, POSITIVE, UNKNOWN
from sigrl_deploy.datasets.picture_files import PictureFiles
from sigrl_deploy.datasets.reading import find_files, open_text, picture_path, shown
from sigrl_deploy.datasets.single_positive import hold_out
from sigrl_deploy.errors import DatasetError

# fmt: off
CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
_LARGEST = 1 << 24  # bytes of a file of ImageSets
_VALUES = {"1": POSITIVE, "-1": NEGATIVE, "0": UNKNOWN}


def read_voc(root: Path, split: str) -> PictureFiles:
    """The splits of the single-positive protocol: "train" and "val" from VOC's train (see `hold_out`), "test" is VOC's val.

    A class is UNKNOWN where all its instances in a picture are difficult (0 in VOC's files); the published code takes it as
    negative. Pictures are ordered by name. `root` is the folder `VOC2012`, the one above it, or the one above that.

    Raises DatasetError where files are missing or damaged, or list different pictures.
    """
    base = _find_base(root)
    official = "val" if split == "test" else "train"
    sets = [f"ImageSets/Main/{name}_{official}.txt" for name in CLASSES]
    *files, folder = find_files(base, "VOC 2012", *sets, "JPEGImages/")
    columns = [_read_column(file) for file in files]
    names = sorted(columns[0])
    for file, column in zip(files, columns, strict=True):
        if column.keys() != columns[0].keys():
            name = min(column.keys() ^ columns[0].keys())
            raise DatasetError(f"{file}: picture {name!r} is not in both this file and {files[0].name}; unpack VOC 2012 again")
    targets = np.array([[column[name] for column in columns] for name in names], np.int8).reshape(-1, len(CLASSES))
    rows = np.arange(len(names)) if split == "test" else hold_out(targets, split)
    return PictureFiles(folder, [f"{names[i]}.jpg" for i in rows], targets[rows], CLASSES)


def _find_base(root: Path) -> Path:
    candidates = (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    for base in candidates:
        if os.path.isdir(base / "ImageSets" / "Main"):
            return base
    looked = ", ".join(map(str, candidates))
    raise DatasetError(f"{root}: no VOC 2012 found; expected the folder ImageSets/Main in one of {looked}")


def _read_column(path: Path) -> dict[str, int]:
    """Picture name → target for one class."""
    column: dict[str, int] = {}
    with open_text(path, _LARGEST) as file:
        lines = file.read().splitlines()
    for number, line in enumerate(lines, start=1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 2 or cells[1] not in _VALUES or cells[0] in column:
            raise DatasetError(
                f"{path}, line {number}: {shown(line)}, expected each picture once, with 1, 0 or -1; unpack VOC 2012 again"
            )
        column[picture_path(cells[0], f"{path}, line {number}")] = _VALUES[cells[1]]
    return column
