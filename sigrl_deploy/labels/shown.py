"""How a label set was understood, as text for people."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from msgspec.structs import replace

from sigrl_deploy.errors import printable
from sigrl_deploy.labels.background import background_labels
from sigrl_deploy.labels.label_set import FEW_LABELS, Label, LabelSet, Match, ancestors, count_rows, count_texts, parents_of

_HEAD = ("label", "wordings", "parents", "threshold", "emitted")
_WIDTHS = (28, 36, 20, 9, 7)  # of columns, at most: with the spaces between them what fits a terminal of 110 columns
_MOST = 10  # names in a line of the summary, and warnings of one kind


def report(labels: LabelSet) -> str:
    """A table of the labels, what is scored in all, and warnings.

    Raises LabelError where the background is a file that cannot be read.
    """
    in_bundle = labels.background == "bundle"
    kept, left_out = background_labels(labels, () if in_bundle else None)
    whole = replace(labels, labels=(*labels.labels, *kept))
    lines = [*_table(labels), "", *_summary(labels, whole)]
    if labels.background is not None:
        where = (
            "the bundle's labels, which are not counted here"
            if in_bundle
            else f"{_counted(len(kept), 'label')} of {labels.background}"
        )
        left = f"; left out, because the set has them: {_some([label.name for label in left_out])}" if left_out else ""
        lines.append(printable(f"background: {where}{left}"))
    return "\n".join([*lines, *(printable(f"warning: {line}") for line in _warnings(labels, whole))])


def _table(labels: LabelSet) -> Iterator[str]:
    rows = [[[cell] for cell in _HEAD], *map(_row, labels.labels)]
    widths = [max(len(line) for row in rows for line in row[i]) for i in range(len(_HEAD))]
    for row in rows:
        for cells in zip_longest(*row, fillvalue=""):
            yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _row(label: Label) -> list[list[str]]:
    """The lines of each cell."""
    wordings = [" | ".join(label.synonyms), *(f"as: {template}" for template in label.templates)]
    wordings += ["match: any"] * (label.match is Match.ANY)
    threshold = "" if label.threshold is None else f"{label.threshold:g}"
    cells = [[label.name], wordings, [" | ".join(label.parents)], [threshold], ["yes" if label.emit else "no"]]
    return [
        [line for text in texts for line in textwrap.wrap(printable(text), width, break_on_hyphens=False)] or [""]
        for texts, width in zip(cells, _WIDTHS, strict=True)
    ]


def _summary(labels: LabelSet, whole: LabelSet) -> Iterator[str]:
    yield f"{_counted(len(labels.labels), 'label')}, {len(labels.names)} emitted"
    included = ", background included" if whole != labels else ""
    yield f"{_counted(count_rows(whole), 'row')} to score, {_counted(count_texts(whole), 'text')} to encode{included}"
    templates = "; ".join(labels.templates) or "the bundle's"
    yield printable(f"templates: {templates}")
    parents = parents_of(labels)
    above = dict.fromkeys(parent for name in labels.names for parent in ancestors(name, parents))
    for what, names in (
        ("parents that are labels too", [name for name in above if name in parents]),
        ("parents without a row of their own", [name for name in above if name not in parents]),
    ):
        if names:
            yield printable(f"{what}: {_some(names)}")


def _warnings(labels: LabelSet, whole: LabelSet) -> Iterator[str]:
    if len(labels.labels) < FEW_LABELS and labels.background is None:
        advice = "add labels, or the background 'common'"
        yield f"fewer than {FEW_LABELS} labels: where a system compares them, one scores high on any picture; {advice}"
    seen: dict[str, str] = {}
    doubles = []
    for label in whole.labels:
        own = {}
        for text in (label.name, *label.synonyms):
            key = _singular(text)
            if key in seen:
                doubles.append(
                    f"{text!r} and {seen[key]!r} differ by case or a plural s only, and are scored against each other"
                )
            own[key] = text
        seen |= own
    several = [text for label in labels.labels for text in (label.name, *label.synonyms) if "," in text or ";" in text]
    for text in several[:_MOST]:
        yield f"{text!r} is one label or synonym, with what stands between its commas or semicolons"
    yield from doubles[:_MOST]
    if len(doubles) > _MOST:
        yield f"{len(doubles) - _MOST} more pairs differ by case or a plural s only"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _singular(text: str) -> str:
    folded = text.casefold()
    return folded[:-1] if len(folded) > 3 and folded.endswith("s") and not folded.endswith("ss") else folded


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
