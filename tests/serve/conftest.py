"""One service for the tests of a run that change nothing in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from sigrl_deploy import Recognizer
from tests.support.servers import Served, serving

KITCHEN = ("cup of coffee", "frying pan", "cat", "rocket", "person", "night sky", "spoon", "table", "plate", "window", "lamp")


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "kitchen.toml"
    names = ", ".join(f'"{name}"' for name in KITCHEN[1:])
    path.write_text(f'labels = [{{name = "cup of coffee", synonyms = ["espresso"], parents = ["drink"]}}, {names}]\n')
    return path


@pytest.fixture(scope="session")
def served(export_tiny: Callable[..., Path], label_file: Path, kitchen: Path) -> Iterator[Served]:
    """Of the tiny model, with the package's labels as "everyday", the default, and the labels of `kitchen`."""
    with serving(export_tiny(), "--labels", f"everyday={label_file}", "--labels", f"kitchen={kitchen}") as server:
        yield server


@pytest.fixture(scope="session")
def recognizer(export_tiny: Callable[..., Path]) -> Recognizer:
    return Recognizer(export_tiny(), device="cpu", threads=1)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=120) as client:
        yield client
