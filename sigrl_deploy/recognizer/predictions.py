"""What recognition says about a picture."""

from __future__ import annotations

from dataclasses import dataclass, field

from sigrl_deploy.arrays import FloatArray


@dataclass(frozen=True)
class Prediction:
    """One label of one picture.

    Attributes:
        label: the label.
        score: ranks the labels of one picture within one vocabulary. It is not a probability, and it shrinks as the vocabulary
            grows, unless the architecture gives probabilities.
        evidence: fp32 [rows, columns], how well each patch of the picture matches the label. None unless it was asked for.
            Square, unless the recognizer's `crop` shows more of a picture.
        strength: fp32 [rows, columns], 0 to 1, how clearly each patch shows the label: its evidence, compared with that of all
            labels, on one scale for all predictions of a picture. None unless evidence was asked for.
        threshold: what the score had to reach; None where there was no threshold.
        probability: that the picture has the label, where a file of thresholds has a curve for it, or the score is one.
        child: for a parent that a label below it brought with it, that label: score, threshold and evidence are the child's.

    >>> cat = Prediction("cat", 0.31)
    >>> cat.label, cat.score
    ('cat', 0.31)
    """

    label: str
    score: float
    evidence: FloatArray | None = field(default=None, repr=False, compare=False)
    strength: FloatArray | None = field(default=None, repr=False, compare=False)
    threshold: float | None = None
    probability: float | None = None
    child: str | None = None


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
