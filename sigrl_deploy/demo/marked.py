"""The tags of a generated picture, marked right and wrong by what was drawn in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from sigrl_deploy.datasets.drawing import Thing
from sigrl_deploy.datasets.scenes import UNSEEN, labels_of
from sigrl_deploy.recognizer.predictions import Prediction, Record

MARK = "*"  # behind a combination that is in no training picture


@dataclass(frozen=True)
class Tag:
    """A prediction, and whether it is right; `unseen` if its combination is in no training picture."""

    prediction: Prediction
    right: bool
    unseen: bool


@dataclass(frozen=True)
class Drawn:
    """A label of something that was drawn, and whether it is among the tags; `unseen` as in `Tag`."""

    label: str
    found: bool
    unseen: bool


@dataclass(frozen=True)
class Marked:
    """A picture: its record, its tags, best first, and the labels of what was drawn, each once."""

    record: Record
    tags: tuple[Tag, ...]
    drawn: tuple[Drawn, ...]

    @property
    def name(self) -> str:
        """The file's name."""
        return os.path.basename(self.record.path)


def mark(record: Record, things: Sequence[Thing]) -> Marked:
    """The record of a picture with these things."""
    drawn = dict.fromkeys(label for thing in things for label in labels_of(thing))
    found = {prediction.label for prediction in record.predictions}
    return Marked(
        record,
        tuple(Tag(each, each.label in drawn, each.label in UNSEEN) for each in record.predictions),
        tuple(Drawn(label, label in found, label in UNSEEN) for label in drawn),
    )


def summary(pictures: Sequence[Marked]) -> str:
    """How many tags are right, and how many combinations were found that are in no training picture."""
    tags = [tag for picture in pictures for tag in picture.tags]
    unseen = [label for picture in pictures for label in picture.drawn if label.unseen]
    right, found = sum(tag.right for tag in tags), sum(label.found for label in unseen)
    return (
        f"{right} of {len(tags)} tags are right; of {len(unseen)} drawn labels that no training picture has, {found} were found"
    )
