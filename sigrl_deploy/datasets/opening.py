"""Data sets by the name that the command line gives them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from sigrl_deploy.datasets.dataset import SPLITS, Dataset
from sigrl_deploy.errors import DatasetError, UsageError

KINDS = ("nus-wide", "coco", "voc", "open-images", "folder")
SCENES = "scenes"


def open_dataset(spec: str, split: str, validation_share: float | None = None) -> Dataset:
    """spec: `KIND:FOLDER` with one of KINDS, `scenes`, `scenes:SEED`, or an existing folder or CSV file, which means `folder`.

    split: "train", "val" or "test". What these are of a `folder`, and `validation_share`, see `read_folder`.

    Raises UsageError for what `check_spec` refuses and another split, DatasetError where the data set's files cannot be used.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r}: no such split; choose one of {', '.join(SPLITS)}")
    check_spec(spec, validation_share)
    kind, place = parse(spec)
    if kind == SCENES:
        from sigrl_deploy.datasets.scenes import Scenes

        return Scenes(split, _seed(spec, place)) if ":" in spec else Scenes(split)
    return _open(kind, _root(place), split, validation_share)


def check_spec(spec: str, validation_share: float | None = None) -> None:
    """Raise UsageError for a data set of no known kind or whose folder is not there, or a share that it cannot be parted by.
    Opens no file.
    """
    kind, place = parse(spec)
    if kind == SCENES:
        if ":" in spec:
            _seed(spec, place)
    elif place == spec and not os.path.exists(spec):
        raise UsageError(
            f"data set {spec!r}: is no folder or file; give KIND:FOLDER with KIND one of {', '.join(KINDS)}, or {SCENES}, "
            f"{SCENES}:SEED, or a folder that holds pictures and labels.csv"
        )
    elif not os.path.exists(_root(place)):
        raise DatasetError(f"{_root(place)}: is not there; expected the folder that the data set is in")
    if validation_share is None:
        return
    if not 0 < validation_share < 1:
        raise UsageError(f"--validation-share {validation_share:g}: expected a share between 0 and 1, such as 0.1")
    if kind != "folder":
        raise UsageError(f"--validation-share: is of folders of your own, and {spec} has splits already; leave it out")


def parse(spec: str) -> tuple[str, str]:
    """spec → its kind, SCENES or one of KINDS, and its folder (or seed). What is no KIND:FOLDER is the path of a `folder`."""
    kind, _, place = spec.partition(":")
    return (kind, place) if kind == SCENES or (kind in KINDS and place) else ("folder", spec)


def has_splits(spec: str) -> bool:
    """Whether training and test pictures of a data set are apart: not in a `folder` without a column `split`."""
    kind, place = parse(spec)
    if kind != "folder":
        return True
    from sigrl_deploy.datasets.labelled_folder import has_split_column

    return has_split_column(_root(place))


def folder_identity(spec: str) -> str | None:
    """A digest of where a `folder` lies, by which a model can tell later that it was trained on it; None for other kinds."""
    kind, place = parse(spec)
    if kind != "folder":
        return None
    from sigrl_deploy.datasets.labelled_folder import find_csv

    return hashlib.sha256(os.fsencode(os.path.realpath(find_csv(_root(place))))).hexdigest()


def _root(place: str) -> Path:
    return Path(place).expanduser()


def _seed(spec: str, seed: str) -> int:
    if not (seed.isascii() and seed.isdigit()):
        raise UsageError(f"data set {spec!r}: expected {SCENES}, or {SCENES}: and a whole number from 0, such as {SCENES}:7")
    return int(seed)


def _open(kind: str, root: Path, split: str, validation_share: float | None) -> Dataset:
    if kind == "nus-wide":
        from sigrl_deploy.datasets.nus_wide import read_nus_wide

        return read_nus_wide(root, split)
    if kind == "coco":
        from sigrl_deploy.datasets.coco import read_coco

        return read_coco(root, split)
    if kind == "voc":
        from sigrl_deploy.datasets.voc import read_voc

        return read_voc(root, split)
    if kind == "open-images":
        from sigrl_deploy.datasets.open_images import OpenImages

        return OpenImages(root, split)
    from sigrl_deploy.datasets.labelled_folder import read_folder

    return read_folder(root, split, validation_share)
