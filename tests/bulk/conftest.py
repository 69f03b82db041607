"""Pictures of which every tenth is broken, and the options that all runs share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

pytest.importorskip("ray", reason="the extra ray is not installed")


@pytest.fixture(scope="module", autouse=True)
def _one_ray_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two clusters on two cores would take minutes to start, and the workers of both would be killed for want of an answer."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):
        yield


@pytest.fixture(scope="session")
def tenth_broken(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures in two folders; one in ten is empty, cut short or no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    with Image.open(photos[0]) as photo:
        for i in range(40):
            place = folder / ("left" if i % 2 else "right")
            place.mkdir(exist_ok=True)
            photo.crop((i, i, 160 + i, 140 + i)).save(place / f"{i:02}.jpg")
    (folder / "right" / "10.jpg").write_bytes(b"")
    (folder / "right" / "20.jpg").write_bytes(b"no picture")
    (folder / "left" / "25.jpg").write_bytes((folder / "left" / "25.jpg").read_bytes()[:900])
    (folder / "right" / "30.jpg").write_bytes(b"\xff\xd8\xff")
    return folder


@pytest.fixture
def options(bundle: Path, labels: Path) -> list[str | Path]:
    return ["--bundle", bundle, "--labels", labels, "--device", "cpu"]
