"""The tagger with a real model: right answers for all, whatever else is asked, broken or given up at the same time."""

from __future__ import annotations

import asyncio
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from sigrl_deploy import Recognizer
from sigrl_deploy.errors import ImageError, ScoreError, SigRLError
from sigrl_deploy.serve.errors import EngineError, OverloadedError, StoppedError, TooLateError
from sigrl_deploy.serve.jobs import Answer
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Metrics
from sigrl_deploy.serve.tagger import Plan, Tagger
from sigrl_deploy.tagging.drawing import MAX_PANEL, MIN_PANEL, scaled
from tests.support.changed_bundles import change_graph, nan_for_dark_pictures
from tests.support.refusals import refused
from tests.support.tagger_runs import A, B, Service, assert_same, entered, held, several
from tests.support.watched_engine import SECONDS, Watched, picture

pytestmark = pytest.mark.usefixtures("no_threads_left")

ALONE = Plan(2)
BATCHES = Plan(2, batch=4, scorer=True)

plans = pytest.mark.parametrize("plan", [ALONE, BATCHES], ids=["alone", "batches"])


@plans
def test_answers_are_those_of_recognize(recognizer: Recognizer, plan: Plan, photos: list[Path]) -> None:
    async def run() -> None:
        service = Service(recognizer, plan)
        files = [path.read_bytes() for path in photos] * 3
        asked = [(file, (A, B)[i % 2]) for i, file in enumerate(files)]
        answers = await asyncio.gather(*(service.tag(*each) for each in asked))
        for answer, each in zip(answers, asked, strict=True):
            assert_same(answer, service.expected(*each))
        (shown,) = await asyncio.gather(service.tag(files[0], B, evidence=True))
        with Image.open(photos[0]) as photo:
            whole = photo.convert("RGB")
        (record,) = recognizer.stream([photos[0]], B, evidence=True)
        assert (shown.size, shown.seen) == (whole.size, record.seen)
        drawn, box = scaled(whole, shown.seen, MIN_PANEL, MAX_PANEL)
        assert shown.picture is not None
        assert (shown.picture.tobytes(), shown.box) == (drawn.tobytes(), box)
        np.testing.assert_array_equal(shown.predictions[0].strength, record.predictions[0].strength)
        assert answers[0].picture is None
        assert await service.tagger.drain(SECONDS)
        assert service.deaths == []

    asyncio.run(run())


def test_only_one_vocabulary_shares_a_batch_and_the_oldest_goes_first(recognizer: Recognizer, engine: Watched) -> None:
    """B comes between ten pictures of A, and is not kept waiting by those that came after it."""

    async def run() -> None:
        service = Service(recognizer, Plan(1, batch=4, scorer=True))
        first = await held(engine, service)
        calls = [service.tag(picture(10 + i)) for i in range(4)] + [service.tag(picture(50), B)]
        calls += [service.tag(picture(20 + i)) for i in range(6)]
        tasks = await several(*calls)
        while len(service.tagger._decoded) < 8:  # as many as are decoded ahead
            await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(first, *tasks)
        sizes = [len(batch) for batch, _ in engine.batches]
        assert [batch for batch, _ in engine.batches][:3] == [[1], [10, 11, 12, 13], [50]]
        assert sum(sizes) == 12
        assert max(sizes) == 4
        assert [of.labels for _, of in engine.batches] == [A, A, B] + [A] * (len(sizes) - 3)
        assert engine.seen[6:] == [20 + i for i in range(6)]
        assert await service.tagger.drain(SECONDS)

    asyncio.run(run())


def test_a_batch_waits_for_more_no_longer_than_it_may(recognizer: Recognizer, engine: Watched) -> None:
    """With patience without end the batch is filled; and what cannot be filled goes when nothing more comes in."""

    async def run() -> None:
        service = Service(recognizer, Plan(1, batch=3, patience=1e6, scorer=True))
        await asyncio.gather(*(service.tag(picture(i)) for i in (10, 20, 30)))
        (last,) = await several(service.tag(picture(40)))
        assert await service.tagger.drain(SECONDS)
        assert last.done()
        assert [sorted(batch) for batch, _ in engine.batches] == [[10, 20, 30], [40]]

    asyncio.run(run())


def test_a_poisoned_batch_costs_one_picture(recognizer: Recognizer, engine: Watched) -> None:
    async def run() -> None:
        engine.failures[13] = RuntimeError("mark\nof poison")
        service = Service(recognizer, BATCHES)
        first = await held(engine, service)
        asked = [11, 12, 13, 14]
        tasks = await several(*(service.tag(picture(i)) for i in asked))
        while len(service.tagger._decoded) < 4:
            await asyncio.sleep(0)
        engine.gate.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        failed = results.pop(3)
        assert isinstance(failed, EngineError)
        assert "mark" in str(failed)
        assert "\n" not in str(failed)
        assert len(engine.batches[1][0]) == 4  # they were one batch
        for i, answer in zip((1, 11, 12, 14), results, strict=True):
            assert isinstance(answer, Answer)
            assert_same(answer, service.expected(picture(i)))
        assert service.tagger.ready
        assert service.deaths == []
        assert await service.tagger.drain(SECONDS)

    asyncio.run(run())


