"""A running service for tests that change nothing in it, and a recognizer with an engine that can be held and broken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sigrl_deploy import Recognizer
from tests.support.servers import Served, serving
from tests.support.watched_engine import Watched

KITCHEN = ("cup of coffee", "frying pan", "cat", "rocket", "person", "night sky", "spoon", "table", "plate", "window", "lamp")


@pytest.fixture(scope="session")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "kitchen.toml"
    names = ", ".join(f'"{name}"' for name in KITCHEN[1:])
    path.write_text(f'labels = [{{name = "cup of coffee", synonyms = ["espresso"], parents = ["drink"]}}, {names}]\n')
    return path


@pytest.fixture(scope="session")
def served(bundle: Path, label_file: Path, kitchen: Path) -> Iterator[Served]:
    """Of the tiny model, with the package's labels as "everyday", the default, and the labels of `kitchen`."""
    with serving(bundle, "--labels", f"everyday={label_file}", "--labels", f"kitchen={kitchen}") as server:
        yield server


@pytest.fixture(scope="session")
def reference(bundle: Path) -> Recognizer:
    """What the service's answers are compared with."""
    return Recognizer(bundle, device="cpu", threads=1)


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=120) as client:
        yield client


@pytest.fixture
def recognizer(bundle: Path) -> Recognizer:
    return Recognizer(bundle, backend="onnxruntime", device="cpu", cache_dir=False, threads=1)


@pytest.fixture
def engine(recognizer: Recognizer) -> Watched:
    return Watched(recognizer)
