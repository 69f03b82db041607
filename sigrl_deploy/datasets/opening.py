"""Data sets by the name that the command line gives them."""

from __future__ import annotations

import os
from pathlib import Path

from sigrl_deploy.datasets import SPLITS, Dataset
from sigrl_deploy.errors import UsageError

KINDS = ("nus-wide", "coco", "voc", "open-images", "folder")
SCENES = "scenes"


def open_dataset(spec: str, split: str) -> Dataset:
    """spec: `KIND:FOLDER` with one of KINDS, `scenes`, `scenes:SEED`, or an existing folder or CSV file, which means `folder`.

    split: "train", "val" or "test"; a `folder` has no splits and is the same in each.

    Raises UsageError for another spec or split, DatasetError where the data set's files cannot be used.
    """
    if split not in SPLITS:
        raise UsageError(f"split {split!r}: no such split; choose one of {', '.join(SPLITS)}")
    kind, place = parse(spec)
    if kind == SCENES:
        from sigrl_deploy.datasets.scenes import Scenes

        return Scenes(split, _seed(spec, place)) if ":" in spec else Scenes(split)
    if place == spec and not os.path.exists(spec):
        raise UsageError(
            f"data set {spec!r}: is no folder or file; give KIND:FOLDER with KIND one of {', '.join(KINDS)}, or {SCENES}, "
            f"{SCENES}:SEED, or a folder that holds pictures and labels.csv"
        )
    return _open(kind, Path(place).expanduser(), split)


def parse(spec: str) -> tuple[str, str]:
    """spec → its kind, SCENES or one of KINDS, and its folder (or seed). What is no KIND:FOLDER is the path of a `folder`."""
    kind, _, place = spec.partition(":")
    return (kind, place) if kind == SCENES or (kind in KINDS and place) else ("folder", spec)


def has_splits(spec: str) -> bool:
    """Whether training, validation and test pictures of a data set are apart; a `folder` is the same in every split."""
    return parse(spec)[0] != "folder"


def _seed(spec: str, seed: str) -> int:
    if not (seed.isascii() and seed.isdigit()):
        raise UsageError(f"data set {spec!r}: expected {SCENES}, or {SCENES}: and a whole number from 0, such as {SCENES}:7")
    return int(seed)


def _open(kind: str, root: Path, split: str) -> Dataset:
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
    from sigrl_deploy.datasets.folder import read_folder

    return read_folder(root)