@plans
def test_what_is_no_picture_costs_itself(recognizer: Recognizer, plan: Plan) -> None:
    async def run() -> None:
        service = Service(recognizer, plan)
        files = [picture(100), b"GIF89a", b"", picture(150)]
        calls = [service.tag(file, evidence=evidence) for file in files for evidence in (False, True)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results[2:6]:
            assert isinstance(result, ImageError)
            assert str(result).startswith("picture: ")
            assert str(result).count(":") == 1
        assert all(isinstance(result, Answer) for result in results[:2] + results[6:])
        assert await service.tagger.drain(SECONDS)

    asyncio.run(run())


def test_scores_that_are_not_finite_cost_one_picture(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    change_graph(tmp_path / "bundle", "visual.onnx", nan_for_dark_pictures)

    async def run() -> None:
        service = Service(Recognizer(tmp_path / "bundle", backend="onnxruntime", device="cpu", cache_dir=False), BATCHES)
        files = [picture(250), picture(0), picture(240)]
        results = await asyncio.gather(*(service.tag(file) for file in files), return_exceptions=True)
        assert isinstance(results[1], ScoreError)
        assert all(isinstance(results[i], Answer) for i in (0, 2))
        assert service.deaths == []
        assert await service.tagger.drain(SECONDS)

    asyncio.run(run())


@plans
def test_a_thread_that_dies_is_told_to_everybody(recognizer: Recognizer, engine: Watched, plan: Plan) -> None:
    async def run() -> None:
        engine.failures[1] = SystemExit("killed")
        service = Service(recognizer, replace(plan, threads=1))
        first = await held(engine, service)
        tasks = await several(*(service.tag(picture(i)) for i in range(10, 20)))
        engine.gate.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert [type(result) for result in results] == [StoppedError] * 11
        assert not service.tagger.ready
        assert await service.tagger.drain(SECONDS)
        assert [str(death) for death in service.deaths] == ["killed"]
        assert engine.seen == [1]
        with pytest.raises(StoppedError):
            await service.tag(picture(5))

    asyncio.run(run())


@plans
def test_an_engine_that_fails_at_everything_is_dead(recognizer: Recognizer, engine: Watched, plan: Plan) -> None:
    async def run() -> None:
        service = Service(recognizer, plan)
        await service.tag(picture(1))
        engine.failures[-1] = RuntimeError("device lost")
        with pytest.raises(SigRLError):
            await service.tag(picture(2))
        assert await service.tagger.drain(SECONDS)
        assert not service.tagger.ready
        assert ["device lost" in str(death) for death in service.deaths] == [True]

    asyncio.run(run())


@plans
def test_an_engine_that_hangs_is_dead(recognizer: Recognizer, engine: Watched, plan: Plan) -> None:
    """Those who waited are told so, and nobody waits for its thread."""

    async def run() -> None:
        service = Service(recognizer, plan, answer_seconds=0.05)
        engine.gate.clear()
        while service.tagger.ready:
            with pytest.raises(TooLateError):
                await service.tag(picture(1))
        while not service.deaths:
            with pytest.raises((TooLateError, StoppedError)):
                await service.tag(picture(2))
            await asyncio.sleep(0.01)
        assert "more than 0.1 s" in str(service.deaths[0])
        assert not await service.tagger.drain(SECONDS)
        engine.gate.set()

    asyncio.run(run())


@plans
def test_pictures_whose_callers_left_are_not_scored(recognizer: Recognizer, engine: Watched, plan: Plan) -> None:
    async def run() -> None:
        service = Service(recognizer, replace(plan, threads=1))
        first = await held(engine, service)
        tasks = await several(*(service.tag(picture(i)) for i in (11, 12, 13)))
        assert tasks[1].cancel()
        assert first.cancel()  # this one has begun
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        engine.gate.set()
        await asyncio.gather(tasks[0], tasks[2])
        assert await service.tagger.drain(SECONDS)
        assert engine.seen == [1, 11, 13]
        assert service.tagger._bytes == 0

    asyncio.run(run())


@plans
def test_a_picture_that_waits_too_long_is_never_scored(recognizer: Recognizer, engine: Watched, plan: Plan) -> None:
    async def run() -> None:
        service = Service(recognizer, replace(plan, threads=1), answer_seconds=0.05)
        engine.gate.clear()
        (first,) = await several(service.tag(picture(1)))
        await entered(engine)
        (late,) = await several(service.tag(picture(2)))
        results = await asyncio.gather(first, late, return_exceptions=True)
        assert [type(result) for result in results] == [TooLateError] * 2
        engine.gate.set()
        assert await service.tagger.drain(SECONDS)
        assert engine.seen == [1]

    asyncio.run(run())


@plans
def test_what_is_too_much_is_refused_at_once(recognizer: Recognizer, engine: Watched, plan: Plan) -> None:
    async def run() -> None:
        size = len(picture(1))
        service = Service(recognizer, replace(plan, threads=1), queue=3, bytes_in_flight=5 * size)
        first = await held(engine, service)
        tasks = await several(*(service.tag(picture(i)) for i in (11, 12, 13)))
        while len(service.tagger._decoded) < (3 if plan.batch > 1 else 0):
            await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="3 pictures wait") as full:
            await service.tag(picture(14))
        assert 1 <= full.value.retry_after <= SECONDS
        tasks.pop().cancel()
        await asyncio.sleep(0)  # there is room for one more now, but not for one that large
        with pytest.raises(OverloadedError, match="memory"):
            await service.tag(picture(15) + bytes(2 * size))
        (last,) = await several(service.tag(picture(16)))
        engine.gate.set()
        await asyncio.gather(first, last, *tasks)
        assert sorted(engine.seen) == [1, 11, 12, 16]
        assert await service.tagger.drain(SECONDS)

    asyncio.run(run())


@plans
def test_a_drained_tagger_has_answered_what_waited(recognizer: Recognizer, engine: Watched, plan: Plan) -> None:
    async def run() -> None:
        service = Service(recognizer, plan)
        assert service.tagger.ready
        first = await held(engine, service)
        tasks = await several(*(service.tag(picture(i)) for i in range(10, 25)))
        draining = asyncio.create_task(service.tagger.drain(SECONDS))
        await asyncio.sleep(0)
        assert not service.tagger.ready
        with pytest.raises(StoppedError):
            await service.tag(picture(2))
        engine.gate.set()
        assert await draining
        for i, task in zip((1, *range(10, 25)), (first, *tasks), strict=True):
            assert_same(await task, service.expected(picture(i)))
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("tagger-")]
        assert service.deaths == []
        assert await service.tagger.drain(SECONDS)  # again

    asyncio.run(run())


