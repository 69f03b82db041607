"""Data sets of pictures with several labels each, one file a data set, behind one protocol.

A reader takes the files that a data set's owners publish, as they publish them, and says at once what is missing and where it
was looked for (`DatasetError`). Opening one reads annotations only; pictures are read one by one.
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

    `labels` are the columns of every target, C of them. `label_sets` names the subsets that are trained on and tested:
    "all" always, and "seen" and "unseen" where the data set defines a zero-shot protocol.
    """

    labels: tuple[str, ...]
    label_sets: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        """Number of pictures."""

    def name(self, index: int) -> str:
        """What messages and records call a picture: its path, where it is a file."""

    def image(self, index: int) -> Image.Image:
        """The picture, upright RGB. Raises ImageError where it cannot be read."""

    def targets(self, index: int) -> NDArray[np.int8]:
        """[C]: POSITIVE, NEGATIVE, or UNKNOWN where nobody has looked."""
