"""Pictures with labels of the user's choice, as data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sigrl_deploy.datasets.dataset import UNKNOWN, Dataset
from sigrl_deploy.pictures.reading import read_image


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
    """A data set with labels of the user's choice: those that it does not know are unknown for every picture."""

    def __init__(self, known: Dataset, labels: tuple[str, ...]) -> None:
        self._known, self.labels = known, labels
        self.label_sets: Mapping[str, tuple[str, ...]] = {"all": labels}
        column = {label: i for i, label in enumerate(known.labels)}
        self._columns = [(i, column[label]) for i, label in enumerate(labels) if label in column]

    def __len__(self) -> int:
        return len(self._known)

    def name(self, index: int) -> str:
        return self._known.name(index)

    def image(self, index: int) -> Image.Image:
        return self._known.image(index)

    def targets(self, index: int) -> NDArray[np.int8]:
        found, theirs = np.full(len(self.labels), UNKNOWN, np.int8), self._known.targets(index)
        for own, other in self._columns:
            found[own] = theirs[other]
        return found
