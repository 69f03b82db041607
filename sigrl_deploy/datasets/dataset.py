"""The interface of a data set of pictures with several labels each. Each data set has a module of its own in this package.

A reader takes the files as the owners of a data set publish them, and raises DatasetError at once where some are missing.
Opening a data set reads annotations only; pictures are read one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

POSITIVE, NEGATIVE, UNKNOWN = 1, -1, 0
SPLITS = ("train", "val", "test")


class Dataset(Protocol):
    """One split of a data set.

    `labels` are the C columns of the targets. `label_sets` names the subsets to train on and to test: always "all", and "seen"
    and "unseen" where the data set defines a zero-shot protocol.
    """

    labels: tuple[str, ...]
    label_sets: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        """Number of pictures."""

    def name(self, index: int) -> str:
        """The name of a picture in messages and records; its path where it is a file."""

    def image(self, index: int) -> Image.Image:
        """The picture as upright RGB. Raises ImageError where it cannot be read."""

    def targets(self, index: int) -> NDArray[np.int8]:
        """[C] int8: POSITIVE, NEGATIVE, or UNKNOWN where the label has not been annotated."""
