"""A data set of picture files whose targets fit in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sigrl_deploy.errors import DatasetError
from sigrl_deploy.pictures.reading import read_image


class PictureFiles:
    """Pictures at `paths` below `folder`, with targets [N, C] int8. A missing picture is an error only when it is read.

    `label_sets` is {"all": labels} by default. Raises DatasetError where there are no pictures.
    """

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        targets: NDArray[np.int8],
        labels: tuple[str, ...],
        label_sets: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        if not paths:
            raise DatasetError(f"{folder}: this split has no pictures; check its annotation files")
        self.labels = labels
        self.label_sets = label_sets or {"all": labels}
        self._folder = folder
        self._paths = paths
        self._targets = targets

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        return str(self._folder / self._paths[index])

    def image(self, index: int) -> Image.Image:
        return read_image(self.name(index))

    def targets(self, index: int) -> NDArray[np.int8]:
        return self._targets[index].copy()
