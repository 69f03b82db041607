"""What holds of scores [N, C] and targets [N, C] before anything is computed from them. N pictures, C labels."""

from __future__ import annotations

import numpy as np

from sigrl_deploy.arrays import FloatArray, Targets
from sigrl_deploy.datasets.dataset import NEGATIVE, POSITIVE, UNKNOWN
from sigrl_deploy.errors import UsageError


def check_scored(scores: FloatArray, targets: Targets) -> None:
    """scores [N, C] fp32, targets [N, C] int8.

    Raises UsageError where the shapes differ, a target is none of POSITIVE, NEGATIVE and UNKNOWN, or `check_scores` does.
    """
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise UsageError(f"scores {[*scores.shape]}, targets {[*targets.shape]}: expected the same [pictures, labels] of both")
    check_scores(scores)
    lowest, highest = int(targets.min()), int(targets.max())
    if targets.dtype.kind != "i" or lowest < NEGATIVE or highest > POSITIVE:
        raise UsageError(
            f"targets: {targets.dtype} from {lowest} to {highest}; expected int8 {POSITIVE}, {NEGATIVE} or {UNKNOWN} (unknown)"
        )


def check_scores(scores: FloatArray) -> None:
    """scores [N, C] fp32. Raises UsageError where there is no picture or no label, or a score is not finite."""
    if scores.ndim != 2 or 0 in scores.shape:
        raise UsageError(f"scores {[*scores.shape]}: expected [pictures, labels] with at least one of each")
    finite = np.isfinite(scores)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise UsageError(f"scores: {scores[row, column]} for picture {row}, label {column}; expected finite numbers")