@plans
def test_a_drain_that_takes_too_long_gives_up_what_waits(recognizer: Recognizer, engine: Watched, plan: Plan) -> None:
    async def run() -> None:
        service = Service(recognizer, replace(plan, threads=1))
        first = await held(engine, service)
        tasks = await several(*(service.tag(picture(i)) for i in range(10, 25)))
        assert not await service.tagger.drain(0.01)
        engine.gate.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [StoppedError] * 15
        assert_same(await first, service.expected(picture(1)))
        assert engine.seen[0] == 1
        assert service.deaths == []

    asyncio.run(run())


def test_a_tagger_that_was_not_started_says_so(recognizer: Recognizer) -> None:
    vocabulary = recognizer.vocabulary(A)
    tagger = Tagger(recognizer, Limits(), Metrics(), print, ALONE)
    assert not tagger.ready
    with pytest.raises(StoppedError):
        asyncio.run(tagger.tag(picture(1), vocabulary, recognizer.selection(vocabulary)))


def test_what_happens_is_counted(recognizer: Recognizer, engine: Watched) -> None:
    async def run() -> Metrics:
        service = Service(recognizer, BATCHES)
        await asyncio.gather(*(service.tag(picture(i)) for i in range(7)))
        assert await service.tagger.drain(SECONDS)
        return service.metrics

    metrics = asyncio.run(run())
    metrics.request("POST", "/v1/tag", 200, 0.3)
    metrics.error("picture")
    families = text_string_to_metric_families(metrics.text(5, 1234).decode())
    found = {(sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples}
    assert found["sigrl_requests_total", "/v1/tag", "200", "POST"] == 1
    assert found["sigrl_request_seconds_sum", "/v1/tag"] == 0.3
    assert found["sigrl_errors_total", "picture"] == 1
    assert found["sigrl_bytes_in_flight",] == 1234
    assert found["sigrl_waiting_pictures",] == 5
    assert found["sigrl_batch_pictures_sum",] == 7
    assert found["sigrl_batch_pictures_count",] == len(engine.batches)
    assert found["sigrl_stage_seconds_count", "decoding"] == found["sigrl_stage_seconds_count", "waiting"] == 7
    assert found["sigrl_stage_seconds_count", "scoring"] == len(engine.batches)


@pytest.mark.parametrize(
    "wrong", [{"queue": 0}, {"pictures": True}, {"rows": 1.5}, {"answer_seconds": 0}, {"body_seconds": np.nan}]
)
def test_limits_are_numbers_that_mean_something(wrong: dict[str, float]) -> None:
    (name,) = wrong
    assert refused(lambda: Limits(**wrong))[0] == name  # type: ignore[arg-type]


def test_there_is_room_for_all_pictures_of_a_request_or_for_none(recognizer: Recognizer, engine: Watched) -> None:
    async def run() -> None:
        service = Service(recognizer, Plan(1), queue=4)
        first = await held(engine, service)
        tasks = await several(*(service.tag(picture(i)) for i in (11, 12)))
        service.tagger.check_room(2)
        with pytest.raises(OverloadedError, match="2 pictures wait"):
            service.tagger.check_room(3)
        engine.gate.set()
        await asyncio.gather(first, *tasks)
        assert await service.tagger.drain(SECONDS)

    asyncio.run(run())
