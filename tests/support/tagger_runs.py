"""A tagger of two vocabularies that was started, and ways to hold its pictures where a test wants them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import numpy as np

from sigrl_deploy import Recognizer
from sigrl_deploy.recognizer.pipeline import Pipeline
from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.serve.jobs import Answer
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Metrics
from sigrl_deploy.serve.tagger import Plan, Tagger
from tests.support.watched_engine import SECONDS, Watched, picture

A, B = ("cat", "dog", "rocket"), ("cup", "tree", "house", "boat")
TOLERANCE = 1e-5  # fp32 scores within ±1, of one graph run in batches of another size


class Service:
    """A tagger that was started, and what it says."""

    def __init__(self, recognizer: Recognizer, plan: Plan, alone: Pipeline | None = None, **limits: float) -> None:
        self.deaths: list[BaseException] = []
        self.metrics = Metrics()
        self.vocabularies = {labels: recognizer.vocabulary(labels) for labels in (A, B)}
        self.recognizer = recognizer
        given = {"answer_seconds": SECONDS, **limits}
        bounds = Limits(**given)  # type: ignore[arg-type]
        self.tagger = Tagger(recognizer, bounds, self.metrics, self.deaths.append, plan, alone)
        self.tagger.start()

    def tag(self, file: bytes, labels: tuple[str, ...] = A, evidence: bool = False) -> Coroutine[None, None, Answer]:
        vocabulary = self.vocabularies[labels]
        return self.tagger.tag(file, vocabulary, self.recognizer.selection(vocabulary, evidence=evidence))

    def expected(self, file: bytes, labels: tuple[str, ...] = A) -> list[Prediction]:
        return self.recognizer.recognize([file], labels)[0]


async def several(*calls: Coroutine[None, None, Answer]) -> list[asyncio.Task[Answer]]:
    """Tasks whose pictures wait in the order of the calls."""
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)  # lets each run up to where it waits
    return tasks


async def entered(engine: Watched) -> None:
    assert await asyncio.to_thread(engine.entered.acquire, timeout=SECONDS)


async def held(engine: Watched, service: Service, brightness: int = 1) -> asyncio.Task[Answer]:
    """A picture that is at the engine, which waits."""
    engine.gate.clear()
    (task,) = await several(service.tag(picture(brightness)))
    await entered(engine)
    return task


def assert_same(answer: Answer, expected: list[Prediction]) -> None:
    assert [each.label for each in answer.predictions] == [each.label for each in expected]
    np.testing.assert_allclose(
        [each.score for each in answer.predictions], [each.score for each in expected], rtol=0, atol=TOLERANCE
    )
