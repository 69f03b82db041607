"""What a threshold is chosen for, and the best threshold of some scores."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.errors import UsageError

_FORM = re.compile(r"f1|(?P<name>precision|recall)@(?P<level>[0-9]*\.?[0-9]+)")


class Measure(str, Enum):
    """What a goal is about."""

    F1 = "f1"
    PRECISION = "precision"
    RECALL = "recall"


@dataclass(frozen=True)
class Goal:
    """What a threshold is chosen for.

    F1: as high as it can be. Precision: at least `level`, with as many tags as that allows. Recall: at least `level`, with as
    few tags as that allows. `level` is above 0 and up to 1; for F1 it is 0.

    >>> parse_goal("precision@0.9")
    Goal(measure=<Measure.PRECISION: 'precision'>, level=0.9)
    """

    measure: Measure
    level: float = 0.0

    def __str__(self) -> str:
        return "f1" if self.measure is Measure.F1 else f"{self.measure.value}@{self.level}"


def parse_goal(text: str) -> Goal:
    """`f1`, `precision@P` or `recall@R`, the number above 0 and up to 1. Raises UsageError, naming `metric`, otherwise."""
    form = _FORM.fullmatch(text)
    level = float(form["level"] or 0) if form else 0.0
    if form is None or (form["name"] and not 0 < level <= 1):
        problem = "expected f1, or precision or recall with a number up to 1, such as precision@0.9 or recall@0.8"
        raise UsageError(problem, argument="metric", value=text)
    return Goal(Measure(form["name"] or "f1"), level)


def best_threshold(scores: NDArray[np.float64], positive: NDArray[np.bool_], goal: Goal) -> float:
    """scores [M] fp64, positive [M], at least one of them → the threshold that serves the goal best; scores from there up pass.

    It lies midway between two neighbouring scores, so that rounding moves few of them across; a threshold that all scores pass
    is the lowest of them. Among thresholds of equal F1 it is the highest. Where none has the precision asked for, it is the one
    of the best precision, and the lowest of those.
    """
    from sklearn.metrics import precision_recall_curve

    precision, recall, lowest = precision_recall_curve(positive, scores)
    # The last precision and recall are no threshold's.
    place = _best(precision[:-1], recall[:-1], goal)
    return float(lowest[max(0, place - 1)] + lowest[place]) / 2


def _best(precision: NDArray[np.float64], recall: NDArray[np.float64], goal: Goal) -> int:
    """The place of the best among thresholds in rising order."""
    if goal.measure is Measure.PRECISION:
        return int(np.argmax(precision >= min(goal.level, precision.max())))
    worth = recall >= goal.level
    if goal.measure is Measure.F1:
        f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(np.float64).tiny)
        # Equal values of F1 differ by rounding.
        worth = f1 >= f1.max() - 1e-12
    return int(np.flatnonzero(worth)[-1])


def passing(scores: NDArray[np.floating], count: int) -> float:
    """scores [M] → the threshold that `count` of them pass, 1 ≤ count ≤ M, midway between the last of these and the next one.

    Where those two are equal, all that equal them pass.
    """
    place = len(scores) - count
    around = [max(0, place - 1), place]
    return float(np.partition(scores, around)[around].astype(np.float64).mean())
