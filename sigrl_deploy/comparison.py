"""How far apart two models' scores [N, C] of the same pictures and labels are.

Scores are read in blocks of pictures, so that the 107,859 x 1006 of NUS-WIDE's test split need little more memory than they
take themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray

_BLOCK = 1024  # pictures
_MOST_LOGIT = 8.0  # at which rounding to fp32 moves a logit by 1e-4, a hundred-thousandth


@dataclass(frozen=True)
class ScoreErrors:
    """Absolute differences over all pictures and labels. `largest` is infinite where one is not finite."""

    largest: float
    mean: float
    rms: float


def score_errors(expected: FloatArray, found: FloatArray) -> ScoreErrors:
    """expected, found [N, C], at least one score → their differences, computed in float64."""
    largest, total, squares = 0.0, 0.0, 0.0
    for a, b in _blocks(expected, found):
        error = np.abs(a.astype(np.float64) - b)
        largest = max(largest, float(error.max())) if np.isfinite(error).all() else np.inf
        total += float(error.sum())
        squares += float(np.square(error).sum())
    return ScoreErrors(largest, total / expected.size, float(np.sqrt(squares / expected.size)))


def compared(scores: FloatArray, probabilities: bool) -> FloatArray:
    """What errors of scores are found in: they themselves, or, where they are sigmoids, what those were taken of.

    Of a thousand labels most are less probable than any tolerance, so that probabilities would show little. Above
    _MOST_LOGIT a probability in fp32 has too few digits left, and counts as that.
    """
    if not probabilities:
        return scores
    p = scores.astype(np.float64).clip(np.finfo(np.float32).tiny, 1 / (1 + np.exp(-_MOST_LOGIT)))
    logits: FloatArray = np.log(p / (1 - p)).astype(np.float32)  # NaN stays NaN
    return logits


def unit_of(expected: FloatArray) -> float:
    """What errors of these scores are counted in: 1, or the largest of them where they go beyond ±1."""
    return max(1.0, float(np.abs(expected).max()))


def lowest_cosine(expected: FloatArray, found: FloatArray) -> float:
    """expected, found [N, C] → the lowest cosine, over the pictures, of the two models' scores of a picture.

    It is 0 where all scores of a picture are 0.
    """
    lowest = 1.0
    for block in _blocks(expected, found):
        a, b = (scores.astype(np.float64) for scores in block)
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        lowest = float(np.minimum(lowest, ((a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1)).min()))  # NaN stays NaN
    return lowest


def best_labels(scores: FloatArray, k: int) -> NDArray[np.intp]:
    """scores [N, C] → the columns of each picture's k best labels [N, min(k, C)], best first, ties in column order."""
    # Copies, since a slice would keep its block's whole order in memory.
    return np.concatenate([np.argsort(-block, axis=1, kind="stable")[:, :k].copy() for (block,) in _blocks(scores)])


def agreement(expected: FloatArray, found: FloatArray, k: int) -> float:
    """expected, found [N, C] → the share of pictures (0 to 1) whose k best labels are the same, in whatever order."""
    same = np.sort(best_labels(expected, k)) == np.sort(best_labels(found, k))
    return float(same.all(axis=1).mean())


def overlap(expected: FloatArray, found: FloatArray, k: int) -> float:
    """expected, found [N, C] → the share (0 to 1) of the k best labels of `expected` that are among the k best of `found`.

    For k = 1 it is the same as `agreement`.
    """
    pairs = zip(best_labels(expected, k), best_labels(found, k), strict=True)
    return float(np.mean([len(np.intersect1d(a, b)) / len(a) for a, b in pairs]))


def flips(expected: FloatArray, found: FloatArray, threshold: float | FloatArray) -> NDArray[np.intp]:
    """expected, found [N, C], threshold one or [C] → [C], how many scores of each label lie on different sides of it."""
    differing = np.zeros(expected.shape[1], np.intp)
    for a, b in _blocks(expected, found):
        differing += np.count_nonzero((a >= threshold) != (b >= threshold), axis=0)
    return differing


def _blocks(*scores: FloatArray) -> Iterator[tuple[FloatArray, ...]]:
    for start in range(0, len(scores[0]), _BLOCK):
        yield tuple(one[start : start + _BLOCK] for one in scores)
