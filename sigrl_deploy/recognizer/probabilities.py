"""Probabilities from scores: a curve that `sigrl-deploy calibrate` fitted, one for all labels."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import numpy as np
from msgspec import Meta

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.structs import Checked

_Numbers: TypeAlias = Annotated[tuple[float, ...], Meta(min_length=1, max_length=10_000)]


class Curve(Checked, frozen=True):
    """A rising curve through points, straight between them and flat beyond the first and the last.

    `method` is "isotonic" or "platt"; a sigmoid is kept as points too.
    """

    method: str
    scores: _Numbers
    probabilities: _Numbers

    def __post_init__(self) -> None:
        x, y = np.array(self.scores), np.array(self.probabilities)
        if len(x) != len(y) or not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise ValueError("expected as many finite probabilities as scores")
        if (np.diff(x) < 0).any() or (np.diff(y) < 0).any() or y[0] < 0 or y[-1] > 1:
            raise ValueError("expected scores and probabilities that rise, from 0 to 1")

    def at(self, scores: FloatArray) -> FloatArray:
        """Scores of any shape → probabilities, fp32."""
        found: FloatArray = np.interp(scores, self.scores, self.probabilities).astype(np.float32)
        return found
