"""Pictures with labels of the user's choice, as data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sigrl_deploy.datasets.dataset import NEGATIVE, POSITIVE, UNKNOWN, Dataset
from sigrl_deploy.errors import printable
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.pictures.reading import read_image

_SHOWN = 8  # names


class PictureList:
    """Pictures by path, without known labels; see `Dataset`."""

    def __init__(self, paths: Sequence[str], labels: tuple[str, ...]) -> None:
        self._paths = paths
        self.labels = labels
        self.label_sets: Mapping[str, tuple[str, ...]] = {"all": labels}

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return self._paths[index]

    def image(self, index: int) -> Image.Image:
        return read_image(self._paths[index])

    def targets(self, index: int) -> NDArray[np.int8]:
        return np.full(len(self.labels), UNKNOWN, np.int8)


class Restricted:
    """A data set with labels of the user's choice. The truth about a label is what it says of its name or of a synonym.

    Labels of which it says nothing are unknown for every picture. A label set of the data set keeps those that it is about.
    """

    def __init__(self, known: Dataset, labels: LabelSet) -> None:
        self._known, self.labels = known, labels.names
        columns = truth_columns(labels, known.labels)
        self._columns = list(columns.values())
        self.label_sets: Mapping[str, tuple[str, ...]] = {
            name: tuple(label for label, own in columns.items() if not {known.labels[i] for i in own}.isdisjoint(members))
            for name, members in known.label_sets.items()
        }

    def __len__(self) -> int:
        return len(self._known)

    def name(self, index: int) -> str:
        return self._known.name(index)

    def image(self, index: int) -> Image.Image:
        return self._known.image(index)

    def targets(self, index: int) -> NDArray[np.int8]:
        theirs = self._known.targets(index)
        return np.array([_joined(theirs[columns]) for columns in self._columns], np.int8)


def _joined(targets: NDArray[np.int8]) -> int:
    """What several names of one thing say: one that is shown is enough."""
    if (targets == POSITIVE).any():
        return POSITIVE
    return NEGATIVE if (targets == NEGATIVE).any() else UNKNOWN


def truth_columns(labels: LabelSet, known: Sequence[str]) -> dict[str, list[int]]:
    """By label, in the order of the set, the columns of `known` that are about it: of its name and of its synonyms."""
    column = {label: i for i, label in enumerate(known)}
    texts = {label.name: (label.name, *label.synonyms) for label in labels.labels if label.emit}
    return {name: [column[text] for text in own if text in column] for name, own in texts.items()}


def names_without_truth(labels: Sequence[str], known: Sequence[str]) -> str:
    """Some of the labels, in words, with what the data set has in their place where only letters' case differs."""
    by_case = {label.casefold(): label for label in known}
    said = []
    for label in labels[:_SHOWN]:
        alike = by_case.get(label.casefold())
        said.append(printable(label) if alike is None else f"{printable(label)} (the truth has {alike!r})")
    return ", ".join(said) + (f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else "")
