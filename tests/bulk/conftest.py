"""Pictures of which every tenth is broken, and the options that all runs share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from tests.support.bulk_runs import ENVIRONMENT, Wanted, cluster, expected

os.environ |= ENVIRONMENT  # before Ray is imported
pytest.importorskip("ray", reason="the extra ray is not installed")


@pytest.fixture(scope="package")
def one_ray_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Two clusters on two cores would take minutes to start, and the workers of both would be killed for want of an answer."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "ray.lock"):
        yield


@pytest.fixture(scope="package")
def address(one_ray_at_a_time: None) -> Iterator[str]:
    """That of a cluster of two CPUs, which all tests share."""
    # Ray's sockets have no room for pytest's long names.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder, cluster(Path(folder), cpus=2) as address:
        yield address


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


@pytest.fixture(scope="session")
def wanted(bundle: Path, labels: Path, tenth_broken: Path) -> Wanted:
    """What `infer` says of them, by file name."""
    return expected(tenth_broken, "--bundle", bundle, "--labels", labels, "--device", "cpu")


@pytest.fixture
def options(bundle: Path, labels: Path) -> list[str | Path]:
    return ["--bundle", bundle, "--labels", labels, "--device", "cpu"]
