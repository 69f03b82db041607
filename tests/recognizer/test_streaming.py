"""Runs over many pictures: how far they read ahead, and what they refuse."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sigrl_deploy import Recognizer
from tests.support.refusals import refused


@pytest.fixture(scope="module")
def recognizer(bundle: Path) -> Recognizer:
    return Recognizer(bundle, device="cpu")


def test_a_stream_reads_no_further_than_it_must(recognizer: Recognizer, photos: list[Path]) -> None:
    taken: list[Path] = []

    def endless() -> Iterator[Path]:
        for path in itertools.cycle(photos):
            taken.append(path)
            yield path

    records = recognizer.stream(endless(), ["cat", "cup"], batch_size=2)
    ahead = max(4, min(8, recognizer.threads))
    next(records)
    assert ahead <= len(taken) < ahead + 2
    for _ in range(4):
        next(records)
    assert len(taken) < ahead + 6
    records.close()  # type: ignore[attr-defined]


def test_a_stream_refuses_at_once_what_it_cannot_do(recognizer: Recognizer, photos: list[Path]) -> None:
    labels = ["cat", "cup"]
    for argument, call in {
        "top": lambda: recognizer.stream(photos, labels, top=0),
        "threshold": lambda: recognizer.stream(photos, labels, threshold=float("nan")),
        "batch_size": lambda: recognizer.stream(photos, labels, batch_size=0),
        "labels": lambda: recognizer.stream(photos, ["cat", ""]),
    }.items():
        assert refused(call)[0] == argument


def test_memory_that_does_not_hold_a_batch_is_one_error_that_names_it(
    recognizer: Recognizer, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.broadcast_to(np.float32(0), (1, 3, 2**22, 2**22))  # takes no memory, and a batch all there is
    view = replace(recognizer.view(photos[0]), pixels=pixels)
    monkeypatch.setattr(recognizer, "view", lambda path: view)
    for use in (recognizer.stream, recognizer.recognize):
        assert refused(lambda use=use: list(use(photos, ["cat", "dog"], batch_size=4))) == ("batch_size", 4)
