"""Scores and targets that tests of calibration share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray, Targets


def made(pictures: int, labels: int, seed: int = 0, ties: bool = False) -> tuple[FloatArray, Targets]:
    """Positives score higher by about one spread; a fifth of the targets is unknown. With ties, few scores are different."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(np.array([1, -1, 0], np.int8), (pictures, labels), p=[0.2, 0.6, 0.2])
    scores = rng.normal(0, 0.1, (pictures, labels)) + 0.1 * (targets == 1)
    return (scores.round(1) if ties else scores).astype(np.float32), targets


def truth(targets: NDArray[np.int8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which targets are known, and which are positive."""
    return targets != 0, targets == 1
