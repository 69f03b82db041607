"""The single-positive protocol of Cole et al., "Multi-Label Learning from Single Positive Labels" (CVPR 2021).

The official training pictures of VOC 2012 and COCO 2014 are parted into 80 % to train on and 20 % for validation, the official
validation pictures are the test set, and of a training picture's positives one is observed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sigrl_deploy.datasets.dataset import POSITIVE, UNKNOWN, Dataset
from sigrl_deploy.errors import DatasetError

SEED = 1200
HELD_OUT = 0.2


def hold_out(targets: NDArray[np.int8], split: str) -> NDArray[np.int64]:
    """targets [N, C] of the official training pictures → the rows of "train" or "val", ascending.

    "val" is the last round(0.2 n) of `RandomState(1200).permutation(n)`, over the n pictures that have a positive, in their
    order: with pictures in the order of the published code, these are its splits. The rest is "train", with all the pictures
    that have no positive.
    """
    annotated = np.flatnonzero((targets == POSITIVE).any(axis=1))
    count = len(annotated)
    held_out = np.random.RandomState(SEED).permutation(count)[count - round(HELD_OUT * count) :]
    val = np.sort(annotated[held_out])
    return val if split == "val" else np.setdiff1d(np.arange(len(targets)), val)


class SinglePositive:
    """A data set of which one positive a picture is observed and every other label is UNKNOWN.

    Pictures in order, `RandomState(seed).shuffle` shuffles the columns of a picture's positives and the first is observed: the
    draw is made once and depends on the data set and the seed alone. Pictures without a positive are dropped. It is the draw of
    the published code, which however makes it before it holds pictures out. `labels`, those trained on, are drawn from alone;
    None means all.

    Raises DatasetError where no picture has a positive.
    """

    def __init__(self, dataset: Dataset, seed: int = SEED, labels: Sequence[str] | None = None) -> None:
        self.labels = dataset.labels
        self.label_sets = dataset.label_sets
        self._dataset = dataset
        chosen = set(dataset.labels if labels is None else labels)
        self._rows, self._observed = _draw(dataset, seed, np.array([label in chosen for label in dataset.labels]))

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return self._dataset.name(int(self._rows[index]))

    def image(self, index: int) -> Image.Image:
        return self._dataset.image(int(self._rows[index]))

    def targets(self, index: int) -> NDArray[np.int8]:
        targets = np.full(len(self.labels), UNKNOWN, np.int8)
        targets[self._observed[index]] = POSITIVE
        return targets


def _draw(dataset: Dataset, seed: int, drawn: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of `dataset` that have a positive among the columns `drawn` [C], and the column observed of each."""
    rng = np.random.RandomState(seed)
    rows, observed = [], []
    for row in range(len(dataset)):
        positives = np.flatnonzero((dataset.targets(row) == POSITIVE) & drawn)
        if len(positives):
            rng.shuffle(positives)
            rows.append(row)
            observed.append(positives[0])
    if not rows:
        raise DatasetError("single positives: no training picture has a positive label; check the data set's annotations")
    return np.array(rows), np.array(observed)
