"""Vocabularies of a service: encoded once, by one thread, within their bounds, and never shared between bundles."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigrl_deploy import Label, Recognizer
from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.errors import LabelError, UsageError
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.recognizer.thresholds import ThresholdFile, Thresholds
from sigrl_deploy.serve.errors import ConflictError, EngineError, OverloadedError, StoppedError, TooLateError
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Metrics
from sigrl_deploy.serve.vocabularies import OWN, Served, ServedVocabularies
from sigrl_deploy.vocabulary.vocabulary import Vocabulary
from tests.support.changed_bundles import edit_manifest, mend_hashes
from tests.support.refusals import assert_refused
from tests.support.watched_engine import SECONDS

GIVEN = {"pets": LabelSet((Label("cat"), Label("dog"))), "vehicles": LabelSet((Label("boat"), Label("car", threshold=0.5)))}


def texts(*names: str) -> LabelSet:
    return LabelSet(tuple(map(Label, names)))


class HeldText:
    """Holds and counts what the text encoder of a recognizer does."""

    def __init__(self, recognizer: Recognizer) -> None:
        self.calls = 0
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()
        self.failure: BaseException | None = None
        self._encode = recognizer.engine.encode_labels
        recognizer.engine.encode_labels = self  # type: ignore[method-assign]

    def __call__(self, token_ids: Any) -> FloatArray:
        self.calls += 1
        self.entered.release()
        assert self.gate.wait(SECONDS)
        if self.failure is not None:
            raise self.failure
        return self._encode(token_ids)


@pytest.fixture
def held(recognizer: Recognizer) -> HeldText:
    return HeldText(recognizer)


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    yield
    for thread in [thread for thread in threading.enumerate() if thread.name == "labels"]:
        thread.join(SECONDS)
        assert not thread.is_alive()


def opened(recognizer: Recognizer, given: dict[str, LabelSet] | None = None, **limits: float) -> ServedVocabularies:
    values = {"answer_seconds": SECONDS, **limits}
    served = ServedVocabularies(recognizer, Limits(**values), Metrics())  # type: ignore[arg-type]
    served.open(GIVEN if given is None else given, {})
    return served


async def several(*calls: Coroutine[None, None, Any]) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(call) for call in calls]
    await asyncio.sleep(0)  # lets each run up to where it waits
    return tasks


def assert_rows(found: Vocabulary, expected: Vocabulary) -> None:
    assert found.labels == expected.labels
    np.testing.assert_array_equal(found.label_embedding, expected.label_embedding)
    np.testing.assert_array_equal(found.graph_projection, expected.graph_projection)


def test_vocabularies_are_put_replaced_and_deleted(recognizer: Recognizer) -> None:
    async def run() -> None:
        served = opened(recognizer)
        assert served.default == "pets"
        assert served.named() is served.named("pets")
        assert served.named("kitchen") is None
        assert await served.put("kitchen", texts("cup", "pan"))
        assert not await served.put("kitchen", texts("cup", "pan", "oven"))
        kitchen = served.named("kitchen")
        assert kitchen is not None
        assert_rows(kitchen.vocabulary, recognizer.vocabulary(["cup", "pan", "oven"]))
        assert [each.name for each in served.all()] == ["pets", "vehicles", "kitchen"]
        assert [served.is_fixed(name) for name in ("pets", "kitchen")] == [True, False]
        for refused in (lambda: served.delete("pets"), lambda: asyncio.run(served.put("pets", texts("a", "b")))):
            with pytest.raises(ConflictError, match="pets"):
                await asyncio.to_thread(refused)
        assert served.delete("kitchen")
        assert not served.delete("kitchen")
        assert served.named("kitchen") is None
        served.close()

    asyncio.run(run())


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "x" * 65, "ä", "a\n"])
def test_names_are_plain(recognizer: Recognizer, name: str) -> None:
    served = opened(recognizer)
    with pytest.raises(UsageError, match="1 to 64 letters"):
        asyncio.run(served.put(name, texts("cat")))
    served.close()


def test_named_vocabularies_are_bounded(recognizer: Recognizer) -> None:
    async def run() -> None:
        served = opened(recognizer, vocabularies=2, rows=5)
        await served.put("a", texts("cat", "dog"))
        with pytest.raises(ConflictError, match="6 rows, expected 5"):
            await served.put("b", texts("cup", "pan", "oven", "fork"))
        await served.put("b", texts("cup", "pan", "oven"))
        with pytest.raises(ConflictError, match="2 vocabularies"):
            await served.put("c", texts("cat"))
        await served.put("b", texts("cup", "pan"))  # one may still be replaced
        served.close()

    asyncio.run(run())


def test_the_same_labels_are_encoded_once(recognizer: Recognizer, held: HeldText) -> None:
    async def run() -> None:
        served = opened(recognizer)
        held.calls = 0
        held.gate.clear()
        tasks = await several(*(served.inline(texts("owl", "fox", "elk")) for _ in range(9)))
        tasks[0].cancel()  # which takes nothing from the others
        held.gate.set()
        first, *others = await asyncio.gather(*tasks[1:])
        assert all(other is first for other in others)
        assert await served.inline(texts("owl", "fox", "elk")) is first
        assert held.calls == 1
        assert_rows(first, recognizer.vocabulary(["owl", "fox", "elk"]))
        served.close()

    asyncio.run(run())


def test_encoding_is_bounded_and_left_out_where_nobody_waits(recognizer: Recognizer, held: HeldText) -> None:
    async def run() -> None:
        served = opened(recognizer, encodings=3)
        held.gate.clear()
        held.calls = 0
        calls = await several(*(served.inline(texts(name)) for name in ("owl", "fox", "elk")))
        with pytest.raises(OverloadedError, match="3 lists of labels"):
            await served.inline(texts("bee"))
        joined = await several(served.inline(texts("elk")))  # that one is under way already
        calls[1].cancel()
        await asyncio.sleep(0)
        (bee,) = await several(served.inline(texts("bee")))
        held.gate.set()
        await asyncio.gather(calls[0], calls[2], bee, *joined)
        assert held.calls == 3
        served.close()

    asyncio.run(run())


def test_labels_that_take_too_long(recognizer: Recognizer, held: HeldText) -> None:
    async def run() -> None:
        served = opened(recognizer, answer_seconds=0.01)
        held.gate.clear()
        with pytest.raises(TooLateError, match=r"0\.01 s"):
            await served.inline(texts("owl"))
        held.gate.set()
        served.close()

    asyncio.run(run())


def test_memory_for_labels_of_requests_is_bounded(bundle: Path, tmp_path: Path) -> None:
    """Both by their number and by their rows, and nothing of them is written."""
    recognizer = Recognizer(bundle, backend="onnxruntime", device="cpu", cache_dir=tmp_path / "cache", threads=1)

    async def run() -> None:
        served = opened(recognizer, inline_vocabularies=3, rows=8)
        before = sorted((tmp_path / "cache").rglob("*"))
        first = [await served.inline(texts(name, "other")) for name in ("owl", "fox", "elk")]
        assert await served.inline(texts("owl", "other")) is first[0]
        await served.inline(texts("bee", "other"))  # in place of the fox, which was not asked for since
        remembered = served._encoder._remembered
        assert [labels.names[0] for labels in remembered] == ["elk", "owl", "bee"]
        await served.inline(texts("a", "b", "c", "d", "e"))
        assert sum(len(each.label_embedding) for each in remembered.values()) == 7
        large = texts(*"abcdefghi")
        assert len(await served.inline(large)) == 9
        assert large not in remembered
        assert before
        assert sorted((tmp_path / "cache").rglob("*")) == before
        served.close()

    asyncio.run(run())


def test_two_bundles_share_no_rows(bundle: Path, tmp_path: Path) -> None:
    """Two that differ in their template only, with one cache folder, in one process."""
    shutil.copytree(bundle, tmp_path / "other")
    edit_manifest(tmp_path / "other", template="a drawing of a {label}.")
    labels = texts("owl", "fox", "elk")

    async def run() -> None:
        rows = []
        for folder in (bundle, tmp_path / "other"):
            open_ = {"backend": "onnxruntime", "device": "cpu"}
            served = opened(Recognizer(folder, cache_dir=tmp_path / "cache", **open_), {"given": labels})
            inline, named = await served.inline(labels), served.named("given")
            assert named is not None
            alone = Recognizer(folder, cache_dir=False, **open_).vocabulary(labels)
            assert_rows(inline, alone)
            assert_rows(named.vocabulary, alone)
            rows.append(alone.label_embedding)
            served.close()
        assert not np.isclose(*rows).all(axis=1).any()

    asyncio.run(run())


def test_what_requests_may_not_ask_for(recognizer: Recognizer, tmp_path: Path) -> None:
    served = opened(recognizer, labels=10)
    secret = tmp_path / "secret.txt"
    secret.write_text("secret\n")
    for labels, facts in (
        (texts(*map(str, range(11))), ("labels", "11", "10")),
        (LabelSet((Label("sofa", synonyms=("couch",)),), templates=tuple(f"{i} {{label}}" for i in range(6))), ("12 texts",)),
        (LabelSet((Label("cat"),), background=str(secret)), ("background", "bundle or common")),
    ):
        assert_refused(lambda labels=labels: asyncio.run(served.inline(labels)), LabelError, *facts)
    served.close()


def test_a_text_encoder_that_fails_costs_one_list(recognizer: Recognizer, held: HeldText) -> None:
    async def run() -> None:
        served = opened(recognizer)
        for failure in (RuntimeError("no\nmemory"), SystemExit("odd")):
            held.failure = failure
            with pytest.raises(EngineError) as failed:
                await served.inline(texts("owl"))
            assert str(failed.value).startswith("labels: ")
            assert "\n" not in str(failed.value)
        held.failure = None
        assert len(await served.inline(texts("owl"))) == 1
        served.close()

    asyncio.run(run())


def test_a_closed_one_says_so(recognizer: Recognizer, held: HeldText) -> None:
    async def run() -> None:
        served = opened(recognizer)
        held.gate.clear()
        while held.entered.acquire(blocking=False):  # by what was given
            pass
        (first,) = await several(served.inline(texts("owl")))
        assert await asyncio.to_thread(held.entered.acquire, timeout=SECONDS)
        (waiting,) = await several(served.inline(texts("fox")))
        served.close()
        with pytest.raises(StoppedError):
            await served.inline(texts("elk"))
        with pytest.raises(StoppedError):
            await waiting
        held.gate.set()
        assert len(await first) == 1

    asyncio.run(run())


def test_thresholds_are_used_unless_asked_otherwise(recognizer: Recognizer, tmp_path: Path) -> None:
    vocabulary = recognizer.vocabulary(GIVEN["pets"])
    ThresholdFile(recognizer.scope(vocabulary), "f1", 0.25, {"cat": 0.75}).write(tmp_path / "pets.json")
    file = Thresholds.read(tmp_path / "pets.json")
    served = ServedVocabularies(recognizer, Limits(), Metrics())
    served.open(GIVEN, {"pets": file})
    pets, vehicles = served.named("pets"), served.named("vehicles")
    assert pets is not None
    assert vehicles is not None

    def limits(of: Served, **options: Any) -> list[float | None]:
        """Of each label, in their order."""
        chosen = served.selection(of, top=9, **options)
        best = chosen.best(np.ones(2, np.float32), of.vocabulary)
        return [tag.threshold for tag in best]

    assert limits(pets) == limits(pets, thresholds=True) == [0.75, 0.25]
    assert limits(pets, threshold=0.5) == limits(pets, threshold=0.5, thresholds=False) == [0.5, 0.5]
    assert limits(pets, thresholds=False) == [None, None]
    assert limits(vehicles) == [None, 0.5]
    assert limits(vehicles, threshold=0.25) == limits(vehicles, threshold=0.25, thresholds=True) == [0.25, 0.5]
    assert limits(vehicles, threshold=0.25, thresholds=False) == [0.25, 0.25]
    assert [each.has_thresholds for each in (pets, vehicles)] == [True, True]
    plain = Served(None, texts("owl", "fox"), recognizer.vocabulary(["owl", "fox"]))
    assert_refused(lambda: served.selection(plain, thresholds=True), UsageError, "thresholds")
    assert_refused(lambda: served.selection(pets, threshold=0.5, thresholds=True), UsageError, "threshold")
    assert_refused(lambda: served.selection(pets, top=0), UsageError, "top")
    served.close()
    for wrong, fact in (({"vehicles": file}, "other labels"), ({"boats": file}, "pets, vehicles")):
        other = ServedVocabularies(recognizer, Limits(), Metrics())
        assert_refused(lambda other=other, wrong=wrong: other.open(GIVEN, wrong), UsageError, "thresholds", fact)


def test_without_any_the_bundle_s_own_labels_are_the_default(bundle: Path, recognizer: Recognizer, tmp_path: Path) -> None:
    served = opened(recognizer, {})
    assert (served.default, served.named(), served.all()) == (None, None, [])  # this bundle has none
    served.close()
    own = recognizer.vocabulary(["owl", "fox", "elk"])
    shutil.copytree(bundle, tmp_path / "own")
    own.write(tmp_path / "own" / "vocabulary.npz")
    mend_hashes(tmp_path / "own", "vocabulary.npz")
    served = opened(Recognizer(tmp_path / "own", backend="onnxruntime", device="cpu", cache_dir=False), {})
    found = served.named()
    assert found is not None
    assert (served.default, found.name, found.labels) == (OWN, OWN, texts("owl", "fox", "elk"))
    assert_rows(found.vocabulary, own)
    served.close()
