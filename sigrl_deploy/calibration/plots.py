"""Two plots, as PNG or SVG by the file's ending: precision against recall, and the reliability of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray, Targets
from sigrl_deploy.calibration.pooling import known, pooled
from sigrl_deploy.calibration.probabilities import Reliability
from sigrl_deploy.calibration.validation import FEWEST_POSITIVES
from sigrl_deploy.datasets.dataset import POSITIVE
from sigrl_deploy.datasets.scored import check_scored
from sigrl_deploy.errors import DatasetError, UsageError, printable
from sigrl_deploy.extras import require
from sigrl_deploy.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg")
NAMED = 12  # labels with a colour and a name of their own
_MOST_GREY = 150  # other labels
_LONGEST = 32  # characters of a label
_RECALL = np.linspace(0, 1, 101)


def draw_precision_recall(scores: FloatArray, targets: Targets, labels: Sequence[str], path: Path) -> None:
    """scores [N, C] fp32, targets [N, C] int8, C labels → a plot of precision against recall.

    Up to NAMED labels have a name and their average precision. Where there are more, these are the best and the worst ones, and
    the others are grey. Labels with fewer than FEWEST_POSITIVES positives are left out, unless all have. The black line is all
    labels together. A line shows the highest precision at this recall or more, which is what a threshold can reach.

    Raises UsageError where matplotlib or scikit-learn is not installed, `path` ends in neither .png nor .svg, or `check_scored`
    does; DatasetError where no label has a positive; OSError where `path` cannot be written.
    """
    require("sklearn", extra="evaluate")
    figure = _figure(path)
    check_scored(scores, targets)
    positives = np.count_nonzero(targets == POSITIVE, axis=0)
    if not positives.any():
        raise DatasetError("no picture shows any of the labels; expected pictures whose truth has some, to draw precision of")
    enough = np.flatnonzero(positives >= (FEWEST_POSITIVES if positives.max() >= FEWEST_POSITIVES else 1))
    curves = {c: _precision(*known(scores[:, c], targets[:, c])) for c in enough.tolist()}
    ranked = sorted(curves, key=lambda c: -curves[c][1])
    named = ranked if len(ranked) <= NAMED else ranked[: NAMED // 2] + ranked[-(NAMED // 2) :]
    axis = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    others = [c for c in ranked if c not in named]
    for c in others[:: len(others) // _MOST_GREY + 1]:
        axis.plot(_RECALL, curves[c][0], color="0.8", linewidth=0.6)
    colours = ["C0", "C1", "C2", "C3", "C4", "C5"]
    for place, c in enumerate(named):
        style = "-" if place < NAMED // 2 else "--"
        axis.plot(_RECALL, curves[c][0], style, color=colours[place % 6], label=f"{curves[c][1]:.2f}  {_short(labels[c])}")
    together, average = _precision(*pooled(scores, targets))
    axis.plot(_RECALL, together, color="black", linewidth=2, label=f"{average:.2f}  all labels together")
    legend = figure.legend(loc="outside right upper", fontsize="small", title="average precision")
    for text in legend.get_texts():
        text.set_parse_math(False)  # a label may hold a $
    axis.grid(alpha=0.3)
    _write(figure, path)


def _precision(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[NDArray[np.float64], float]:
    """The highest precision at each of _RECALL or more, and the average precision."""
    from sklearn.metrics import average_precision_score, precision_recall_curve

    precision, recall, _ = precision_recall_curve(positive, scores)
    # Recall falls along the curve, and its last point, recall 0 at precision 1, is no threshold's.
    highest = np.maximum.accumulate(precision[:-1])
    place = np.searchsorted(-recall[:-1], -_RECALL, side="right") - 1
    return highest[place], float(average_precision_score(positive, scores))


def _short(label: str) -> str:
    text = printable(label)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def draw_reliability(found: Reliability, path: Path) -> None:
    """A plot of the share of positives against the probability, and of how many have such a probability.

    Raises UsageError where matplotlib is not installed or `path` ends in neither .png nor .svg, OSError where it cannot be
    written.
    """
    figure = _figure(path)
    axis, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axis.plot([0, 1], [0, 1], color="0.6", linestyle=":", label="perfect")
    axis.plot(found.predicted, found.observed, marker="o", label=f"measured, calibration error {found.error:.3f}")
    axis.set(ylabel="share that is there", xlim=(0, 1), ylim=(0, 1))
    axis.legend(loc="upper left", fontsize="small")
    counts.bar(found.predicted, found.count, width=0.02)
    counts.set(yscale="log", ylim=(0.5, 2 * found.count.max()), ylabel="how many", xlabel="probability")
    for panel in (axis, counts):
        panel.grid(alpha=0.3)
    _write(figure, path)


def _figure(path: Path) -> Figure:
    require("matplotlib", extra="plots")
    if path.suffix.lower() not in ENDINGS:
        raise UsageError(f"no plot has this ending; expected {' or '.join(ENDINGS)}", argument="path", value=path)
    # Without pyplot, which would choose a backend for the whole process and keep every figure.
    from matplotlib.figure import Figure

    return Figure(figsize=(9, 6), layout="constrained")


def _write(figure: Figure, path: Path) -> None:
    from matplotlib import rc_context

    # The same figures, the same file.
    with rc_context({"svg.hashsalt": "sigrl-deploy"}), replacing(path) as temporary:
        ending = path.suffix.lower()
        figure.savefig(temporary, format=ending[1:], dpi=150, metadata={"Date": None} if ending == ".svg" else {})
