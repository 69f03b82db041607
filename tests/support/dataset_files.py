"""Tiny data sets in the owners' formats, for the tests that read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from sigrl_deploy.datasets.dataset import Dataset
from sigrl_deploy.errors import UsageError


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def picture(path: Path, red: int = 200) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (red, 0, 0)).save(path)


def targets(dataset: Dataset) -> dict[str, list[int]]:
    """File name of every picture, in order → its targets."""
    return {Path(dataset.name(i)).name: dataset.targets(i).tolist() for i in range(len(dataset))}


def refused(error: type[UsageError], call: Callable[[], object]) -> UsageError:
    """The error that the call raises, with a message of one line."""
    with pytest.raises(error) as raised:
        call()
    assert "\n" not in str(raised.value)
    return raised.value


def refusal(error: type[UsageError], call: Callable[[], object]) -> str:
    """The message of the error that the call raises."""
    return str(refused(error, call))
