"""A folder of pictures of which the labels are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

LABELS = ("cat", "cup of coffee", "night sky", "person", "rocket", "unicorn")


@pytest.fixture(scope="session")
def targets() -> NDArray[np.int8]:
    """Of the thirteen pictures of `data`: three kinds; the last label has no positive."""
    targets = np.random.default_rng(5).choice(np.array([1, -1, 0], np.int8), (13, len(LABELS)), p=[0.4, 0.4, 0.2])
    targets[:, -1] = np.minimum(targets[:, -1], 0)
    return targets


@pytest.fixture
def data(photos: list[Path], targets: NDArray[np.int8], tmp_path: Path) -> Path:
    """A folder of thirteen crops of the photos with labels.csv."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = [",".join(["path", *LABELS])]
    for i, row in enumerate(targets.tolist()):
        with Image.open(photos[i % len(photos)]) as photo:
            photo.crop((i, 2 * i, 150 + i, 130 + 3 * i)).save(folder / f"{i:02}.png")
        lines.append(",".join([f"{i:02}.png", *({1: "1", -1: "-1", 0: ""}[target] for target in row)]))
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder
