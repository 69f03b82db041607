"""Background labels: scored beside the labels of a set, and never tags."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from sigrl_deploy.errors import LabelError
from sigrl_deploy.labels.label_set import Label, LabelSet, check_label_set, key_of
from sigrl_deploy.labels.reading import NAMED, read_label_set

COMMON = Path(__file__).resolve().parents[1] / "data" / "common-labels.txt"


def with_background(labels: LabelSet, bundled: Sequence[str] | None) -> LabelSet:
    """The set with its background as labels of its own: `emit` is False, they stand behind the others, `background` is None.

    Left out are those of which the name or a synonym is one of the set's already, or one of its parents, whatever the case of
    its letters.

    bundled: the labels that the bundle was exported with, for a background "bundle"; None where it has none.

    Raises LabelError for "bundle" without `bundled`, and for a file that cannot be read or that has a background itself.
    """
    if labels.background is None:
        return labels
    kept, _ = background_labels(labels, bundled)
    whole = msgspec.structs.replace(labels, labels=(*labels.labels, *kept), background=None)
    return check_label_set(whole, key_of(whole), _error_about(labels.background))


def background_labels(labels: LabelSet, bundled: Sequence[str] | None) -> tuple[tuple[Label, ...], tuple[Label, ...]]:
    """The labels that the set's background adds to it, and those that are left out because the set has them.

    Raises LabelError as `with_background` does.
    """
    own = {text for label in labels.labels for text in _folded(label)}
    # A parent is there where its child is, and so is nothing else to be compared with.
    own |= {parent.strip().casefold() for label in labels.labels for parent in label.parents}
    kept: list[Label] = []
    left_out: list[Label] = []
    for label in _read(labels.background, bundled):
        (left_out if own.intersection(_folded(label)) else kept).append(label)
    return tuple(kept), tuple(left_out)


def _folded(label: Label) -> Iterator[str]:
    return (text.strip().casefold() for text in (label.name, *label.synonyms))


def _read(background: str | None, bundled: Sequence[str] | None) -> Iterator[Label]:
    """Labels that are no tags. Parents and thresholds, which are about tags, are left behind."""
    if background is None:
        return
    if background == "bundle":
        if bundled is None:
            problem = "the bundle has no labels of its own; give 'common' or a label file, or export the bundle with `labels`"
            raise _error_about(background)(problem)
        yield from (Label(name, emit=False) for name in bundled)
        return
    try:
        found = read_label_set(COMMON if background == "common" else background, argument="background")
    except LabelError as error:
        if os.path.exists(background):
            raise
        raise _error_about(background)(f"{error.problem}, or one of {', '.join(NAMED)}") from None
    if found.background is not None:
        raise _error_about(background)(f"has a background itself, {found.background!r}; remove it from that file")
    for label in found.labels:
        templates = label.templates or found.templates
        yield Label(label.name, label.synonyms, templates, emit=False, match=label.match)


def _error_about(background: str) -> Callable[[str], LabelError]:
    def error(problem: str) -> LabelError:
        return LabelError(problem, argument="background", value=background)

    return error
