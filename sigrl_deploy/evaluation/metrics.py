"""Multi-label metrics of a whole data set, as fractions (0 to 1), from scores [N, C] and targets [N, C].

N pictures, C labels, K predictions per picture. Temporary arrays hold one label or a block of pictures, so that the
107,859 x 1006 scores of NUS-WIDE's test split need little more memory than they take themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray, Targets
from sigrl_deploy.comparison import agreement, best_labels, score_errors
from sigrl_deploy.datasets.dataset import POSITIVE, UNKNOWN
from sigrl_deploy.datasets.scored import check_scored
from sigrl_deploy.extras import require

TOP_K = (3, 5)


@dataclass(frozen=True)
class TopK:
    """Each picture's K best labels taken as its predictions; `k` is K, or C where there are fewer labels.

    With TP right predictions and M positives in all: precision = TP / (N·K), recall = TP / M (0 where M is 0), and `f1`, their
    harmonic mean, is the micro F1@K that papers on NUS-WIDE report. `sample_f1` is the mean of each picture's F1; a picture
    without a positive counts 0, since none of its K predictions is right. `macro_f1` is the mean of each label's F1; a label
    without a positive counts 0 too.
    """

    k: int
    precision: float
    recall: float
    f1: float
    sample_f1: float
    macro_f1: float


@dataclass(frozen=True)
class AtThresholds:
    """Labels decided by thresholds. Unknown targets are left out.

    `precision`, `recall` and `f1` are over all pictures and labels together; `macro_f1` is the mean of each label's F1, a label
    without a positive counting 0. `tags` is how many labels a picture has on average, among those that are known.
    """

    precision: float
    recall: float
    f1: float
    macro_f1: float
    tags: float


@dataclass(frozen=True)
class Metrics:
    """What one model reaches on one label set.

    `average_precision` and `positives` have one value per label, in the label set's order; a label without a positive has no
    average precision (None). `map` counts such a label as 0, as the reference implementation does; `map_present` is the mean
    over the other labels, and None where there are none. `top_k` maps the K asked for to its metrics.
    """

    map: float
    map_present: float | None
    average_precision: tuple[float | None, ...]
    positives: tuple[int, ...]
    top_k: dict[int, TopK]


@dataclass(frozen=True)
class Difference:
    """How one model's scores differ from the reference model's on the same pictures and labels.

    `map` is its mAP minus the reference's. `top1_agreement` and `top3_agreement` are the shares of pictures whose best label,
    or set of three best labels (all, where C < 3), is the reference's; see `comparison.agreement`. `largest_score` is the
    largest absolute score difference.
    """

    map: float
    top1_agreement: float
    top3_agreement: float
    largest_score: float


def evaluate_scores(scores: FloatArray, targets: Targets) -> Metrics:
    """scores [N, C] fp32, targets [N, C] int8 → metrics.

    A target is POSITIVE, NEGATIVE or UNKNOWN. Unknown ones are left out of average precision, and count as not positive in the
    top-K metrics. A label's average precision is the non-interpolated Σ precision at each positive / positives: scikit-learn
    sums precision times the growth of recall, which is 1 / positives at each positive and 0 elsewhere. Pictures of equal score
    share one threshold, so that each of their positives counts with the precision behind the last of them, and the order of
    pictures changes nothing. Equal scores of one picture are ranked in the label set's order.

    Raises UsageError where scikit-learn is not installed, the shapes differ, there is no picture or no label, a score is not
    finite, or a target is none of the three values.
    """
    require_scikit_learn()
    check_scored(scores, targets)
    average_precision = tuple(_average_precision(scores[:, c], targets[:, c]) for c in range(scores.shape[1]))
    present = [value for value in average_precision if value is not None]
    best = best_labels(scores, max(TOP_K))
    return Metrics(
        map=sum(present) / len(average_precision),
        map_present=sum(present) / len(present) if present else None,
        average_precision=average_precision,
        positives=tuple(np.count_nonzero(targets == POSITIVE, axis=0).tolist()),
        top_k={k: _top_k(best[:, :k], targets) for k in TOP_K},
    )


def evaluate_decisions(decided: NDArray[np.bool_], targets: Targets) -> AtThresholds:
    """decided [N, C], targets [N, C] int8 → metrics."""
    chosen = decided & (targets != UNKNOWN)
    positive = targets == POSITIVE
    hits, predicted, positives = (np.count_nonzero(cells, axis=0) for cells in (chosen & positive, chosen, positive))
    return AtThresholds(
        precision=float(hits.sum() / max(1, predicted.sum())),
        recall=float(hits.sum() / max(1, positives.sum())),
        f1=float(2 * hits.sum() / max(1, predicted.sum() + positives.sum())),
        macro_f1=float(_f1(hits, predicted, positives).mean()),
        tags=float(predicted.sum() / len(targets)),
    )


def require_scikit_learn() -> None:
    """Raise UsageError where it is not installed: metrics need it."""
    require("sklearn", extra="evaluate")


def _average_precision(scores: FloatArray, targets: Targets) -> float | None:
    from sklearn.metrics import average_precision_score

    known = targets != UNKNOWN
    positive = targets[known] == POSITIVE
    # scikit-learn computes in the dtype of the scores.
    return float(average_precision_score(positive, scores[known].astype(np.float64))) if positive.any() else None


def _top_k(best: NDArray[np.intp], targets: Targets) -> TopK:
    (pictures, k), labels = best.shape, targets.shape[1]
    positive = targets == POSITIVE
    right = np.take_along_axis(positive, best, axis=1)
    hits, positives = int(right.sum()), int(positive.sum())
    of_labels = np.bincount(best[right], minlength=labels), np.bincount(best.ravel(), minlength=labels), positive.sum(axis=0)
    return TopK(
        k=k,
        precision=hits / (pictures * k),
        recall=hits / max(1, positives),
        f1=2 * hits / (pictures * k + positives),
        sample_f1=float(_f1(right.sum(axis=1), k, positive.sum(axis=1)).mean()),
        macro_f1=float(_f1(*of_labels).mean()),
    )


def _f1(hits: NDArray[np.intp], predicted: NDArray[np.intp] | int, positives: NDArray[np.intp]) -> NDArray[np.float64]:
    """F1 from counts: scikit-learn's `f1_score` with zero_division=0, which takes no label set of one label."""
    return 2 * hits / np.maximum(1, predicted + positives)


def difference(scores: FloatArray, reference: FloatArray, map_: float, reference_map: float) -> Difference:
    """Two models' scores [N, C] of the same pictures and labels, and their mAP → how the first differs from the second."""
    return Difference(
        map=map_ - reference_map,
        top1_agreement=agreement(reference, scores, 1),
        top3_agreement=agreement(reference, scores, 3),
        largest_score=score_errors(reference, scores).largest,
    )
