"""A running service for tests that change nothing in it, and a recognizer with an engine that can be held and broken."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import httpx
import pytest

from sigrl_deploy import Recognizer
from sigrl_deploy.calibration.probabilities import Isotonic
from sigrl_deploy.recognizer.thresholds import ThresholdFile
from tests.support.browser import chromium, missing, opened
from tests.support.servers import Served, serving
from tests.support.watched_engine import SECONDS, Watched

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

KITCHEN = ("cup of coffee", "frying pan", "cat", "rocket", "person", "night sky", "spoon", "table", "plate", "window", "lamp")


Open = Callable[..., AbstractContextManager["Page"]]


class Guarded(NamedTuple):
    """A service that wants a key, and the tags that its thresholds leave."""

    url: str
    key: str
    tags: list[str]


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if reason := missing():
        pytest.skip(reason)
    with chromium() as started:
        yield started


@pytest.fixture
def open_page(browser: Browser, served: Served) -> Open:
    return partial(opened, browser, served.url)


@pytest.fixture(scope="session")
def guarded(
    bundle: Path,
    labels: Path,
    reference: Recognizer,
    photos: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Guarded]:
    """A service of ten labels that wants a key, and whose thresholds leave three of the first photograph's tags."""
    folder = tmp_path_factory.mktemp("guarded")
    vocabulary = reference.vocabulary(labels)
    (best,) = reference.recognize(photos[:1], vocabulary, top=4)
    between = (best[2].score + best[3].score) / 2
    curve = Isotonic((-1.0, 1.0), (0.0, 1.0))
    file = ThresholdFile(reference.scope(vocabulary), "f1", between, {best[3].label: between}, probabilities=curve)
    file.write(folder / "thresholds.json")
    (folder / "key").write_text("open-sesame\n")
    options = (
        "--labels",
        f"things={labels}",
        "--thresholds",
        f"things={folder / 'thresholds.json'}",
        "--api-key-file",
        folder / "key",
    )
    with serving(bundle, *options) as started:
        yield Guarded(started.url, "open-sesame", [tag.label for tag in best[:3]])


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    yield
    left = [thread for thread in threading.enumerate() if thread.name.startswith("tagger-")]
    for thread in left:
        thread.join(SECONDS)
    assert not any(thread.is_alive() for thread in left)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.jpg"
    path.write_bytes(b"no picture")
    return path
