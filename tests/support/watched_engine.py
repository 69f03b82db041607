"""A real engine that can be watched, held and broken, and pictures that it can be told about."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from PIL import Image

from sigrl_deploy import Recognizer
from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.recognizer.pipeline import Pipeline
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

SECONDS = 60  # that a test waits for what must come


def picture(brightness: int) -> bytes:
    """A PNG of one grey, by which the engine knows it."""
    file = io.BytesIO()
    Image.new("RGB", (90, 80), (brightness,) * 3).save(file, "PNG")
    return file.getvalue()


class Watched:
    """Takes the place of a recognizer's engine, and hands on to it.

    Attributes:
        batches: the brightness of each picture of each batch that came, with its vocabulary.
        entered: is released by each batch.
        gate: batches wait until it is set.
        failures: what is raised for a batch that holds a brightness, or for any, under -1.
    """

    def __init__(self, recognizer: Recognizer) -> None:
        self._engine = recognizer.engine
        self._brightness = {self._mark(recognizer.pixels(Image.new("RGB", (9, 9), (i,) * 3))): i for i in range(256)}
        self.batches: list[tuple[list[int], Vocabulary]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.failures: dict[int, BaseException] = {}
        recognizer._opened = replace(recognizer._open, pipeline=Pipeline(recognizer.bundle.manifest, self))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def score_batches(self, batches: Iterable[Pixels], vocabulary: Vocabulary) -> Iterator[FloatArray]:
        for pixels in batches:
            seen = [self._brightness[self._mark(each)] for each in pixels]
            self.batches.append((seen, vocabulary))
            self.entered.release()
            assert self.gate.wait(SECONDS)
            for brightness in (-1, *seen):
                if brightness in self.failures:
                    raise self.failures[brightness]
            yield self._engine.score(pixels, vocabulary)

    @property
    def seen(self) -> list[int]:
        """Each picture that came, in order."""
        return [brightness for batch, _ in self.batches for brightness in batch]

    @staticmethod
    def _mark(pixels: Pixels) -> float:
        return float(pixels[0].mean().round(3))
