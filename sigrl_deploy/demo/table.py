"""The demo's results on standard output."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from sigrl_deploy.datasets.scenes import LABELS
from sigrl_deploy.demo.marked import MARK, Marked, summary

_LABEL_WIDTH = max(map(len, LABELS)) + len(MARK)
_WIDTH = 84  # of what is beside the names


def table(pictures: Sequence[Marked]) -> str:
    """Each picture with its tags, right or wrong, and what was drawn but is not among them."""
    width = max([len("picture"), *(len(picture.name) for picture in pictures)])
    lines = [f"{'picture':<{width}}  {'tag':<{_LABEL_WIDTH}}  score"]
    for picture in pictures:
        name = picture.name
        for line in _rows(picture):
            lines.append(f"{name:<{width}}  {line}")
            name = ""
    return "\n".join([*lines, "", f"{MARK} in no training picture", summary(pictures)])


def _rows(picture: Marked) -> Iterator[str]:
    if picture.record.error is not None:
        yield f"error: {picture.record.error}"
        return
    for tag in picture.tags:
        label = _named(tag.prediction.label, tag.unseen)
        yield f"{label:<{_LABEL_WIDTH}}  {tag.prediction.score:5.2f}  {'right' if tag.right else 'wrong'}"
    missed = [_named(label.label, label.unseen) for label in picture.drawn if not label.found]
    if missed:
        yield from textwrap.wrap(f"missed: {', '.join(missed)}", _WIDTH, subsequent_indent=" " * len("missed: "))


def _named(label: str, unseen: bool) -> str:
    return label + MARK * unseen
