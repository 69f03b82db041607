"""What a tagger gives to which of its threads, on a CPU and on a GPU."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from sigrl_deploy import Recognizer
from sigrl_deploy.serve.errors import StoppedError
from sigrl_deploy.serve.tagger import Plan
from tests.support.tagger_runs import Service, assert_same, held, several
from tests.support.watched_engine import SECONDS, Watched, picture

pytestmark = pytest.mark.usefixtures("no_threads_left")


@pytest.mark.parametrize(("seconds", "sizes"), [(1e9, [1, 4, 4, 2]), (0.0, [1] * 11)], ids=["quick", "slow"])
def test_a_cpu_has_small_batches_of_pictures_that_take_little_time(
    recognizer: Recognizer, engine: Watched, monkeypatch: pytest.MonkeyPatch, seconds: float, sizes: list[int]
) -> None:
    """How long the engine may be busy with one batch stands for how long a picture takes."""
    monkeypatch.setattr("sigrl_deploy.serve.tagger._SMALL_SECONDS", seconds)

    async def run() -> None:
        service = Service(recognizer, Plan(1, batch=4))
        first = await held(engine, service)
        tasks = await several(*(service.tag(picture(10 + i)) for i in range(10)))
        engine.gate.set()
        await asyncio.gather(first, *tasks)
        assert [len(batch) for batch, _ in engine.batches] == sizes
        assert await service.tagger.drain(SECONDS)

    asyncio.run(run())


def test_no_thread_of_a_cpu_takes_what_another_could_begin(
    recognizer: Recognizer, engine: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sigrl_deploy.serve.tagger._SMALL_SECONDS", 1e9)

    async def run() -> None:
        service = Service(recognizer, Plan(2, batch=4))
        first = [await held(engine, service, brightness) for brightness in (1, 2)]
        tasks = await several(*(service.tag(picture(10 + i)) for i in range(4)))
        engine.gate.set()
        await asyncio.gather(*first, *tasks)
        assert sorted(engine.seen) == [1, 2, 10, 11, 12, 13]
        assert max(len(batch) for batch, _ in engine.batches) == 2
        assert await service.tagger.drain(SECONDS)

    asyncio.run(run())


def test_a_picture_that_is_alone_has_all_cores(recognizer: Recognizer, engine: Watched, bundle: Path) -> None:
    whole = Watched(other := Recognizer(bundle, backend="onnxruntime", device="cpu", cache_dir=False, threads=2))

    async def run() -> None:
        service = Service(recognizer, Plan(2), alone=other.pipeline)
        alone = await held(whole, service, 1)
        beside = await service.tag(picture(2))
        whole.gate.set()
        await alone
        while service.tagger._began:  # a thread answers before it is free
            await asyncio.sleep(0)
        last = await service.tag(picture(3))
        for brightness, answer in enumerate((await alone, beside, last), start=1):
            assert_same(answer, service.expected(picture(brightness)))
        assert (whole.seen, engine.seen[0]) == ([1, 3], 2)
        whole.failures = {-1: RuntimeError("out of order")}
        with pytest.raises(StoppedError):
            await service.tag(picture(4))
        while not service.deaths:  # what ran before is tried again first
            await asyncio.sleep(0)
        assert not service.tagger.ready

    asyncio.run(run())


def test_a_gpu_has_one_thread_that_scores_and_batches(recognizer: Recognizer, engine: Watched) -> None:
    """Its threads decode; a CPU's do both."""
    assert not Plan.of(recognizer, 6).scorer
    assert Plan.of(recognizer, 6).threads == 6
    engine.device = "cuda"
    assert Plan.of(recognizer, 6).scorer
    assert Plan.of(recognizer, 6).batch > Plan.of(Recognizer(recognizer.bundle.path, device="cpu"), 6).batch
