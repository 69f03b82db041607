"""What is slow to make, made once for all processes of a test run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


class Shared:
    """Folders by name, which whichever process comes first fills, and no test may change."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        own = factory.getbasetemp()
        # Each process of `pytest -n` has its own folder in that of the run.
        self._root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
        self._root.mkdir(exist_ok=True)

    def folder(self, name: str, fill: Callable[[Path], None]) -> Path:
        """The folder that `fill` was given once, there and filled."""
        place = self._root / name
        with FileLock(self._root / f"{name}.lock"):
            if not place.exists():
                unfinished = self._root / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                fill(unfinished)
                unfinished.rename(place)
        return place
