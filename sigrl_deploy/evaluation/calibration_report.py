"""What `calibrate` found, as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sigrl_deploy.calibration.quality import Interval, Quality
from sigrl_deploy.calibration.validation import FEWEST_POSITIVES, Validation
from sigrl_deploy.errors import printable
from sigrl_deploy.evaluation.calibrate import Calibration
from sigrl_deploy.evaluation.sources import names_without_truth

_SHOWN = 8  # names
_LISTED = 30  # labels with a row of their own
_HEAD = ("decided by", "F1", "precision", "recall", "macro-F1", "macro-precision", "macro-recall")


def report(found: Calibration) -> str:
    """A table of how good the decisions are, and what to know about single labels. Ends with a line feed."""
    file = found.file
    pictures = f"{found.pictures} picture{'' if found.pictures == 1 else 's'}"
    how = f"{len(found.labels)} thresholds by {file.metric}, from {pictures}"
    lines = [f"{how}; for all labels {file.global_threshold:.4g}"]
    if found.validation is not None:
        lines += ["", *_table(found.validation, len(found.labels) - len(found.unknown)), ""]
        if len(found.labels) <= _LISTED:
            lines += [*_each_label(found, found.validation), ""]
        lines += _about_labels(found, found.validation)
    if found.unknown:
        said = names_without_truth(found.unknown, found.truth)
        lines.append(f"The truth says nothing about {said}: the threshold for all labels is taken.")
    if found.own:
        lines.append(f"The label file has a threshold for {_names(found.own)}, which goes before the one found here.")
    if found.calibration_error is not None:
        lines.append(f"Probabilities are off by {100 * found.calibration_error:.2f} points on average.")
    return "\n".join(lines) + "\n"


def _table(validation: Validation, known: int) -> Iterator[str]:
    rows = [
        [*_HEAD],
        ["thresholds by label", *_cells(validation.fitted)],
        ["one threshold for all", *_cells(validation.one_threshold)],
        [f"best {validation.k} of a picture", *_cells(validation.top_k)],
    ]
    yield from _aligned(rows)
    yield f"In percent, with 95 % intervals, over {known} labels with truth, on pictures that the thresholds were not chosen"
    yield "from (5-fold cross-validation). F1, precision and recall are micro, over all labels together; macro is their mean."


def _each_label(found: Calibration, validation: Validation) -> Iterator[str]:
    """One row for each label; a longer list is in the file only."""
    labels, file = validation.labels, found.file
    rows = [["label", "threshold", "pictures", "F1", "precision", "recall"]]
    for c, name in enumerate(found.labels):
        figures = [f"{100 * values[c]:.1f}" for values in (labels.f1, labels.precision, labels.recall)]
        rows.append([printable(name), f"{file.thresholds[name]:.4f}", str(labels.positives[c]), *figures])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Names to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        yield "  ".join([first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))])


def _cells(quality: Quality) -> list[str]:
    return [_interval(figure) for mean in (quality.micro, quality.macro) for figure in (mean.f1, mean.precision, mean.recall)]


def _interval(figure: Interval) -> str:
    return f"{100 * figure.value:.1f} ({100 * figure.low:.1f}–{100 * figure.high:.1f})"


def _about_labels(found: Calibration, validation: Validation) -> Iterator[str]:
    positives = validation.labels.positives
    few = [found.labels[i] for i in validation.too_few if positives[i]]
    unknown = set(found.unknown)
    without = [label for label, count in zip(found.labels, positives, strict=True) if not count and label not in unknown]
    if few:
        yield f"Fewer than {FEWEST_POSITIVES} pictures show {_names(few)}: little is known about their thresholds."
    if without:
        yield f"No picture shows {_names(without)}: the threshold for all labels is taken."


def _names(labels: Sequence[str]) -> str:
    shown = ", ".join(map(printable, labels[:_SHOWN]))
    return shown if len(labels) <= _SHOWN else f"{shown} and {len(labels) - _SHOWN} more"
