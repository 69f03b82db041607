"""What recognition says about a picture."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import UsageError


@dataclass(frozen=True)
class Prediction:
    """One label of one picture.

    Attributes:
        label: the label.
        score: ranks the labels of one picture within one vocabulary. It is not a probability, and it shrinks as the vocabulary
            grows.
        evidence: fp32 [rows, columns], how well each patch of the picture matches the label. None unless it was asked for.
            Square, unless the recognizer's `crop` shows more of a picture.
        strength: fp32 [rows, columns], 0 to 1, how clearly each patch shows the label: its evidence, compared with that of all
            labels, on one scale for all predictions of a picture. None unless evidence was asked for.

    >>> cat = Prediction("cat", 0.31)
    >>> cat.label, cat.score
    ('cat', 0.31)
    """

    label: str
    score: float
    evidence: FloatArray | None = field(default=None, repr=False, compare=False)
    strength: FloatArray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Record:
    """One picture of a run over many: its predictions, or the reason why it has none.

    Attributes:
        path: the picture, as it was given.
        predictions: best first.
        scores: fp32 [C], every label's score in the order of the vocabulary; None where there is an error.
        error: None, or one line that says why the picture could not be read or scored.
        seen: the part of the picture that the model was shown and evidence is about: left, top, right and bottom edge, in
            pixels of the upright picture. Rows and columns of evidence divide it evenly. With `crop="pad"` it may reach beyond
            the picture, by less than a patch on each side. None where there is an error.
        size: width and height of the upright picture in pixels; None where there is an error.

    >>> for record in recognizer.stream(["cat.jpg", "missing.jpg"], ["cat", "cup of coffee", "rocket"]):
    ...     print(record.path, len(record.predictions), "failed" if record.error else "ok")
    cat.jpg 3 ok
    missing.jpg 0 failed
    """

    path: str
    predictions: tuple[Prediction, ...] = ()
    scores: FloatArray | None = field(default=None, repr=False, compare=False)
    error: str | None = None
    seen: tuple[float, float, float, float] | None = field(default=None, repr=False, compare=False)
    size: tuple[int, int] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Selection:
    """Which labels of a picture become predictions: the `top` best, of those that score at least `threshold`."""

    top: int
    threshold: float | None
    evidence: bool

    def check(self, arch: Arch) -> None:
        """Raise UsageError for values that mean nothing, and for evidence where the architecture matches no patches."""
        if not isinstance(self.top, (int, np.integer)) or self.top < 1:
            raise UsageError("expected a whole number above 0", argument="top", value=self.top)
        number = isinstance(self.threshold, (int, float, np.number)) and np.isfinite(self.threshold)
        if self.threshold is not None and not number:
            raise UsageError("expected a finite number or None", argument="threshold", value=self.threshold)
        if self.evidence and not arch.has_local:
            raise UsageError(
                f"a bundle of arch {arch.value} scores whole pictures and has no evidence by patch; leave it out",
                argument="evidence",
            )

    def best(self, scores: FloatArray, labels: tuple[str, ...]) -> tuple[Prediction, ...]:
        """scores [C] → predictions without evidence, best first, ties in the order of the labels."""
        order = np.argsort(-scores, kind="stable")[: self.top]
        chosen = (i for i in order if self.threshold is None or scores[i] >= self.threshold)
        return tuple(Prediction(labels[i], float(scores[i])) for i in chosen)
