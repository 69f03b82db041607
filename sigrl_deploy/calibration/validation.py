"""How thresholds that were fitted on some pictures do on others: cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray, Targets
from sigrl_deploy.calibration.fitting import fit_thresholds
from sigrl_deploy.calibration.folds import folds
from sigrl_deploy.calibration.goals import Goal
from sigrl_deploy.calibration.quality import LabelQuality, Quality, label_quality, quality
from sigrl_deploy.comparison import best_labels
from sigrl_deploy.datasets.dataset import POSITIVE, UNKNOWN
from sigrl_deploy.datasets.scored import check_scored
from sigrl_deploy.extras import require

# A recall or precision of one half that was measured on ten positives may be .3 off either way.
FEWEST_POSITIVES = 10
_MOST_TOP_K = 50


@dataclass(frozen=True)
class Validation:
    """How decisions on pictures that nothing was fitted on compare with the truth.

    `fitted` is what `fit_thresholds` gives, `one_threshold` its global threshold for all labels, `top_k` each picture's k best
    labels; `k` is the one chosen from all pictures. `labels` has the figures of `fitted` for each label; `too_few` lists the
    columns of labels with fewer than FEWEST_POSITIVES positives, whose figures say little.
    """

    fitted: Quality
    one_threshold: Quality
    top_k: Quality
    k: int
    labels: LabelQuality
    too_few: tuple[int, ...]


def cross_validate(scores: FloatArray, targets: Targets, goal: Goal) -> Validation:
    """scores [N, C] fp32, targets [N, C] int8 → how the thresholds for a goal do on pictures that they were not fitted on.

    Each fifth of the pictures is decided by thresholds, and by a k, that were fitted on the other four; always the same fifths.

    Raises UsageError as `fit_thresholds` does, DatasetError where there are too few pictures or positives to hold some out.
    """
    require("sklearn", extra="evaluate")
    check_scored(scores, targets)
    by_label, by_one, by_rank = (np.zeros(scores.shape, bool) for _ in range(3))
    for others, held_out in folds(targets):
        fitted = fit_thresholds(scores[others], targets[others], goal)
        by_label[held_out] = scores[held_out] >= fitted.thresholds
        by_one[held_out] = scores[held_out] >= fitted.global_threshold
        by_rank[held_out] = top_k(scores[held_out], best_k(scores[others], targets[others]))
    labels = label_quality(by_label, targets)
    return Validation(
        fitted=quality(by_label, targets),
        one_threshold=quality(by_one, targets),
        top_k=quality(by_rank, targets),
        k=best_k(scores, targets),
        labels=labels,
        too_few=tuple(np.flatnonzero(labels.positives < FEWEST_POSITIVES).tolist()),
    )


def top_k(scores: FloatArray, k: int) -> NDArray[np.bool_]:
    """scores [N, C] → [N, C], True for each picture's k best labels."""
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, best_labels(scores, k), True, axis=1)
    return chosen


def best_k(scores: FloatArray, targets: Targets) -> int:
    """scores [N, C], targets [N, C] → the k, up to 50, for which each picture's k best labels have the best micro F1."""
    ranked = np.take_along_axis(targets, best_labels(scores, _MOST_TOP_K), axis=1)
    hits = np.cumsum((ranked == POSITIVE).sum(axis=0))
    decided = np.cumsum((ranked != UNKNOWN).sum(axis=0))
    return int(np.argmax(2 * hits / np.maximum(1, decided + np.count_nonzero(targets == POSITIVE)))) + 1
