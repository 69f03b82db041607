"""Thresholds of a label set, from pictures with truth or without.

Scores are normalised over the labels of a picture, so they compare its labels with each other, and one threshold for all labels
is a fair start. A label's own threshold is better where many pictures show the label, and worse where few do: hence the two are
averaged, by the number of positives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray, Targets
from sigrl_deploy.calibration.goals import Goal, Measure, best_threshold, passing
from sigrl_deploy.calibration.pooling import known, pooled
from sigrl_deploy.datasets.dataset import POSITIVE
from sigrl_deploy.datasets.scored import check_scored, check_scores
from sigrl_deploy.errors import DatasetError, UsageError
from sigrl_deploy.extras import require

# Positives at which a label's own threshold weighs as much as the global one. Chosen on the validation pictures of `scenes`.
HALFWAY = {Measure.F1: 5, Measure.PRECISION: 10, Measure.RECALL: 10}


@dataclass(frozen=True)
class Fitted:
    """Thresholds of C labels; a score at or above its label's passes.

    `global_threshold` is the best one for all labels together. `thresholds` [C] fp64 are the labels' own, drawn towards it;
    a label without positives has the global one. `positives` [C] counts the pictures that were known to show the label.
    """

    global_threshold: float
    thresholds: NDArray[np.float64]
    positives: NDArray[np.intp]


def fit_thresholds(scores: FloatArray, targets: Targets, goal: Goal) -> Fitted:
    """scores [N, C] fp32, targets [N, C] int8 → thresholds that serve the goal. UNKNOWN targets are left out.

    A label of n positives gets w·own + (1 − w)·global, w = n / (n + HALFWAY). Its own threshold is the best one of its scores.
    For F1, where few positives make that one erratic, it is the mean of that one and of the threshold that gives the label as
    many tags for each of its positives as the global threshold gives all labels.

    Raises UsageError where scikit-learn is not installed or `check_scored` does, DatasetError where no label has a positive.
    """
    require("sklearn", extra="evaluate")
    check_scored(scores, targets)
    positives = np.count_nonzero(targets == POSITIVE, axis=0)
    if not positives.any():
        raise DatasetError(
            "no picture shows any of the labels; expected pictures whose truth has some, to choose thresholds from"
        )
    every, positive = pooled(scores, targets)
    shared = best_threshold(every, positive, goal)
    tags_per_positive = int(np.count_nonzero(every >= shared)) / max(1, int(np.count_nonzero(positive)))
    thresholds = np.full(scores.shape[1], shared)
    for c in np.flatnonzero(positives):
        own_scores, shown = known(scores[:, c], targets[:, c])
        own = best_threshold(own_scores, shown, goal)
        if goal.measure is Measure.F1:
            tags = max(1, min(len(shown), round(tags_per_positive * positives[c])))
            own = (own + passing(own_scores, tags)) / 2
        weight = float(positives[c] / (positives[c] + HALFWAY[goal.measure]))
        thresholds[c] = weight * own + (1 - weight) * shared
    return Fitted(shared, thresholds, positives)


def fit_quantiles(scores: FloatArray, tags_per_picture: float) -> tuple[float, NDArray[np.float64]]:
    """scores [N, C] fp32 of pictures without truth → one threshold for all, and thresholds [C] fp64 of the labels.

    With either of them, so many labels pass per picture on average. A label's own lies higher where its scores are higher and
    vary more; not as much higher as would give all labels the same number of tags, since how often each is shown is not known.
    By validation pictures of `scenes`, as they are and with some labels made rare, that is better than one threshold for all.

    Raises UsageError where `tags_per_picture` is not between 0 and C, or `check_scores` does.
    """
    check_scores(scores)
    pictures, labels = scores.shape
    check_tags_per_picture(tags_per_picture, labels)
    count = max(1, round(tags_per_picture * pictures))
    wide = scores.astype(np.float64)
    middle, spread = wide.mean(axis=0) / 4, np.sqrt(wide.std(axis=0))
    spread[spread == 0] = 1  # of one picture, or of a label that scores the same in all
    own = passing(((wide - middle) / spread).ravel(), count) * spread + middle
    return passing(wide.ravel(), count), own


def check_tags_per_picture(tags_per_picture: float, labels: int) -> None:
    """Raise UsageError unless so many of the labels can pass on average."""
    if not 0 < tags_per_picture < labels:
        problem = f"expected a number above 0 and below {labels}, the number of labels"
        raise UsageError(problem, argument="tags_per_picture", value=tags_per_picture)
