"""A recognizer with an engine that can be held and broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from sigrl_deploy import Recognizer
from tests.support.watched_engine import Watched


@pytest.fixture
def recognizer(bundle: Path) -> Recognizer:
    return Recognizer(bundle, backend="onnxruntime", device="cpu", cache_dir=False, threads=1)


@pytest.fixture
def engine(recognizer: Recognizer) -> Watched:
    return Watched(recognizer)
