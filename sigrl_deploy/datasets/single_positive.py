"""The single-positive protocol of Cole et al., "Multi-Label Learning from Single Positive Labels" (CVPR 2021).

The official training pictures of VOC 2012 and COCO 2014 are split into 80 % for training and 20 % for validation, the official
validation pictures are the test set, and one positive label per training picture is observed.
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
    """Targets [N, C] of the official training pictures → the rows of "train" or "val", ascending.

    "val" is the last round(0.2 n) of `RandomState(1200).permutation(n)`, over the n pictures that have a positive. For pictures
    in the order of the published code, these are the published splits. The others, and all pictures without a positive, are
    "train".
    """
    annotated = np.flatnonzero((targets == POSITIVE).any(axis=1))
    count = len(annotated)
    held_out = np.random.RandomState(SEED).permutation(count)[count - round(HELD_OUT * count) :]
    val = np.sort(annotated[held_out])
    return val if split == "val" else np.setdiff1d(np.arange(len(targets)), val)


class SinglePositive:
    """A data set with one observed positive per picture, whose other labels are all UNKNOWN.

    For one picture after the other, `RandomState(seed).shuffle` shuffles the columns of its positives, and the first is
    observed. The draw is made once, and depends on the data set and the seed only. The published code draws in the same way,
    but before it sets the validation pictures apart. Only `labels`, the ones trained on, are drawn; None means all. Pictures
    without a positive among them are dropped.

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
    """The rows of `dataset` that have a positive among the columns `drawn` [C], and the observed column of each."""
    rng = np.random.RandomState(seed)
    rows, observed = [], []
    for row in range(len(dataset)):
        positives = np.flatnonzero((dataset.targets(row) == POSITIVE) & drawn)
        if len(positives):
            rng.shuffle(positives)
            rows.append(row)
            observed.append(positives[0])
    if not rows:
        raise DatasetError(
            "no training picture has a positive label, so none can be observed; check the data set's annotations"
        )
    return np.array(rows), np.array(observed)
