"""The scores whose truth is known."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray, Targets
from sigrl_deploy.datasets.dataset import POSITIVE, UNKNOWN

MOST_POOLED = 10_000_000  # 0.6 GB while scikit-learn ranks them


def known(scores: FloatArray, targets: Targets) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """scores, targets of one shape → the M scores whose target is not UNKNOWN [M] fp64, and which of them are positive [M]."""
    cells = targets != UNKNOWN
    return scores[cells].astype(np.float64), targets[cells] == POSITIVE


def pooled(scores: FloatArray, targets: Targets) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The same of all labels together, from every second, third … picture where that keeps them below MOST_POOLED.

    Where those pictures show none of the labels, all pictures are taken.
    """
    step = math.ceil(scores.size / MOST_POOLED)
    step = step if (targets[::step] == POSITIVE).any() else 1
    return known(scores[::step], targets[::step])
