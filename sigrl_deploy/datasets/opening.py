"""Opening a data set by its name, such as `coco:FOLDER` or `scenes`."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from sigrl_deploy.datasets.dataset import SPLITS, Dataset
from sigrl_deploy.errors import UsageError

KINDS = ("nus-wide", "coco", "voc", "open-images", "folder")
SCENES = "scenes"


def open_dataset(data: str, split: str, validation_share: float | None = None) -> Dataset:
    """Open one split of a data set.

    Args:
        data: `KIND:FOLDER` with one of KINDS, `scenes`, `scenes:SEED`, or a folder or CSV file as `read_folder` takes it.
        split: "train", "val" or "test".
        validation_share: see `read_folder`.

    Raises UsageError for an unknown split and where `check_data` does, DatasetError where the files cannot be used.
    """
    if split not in SPLITS:
        raise UsageError(f"no such split; choose one of {', '.join(SPLITS)}", argument="split", value=split)
    check_data(data, validation_share)
    kind, place = parse(data)
    if kind == SCENES:
        from sigrl_deploy.datasets.scenes import Scenes

        return Scenes(split, _seed(data, place)) if ":" in data else Scenes(split)
    return _open(kind, _root(place), split, validation_share)


def check_data(data: str, validation_share: float | None = None) -> None:
    """Raise UsageError for an unknown kind of data set, a missing folder, or a validation share that does not apply.

    Opens no file.
    """
    kind, place = parse(data)
    if kind == SCENES:
        if ":" in data:
            _seed(data, place)
    elif not place or not os.path.exists(_root(place)):
        known = f"KIND:FOLDER with KIND one of {', '.join(KINDS)}; {SCENES} or {SCENES}:SEED; or a folder with labels.csv"
        remedy = f"expected {known}" if place == data else "check the path"
        raise UsageError(f"no such folder; {remedy}", argument="data", value=data)
    if validation_share is None:
        return
    if not 0 < validation_share < 1:
        raise UsageError(
            "expected a share between 0 and 1, such as 0.1", argument="validation_share", value=f"{validation_share:g}"
        )
    if kind != "folder":
        raise UsageError(
            f"applies to folders of your own, and {data} has splits already; leave it out", argument="validation_share"
        )


def parse(data: str) -> tuple[str, str]:
    """The kind of a data set, SCENES or one of KINDS, and its folder or seed. Anything else is the path of a `folder`."""
    kind, _, place = data.partition(":")
    return (kind, place) if kind == SCENES or (kind in KINDS and place) else ("folder", data)


def has_splits(data: str) -> bool:
    """Whether a data set separates training from test pictures, as all do but a `folder` without a column `split`."""
    kind, place = parse(data)
    if kind != "folder":
        return True
    from sigrl_deploy.datasets.labelled_folder import has_split_column

    return has_split_column(_root(place))


def folder_identity(data: str) -> str | None:
    """A digest of the path of a `folder`, to recognise later that a model was trained on it; None for other kinds."""
    kind, place = parse(data)
    if kind != "folder":
        return None
    from sigrl_deploy.datasets.labelled_folder import find_csv

    return hashlib.sha256(os.fsencode(os.path.realpath(find_csv(_root(place))))).hexdigest()


def _root(place: str) -> Path:
    return Path(place).expanduser()


def _seed(data: str, seed: str) -> int:
    if not (seed.isascii() and seed.isdigit()):
        raise UsageError(
            f"expected {SCENES}, or {SCENES}: and a whole number from 0, such as {SCENES}:7", argument="data", value=data
        )
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
