"""The tags of a generated picture, marked right and wrong by what was drawn in it."""

from __future__ import annotations

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
    def right(self) -> int:
        """How many tags are right."""
        return sum(tag.right for tag in self.tags)


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
    """One line: how many tags are right."""
    tags = [tag for picture in pictures for tag in picture.tags]
    right = [tag for tag in tags if tag.right]
    unseen = sum(tag.unseen for tag in right)
    return f"{len(right)} of {len(tags)} tags are right; {unseen} of these are in no training picture"
