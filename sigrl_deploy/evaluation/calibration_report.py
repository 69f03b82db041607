"""What `calibrate` found, as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sigrl_deploy.calibration.quality import Interval, Quality
from sigrl_deploy.calibration.validation import FEWEST_POSITIVES, Validation
from sigrl_deploy.errors import printable
from sigrl_deploy.evaluation.calibrate import Calibration

_SHOWN = 8  # names
_HEAD = ("decided by", "F1", "precision", "recall", "macro-F1", "macro-precision", "macro-recall")


def report(found: Calibration) -> str:
    """A table of how good the decisions are, and what to know about single labels. Ends with a line feed."""
    file = found.file
    how = f"{len(found.labels)} thresholds by {file.metric}, from {found.pictures} pictures"
    lines = [f"{how}; for all labels {file.global_threshold:.4g}"]
    if found.validation is not None:
        lines += ["", *_table(found.validation), "", *_about_labels(found, found.validation)]
    if found.unknown:
        lines.append(f"The pictures' truth says nothing about {_names(found.unknown)}: the threshold for all labels is taken.")
    if found.calibration_error is not None:
        lines.append(f"Probabilities are off by {100 * found.calibration_error:.2f} points on average.")
    return "\n".join(lines) + "\n"


def _table(validation: Validation) -> Iterator[str]:
    rows = [
        [*_HEAD],
        ["thresholds by label", *_cells(validation.fitted)],
        ["one threshold for all", *_cells(validation.one_threshold)],
        [f"the {validation.k} best labels", *_cells(validation.top_k)],
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_HEAD))]
    for first, *others in rows:
        yield "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))])
    yield "In percent, with 95 % intervals, on pictures that the thresholds were not chosen from (5-fold cross-validation)."


def _cells(quality: Quality) -> list[str]:
    return [_interval(figure) for mean in (quality.micro, quality.macro) for figure in (mean.f1, mean.precision, mean.recall)]


def _interval(figure: Interval) -> str:
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f}–{100 * figure.high:.1f})"


def _about_labels(found: Calibration, validation: Validation) -> Iterator[str]:
    positives = validation.labels.positives
    few = [found.labels[i] for i in validation.too_few if positives[i]]
    without = [label for label, count in zip(found.labels, positives, strict=True) if not count and label not in found.unknown]
    if few:
        yield f"Fewer than {FEWEST_POSITIVES} pictures show {_names(few)}: little is known about their thresholds."
    if without:
        yield f"No picture shows {_names(without)}: the threshold for all labels is taken."


def _names(labels: Sequence[str]) -> str:
    shown = ", ".join(map(printable, labels[:_SHOWN]))
    return shown if len(labels) <= _SHOWN else f"{shown} and {len(labels) - _SHOWN} more"
