"""How good decisions are: F1, precision and recall, with intervals over the choice of pictures.

N pictures, C labels. A picture's label is a hit where it is decided and positive. UNKNOWN targets count neither as decided nor
as positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import Targets
from sigrl_deploy.calibration.folds import SEED
from sigrl_deploy.datasets.dataset import POSITIVE, UNKNOWN

RESAMPLES = 1000
_BLOCK = 1024  # pictures
_Counts = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # hits, decisions, positives


@dataclass(frozen=True)
class Interval:
    """A figure of all pictures, and the range that holds it for 95 % of their resamples."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Scored:
    """F1, precision and recall, each between 0 and 1."""

    f1: Interval
    precision: Interval
    recall: Interval


@dataclass(frozen=True)
class Quality:
    """How good decisions are over all labels.

    `micro` counts the hits of all labels together. `macro` is the mean over the labels that have a positive. A label without a
    decision has precision 0.
    """

    micro: Scored
    macro: Scored


@dataclass(frozen=True)
class LabelQuality:
    """Of C labels: `f1`, `precision` and `recall` [C] fp64, 0 where nothing is a hit, and the number of `positives` [C]."""

    f1: NDArray[np.float64]
    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    positives: NDArray[np.intp]


def label_quality(decided: NDArray[np.bool_], targets: Targets) -> LabelQuality:
    """decided [N, C] bool, targets [N, C] int8 → each label's figures."""
    hits, decisions, positives = (events.sum(axis=0) for events in _events(decided, targets))
    return LabelQuality(*_rates(hits, decisions, positives), positives)


def quality(decided: NDArray[np.bool_], targets: Targets) -> Quality:
    """decided [N, C] bool, targets [N, C] int8 → the figures over all labels.

    RESAMPLES times, N pictures are drawn with replacement, the same ones in every call with N pictures. The intervals say how
    far other pictures of the same kind would move the figures, if the thresholds stayed. Memory: 12 kB a label, and 30 MB.
    """
    hits, decisions, positives = (events.sum(axis=0, keepdims=True) for events in _events(decided, targets))
    resampled = _resampled(decided, targets)
    micro, macro = (
        Scored(*map(_interval, figures(hits, decisions, positives), figures(*resampled))) for figures in (_micro, _macro)
    )
    return Quality(micro, macro)


def _events(decided: NDArray[np.bool_], targets: Targets) -> _Counts:
    """[N, C] bool each: what is a hit, what is decided, what is positive."""
    positive = targets == POSITIVE
    return decided & positive, decided & (targets != UNKNOWN), positive


def _resampled(decided: NDArray[np.bool_], targets: Targets) -> _Counts:
    """The counts of each label in each resample: [RESAMPLES, C] fp32, which is exact for counts up to 16 million."""
    rng = np.random.default_rng(SEED)
    pictures, labels = targets.shape
    starts = range(0, pictures, _BLOCK)
    sizes = np.array([min(_BLOCK, pictures - start) for start in starts])
    # How many of a resample's pictures come from each block, then how often it has each picture of a block: that is a draw from
    # all pictures, without a table of all pictures.
    shares = rng.multinomial(pictures, sizes / pictures, RESAMPLES)
    counts = tuple(np.zeros((RESAMPLES, labels), np.float32) for _ in range(3))
    for start, size, share in zip(starts, sizes, shares.T, strict=True):
        times = rng.multinomial(share, np.full(size, 1 / size)).astype(np.float32)
        block = slice(start, start + size)
        for count, events in zip(counts, _events(decided[block], targets[block]), strict=True):
            count += times @ events.astype(np.float32)
    return counts[0], counts[1], counts[2]


def _rates(hits: NDArray[Any], decisions: NDArray[Any], positives: NDArray[Any]) -> _Counts:
    """F1, precision, recall."""
    return 2 * hits / np.maximum(1, decisions + positives), hits / np.maximum(1, decisions), hits / np.maximum(1, positives)


def _micro(*counts: NDArray[Any]) -> _Counts:
    """[R, C] each → F1, precision and recall [R] of all labels together."""
    hits, decisions, positives = (count.sum(axis=1) for count in counts)
    return _rates(hits, decisions, positives)


def _macro(hits: NDArray[Any], decisions: NDArray[Any], positives: NDArray[Any]) -> _Counts:
    """[R, C] each → the means [R] of F1, precision and recall over the labels with a positive."""
    present = positives > 0
    labels = np.maximum(1, present.sum(axis=1))
    f1, precision, recall = ((rate * present).sum(axis=1) / labels for rate in _rates(hits, decisions, positives))
    return f1, precision, recall


def _interval(value: NDArray[np.float64], resampled: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(value[0]), float(low), float(high))
