"""Scores → probabilities: how often labels that score as high are really there, as one curve for all labels.

A curve is plain numbers that numpy applies; only fitting one needs scikit-learn. Probabilities say more to people than scores
do. They are no better to choose tags by, since the curve keeps the order of the scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray, Targets
from sigrl_deploy.calibration.folds import folds
from sigrl_deploy.calibration.pooling import pooled
from sigrl_deploy.datasets.scored import check_scored
from sigrl_deploy.errors import DatasetError
from sigrl_deploy.extras import require
from sigrl_deploy.structs import Checked

ISOTONIC_FROM = 1_000  # pictures; a curve of free shape follows the noise of fewer
MOST_KNOTS = 256
BINS = 15


class Platt(Checked, frozen=True, tag="platt"):
    """probability = 1 / (1 + exp(−(a·score + b))), of the score as the model gives it.

    >>> Platt(a=10.0, b=-1.0)(np.array([0.1], np.float32))
    array([0.5], dtype=float32)
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.a) and math.isfinite(self.b)):
            raise ValueError("a, b: expected finite numbers")

    def __call__(self, scores: FloatArray) -> FloatArray:
        """Scores of any shape → probabilities fp32 of the same shape."""
        logits = self.a * scores.astype(np.float64) + self.b
        # exp(-|x|) cannot overflow.
        small = np.exp(-np.abs(logits))
        return (np.where(logits >= 0, 1, small) / (1 + small)).astype(np.float32)


class Isotonic(Checked, frozen=True, tag="isotonic"):
    """A curve that never falls: straight between its knots, level outside them.

    >>> Isotonic(x=(0.0, 1.0), y=(0.1, 0.3))(np.array([-1, 0.5, 2], np.float32))
    array([0.1, 0.2, 0.3], dtype=float32)

    Attributes:
        x: scores, rising.
        y: their probabilities, which do not fall.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.x) == len(self.y) <= MOST_KNOTS:
            raise ValueError(f"x, y: {len(self.x)} and {len(self.y)} numbers; expected as many of both, {MOST_KNOTS} at most")
        if not all(map(math.isfinite, self.x)) or any(a >= b for a, b in pairwise(self.x)):
            raise ValueError("x: expected finite numbers in rising order")
        if not all(0 <= y <= 1 for y in self.y) or any(a > b for a, b in pairwise(self.y)):
            raise ValueError("y: expected numbers between 0 and 1 that do not fall")

    def __call__(self, scores: FloatArray) -> FloatArray:
        """Scores of any shape → probabilities fp32 of the same shape."""
        return np.interp(scores, self.x, self.y).astype(np.float32)


Curve = Platt | Isotonic


@dataclass(frozen=True)
class Reliability:
    """Probabilities against what is there, in bins of equal width; those without a probability are left out.

    `predicted` [B] is the mean probability of a bin, `observed` [B] the share of positives, and `count` [B] its size.
    `error` is the expected calibration error: the mean of |predicted − observed|, weighted by `count`.
    """

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    count: NDArray[np.intp]
    error: float


def fit_probabilities(scores: FloatArray, targets: Targets) -> Curve:
    """scores [N, C] fp32, targets [N, C] int8 → one curve for all labels: isotonic from 1,000 pictures on, else Platt.

    UNKNOWN targets are left out. Raises UsageError where scikit-learn is not installed or `check_scored` does, DatasetError
    where the known targets are all positive or all negative.
    """
    return _fit(scores, targets, len(scores) >= ISOTONIC_FROM)


def held_out_probabilities(scores: FloatArray, targets: Targets) -> FloatArray:
    """scores [N, C] fp32, targets [N, C] int8 → [N, C], each picture's by a curve that was fitted without it.

    The curve is of the kind that `fit_probabilities` takes for N pictures. Raises what `fit_probabilities` and `folds` do.
    """
    require("sklearn", extra="evaluate")
    check_scored(scores, targets)
    probabilities = np.empty(scores.shape, np.float32)
    for others, held_out in folds(targets):
        probabilities[held_out] = _fit(scores[others], targets[others], len(scores) >= ISOTONIC_FROM)(scores[held_out])
    return probabilities


def reliability(probabilities: FloatArray, targets: Targets) -> Reliability:
    """probabilities [N, C] between 0 and 1, targets [N, C] int8, at least one of them known → how well they agree."""
    values, positive = pooled(probabilities, targets)
    bins = np.minimum((values * BINS).astype(np.intp), BINS - 1)
    count = np.bincount(bins, minlength=BINS)
    filled = count > 0
    predicted, observed = (
        np.bincount(bins, weights=weights, minlength=BINS)[filled] / count[filled] for weights in (values, positive)
    )
    error = float((np.abs(predicted - observed) * count[filled]).sum() / len(values))
    return Reliability(predicted, observed, count[filled], error)


def _fit(scores: FloatArray, targets: Targets, isotonic: bool) -> Curve:
    require("sklearn", extra="evaluate")
    check_scored(scores, targets)
    values, positive = pooled(scores, targets)
    if positive.all() or not positive.any():
        found = f"{positive.sum():,} positive and {(~positive).sum():,} negative targets"
        raise DatasetError(f"{found}; expected some of both to fit probabilities to")
    return _isotonic(values, positive) if isotonic else _platt(values, positive)


def _platt(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> Platt:
    from sklearn.linear_model import LogisticRegression

    # Scores in units of their spread: otherwise the solver would stop early, and the penalty would matter.
    mean, spread = scores.mean(), scores.std() or 1.0
    model = LogisticRegression(C=1e6, tol=1e-8, max_iter=1000).fit(((scores - mean) / spread)[:, None], positive)
    slope = float(model.coef_[0, 0]) / spread
    return Platt(float(slope), float(model.intercept_[0]) - float(slope * mean))


def _isotonic(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> Isotonic:
    from sklearn.isotonic import IsotonicRegression

    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, positive)
    knots = len(model.X_thresholds_)
    kept = np.unique(np.linspace(0, knots - 1, min(knots, MOST_KNOTS)).round().astype(np.intp))
    return Isotonic(tuple(model.X_thresholds_[kept].tolist()), tuple(model.y_thresholds_[kept].tolist()))
