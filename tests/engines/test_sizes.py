"""What engines keep by size of batch and vocabulary, pixels in uint8, and batches in a row: on a CPU, through PyTorch."""

from __future__ import annotations

import random
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from PIL import Image

from sigrl_deploy import Recognizer
from sigrl_deploy.architectures import Contract
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import change_manifest
from sigrl_deploy.config import Device, Precision
from sigrl_deploy.engines import onnxruntime_fused
from sigrl_deploy.engines.onnxruntime_fused import OnnxRuntimeFusedEngine
from sigrl_deploy.engines.size_cache import SizeCache
from sigrl_deploy.engines.torch import TorchEngine
from sigrl_deploy.errors import UsageError
from sigrl_deploy.pictures.device_preprocess import DevicePreprocess, Normalise
from sigrl_deploy.pictures.preprocess import Preprocess
from tests.support.refusals import refused

LABELS = ["cat", "cup", "person", "rocket", "sky"]


@pytest.fixture(scope="module")
def with_weights(export_tiny: Callable[..., Path]) -> Path:
    return export_tiny(weights=True)


@pytest.fixture(scope="module")
def recognizer(with_weights: Path) -> Recognizer:
    return Recognizer(with_weights, backend="torch", device="cpu", cache_dir=False)


class Context:
    """Scratch memory, and what was captured in it."""


class Graph:
    """Replays on a context's memory, which it does not keep from being freed."""

    def __init__(self, context: Context) -> None:
        self.memory = weakref.ref(context)


def test_no_graph_outlives_the_context_that_it_was_captured_in() -> None:
    """Graphs by batch and labels, contexts by batch, as where SVFR runs behind a TensorRT tower; more sizes than are kept."""

    def forget() -> None:
        graphs.clear()
        contexts.clear()

    graphs: SizeCache[Graph] = SizeCache(64)
    contexts: SizeCache[Context] = SizeCache(3)
    sizes = random.Random(0)
    for step in range(200):
        batch, labels = sizes.randrange(5), sizes.randrange(7)
        graph = graphs.get((batch, labels), lambda b=batch: Graph(contexts.get(b, Context, forget)), forget)  # type: ignore[misc]
        assert graph.memory() is not None, step
        assert all(kept.memory() is not None for kept in graphs.values()), step
        assert graphs.get((batch, labels), lambda: pytest.fail("made twice"), forget) is graph
        assert len(list(contexts)) <= 3


def test_what_cannot_be_made_is_not_kept() -> None:
    def fail() -> int:
        raise torch.OutOfMemoryError("out of memory")

    kept: SizeCache[int] = SizeCache(2)
    with pytest.raises(torch.OutOfMemoryError):
        kept.get(1, fail, kept.clear)
    assert [kept.get(1, lambda: 7, kept.clear), kept.get(1, fail, kept.clear)] == [7, 7]


def test_an_engine_goes_on_after_it_has_dropped_what_it_kept(
    bundle: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_fused, "MOST_BATCHES", 2)
    whole = Recognizer(bundle, backend="onnxruntime", device="cpu", cache_dir=False)
    engine = OnnxRuntimeFusedEngine(Bundle(bundle), Device.CPU, Precision.FP32, (), None)
    vocabulary, pixels = whole.vocabulary(LABELS), np.stack([whole.pixels(path) for path in photos[:4]])
    for count in (1, 2, 3, 1, 4, 2):
        expected = whole.engine.score(pixels[:count], vocabulary)
        assert np.abs(engine.score(pixels[:count], vocabulary) - expected).max() < 1e-5
        assert len(list(engine._buffers)) <= 2


@pytest.mark.parametrize("contract", [Contract.ZERO_SHOT, Contract.CLIP])
def test_uint8_normalised_on_the_device_is_what_preprocessing_gives(contract: Contract, photos: list[Path]) -> None:
    """To the bit: every value of a byte, and photographs by Pillow and by PyTorch."""
    preprocess = Preprocess.for_contract(contract, 16)
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pictures = [Image.fromarray(np.stack([every, every[::-1], every.T], axis=-1))]
    pictures += [Image.open(path).convert("RGB") for path in photos]
    normalise, on_device = Normalise(preprocess, torch.device("cpu")), DevicePreprocess(preprocess, torch.device("cpu"))
    for picture in pictures:
        for pixels in (preprocess.uint8(picture), on_device.uint8(picture)):
            assert (pixels.dtype, pixels.shape, pixels.flags.c_contiguous) == (np.uint8, (3, 16, 16), True)
            np.testing.assert_array_equal(normalise(torch.from_numpy(pixels)[None])[0].numpy(), preprocess(picture))


def test_scores_do_not_change_by_it(recognizer: Recognizer, photos: list[Path]) -> None:
    vocabulary, preprocess = recognizer.vocabulary(LABELS), recognizer.bundle.manifest.preprocess
    small = np.stack([recognizer.pixels(path) for path in photos])
    wide = np.stack([preprocess(Image.open(path).convert("RGB")) for path in photos])
    assert (small.dtype, wide.dtype) == (np.uint8, np.float32)
    np.testing.assert_array_equal(recognizer.score_pixels(small, vocabulary), recognizer.score_pixels(wide, vocabulary))
    for mine, other in zip(*(recognizer.engine.encode(pixels, vocabulary) for pixels in (small, wide)), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_where_the_contract_ends_in_floats_pixels_are_floats(with_weights: Path, tmp_path: Path, photos: list[Path]) -> None:
    """And an engine that does not normalise refuses uint8, which it would take for normalised."""
    out = Path(shutil.copytree(with_weights, tmp_path / "out"))
    size = Bundle(out).manifest.image_size
    preprocess = Preprocess.for_contract(Contract.SINGLE_POSITIVE, size)
    change_manifest(out, lambda manifest: replace(manifest, preprocess=preprocess))
    ours, theirs = (Recognizer(out, backend=b, device="cpu", cache_dir=False) for b in ("torch", "onnxruntime"))
    vocabulary = ours.vocabulary(LABELS)
    pixels = ours.pixels(photos[0])[None]
    np.testing.assert_array_equal(pixels[0], preprocess(Image.open(photos[0]).convert("RGB")))
    assert ours.score_pixels(pixels, vocabulary).shape == (1, len(LABELS))
    for recognizer in (ours, theirs):
        with pytest.raises(UsageError) as raised:
            recognizer.score_pixels(np.zeros(pixels.shape, np.uint8), vocabulary)
        assert (raised.value.argument, raised.value.value) == ("pixels", np.uint8)


def test_batches_in_a_row_score_as_one_by_one(recognizer: Recognizer, photos: list[Path]) -> None:
    """Of several sizes; each is taken only when the one before the last has its scores."""
    vocabulary = recognizer.vocabulary(LABELS)
    pixels = np.stack([recognizer.pixels(path) for path in photos])
    parts = [pixels[:1], pixels[1:4], pixels[:2], pixels[3:4], pixels]
    taken: list[int] = []

    def batches() -> Iterator[np.ndarray]:
        for number, part in enumerate(parts):
            taken.append(number)
            yield part

    found = []
    for scores in recognizer.score_batches(batches(), vocabulary):
        found.append(scores)
        assert len(taken) <= len(found) + 1
    assert len(found) == len(parts)
    for scores, part in zip(found, parts, strict=True):
        np.testing.assert_array_equal(scores, recognizer.score_pixels(part, vocabulary))
    assert list(recognizer.score_batches([], vocabulary)) == []


def test_a_batch_that_fails_loses_only_itself(recognizer: Recognizer, photos: list[Path]) -> None:
    vocabulary = recognizer.vocabulary(LABELS)
    pixels = recognizer.pixels(photos[0])[None]

    def batches() -> Iterator[np.ndarray]:
        yield pixels
        raise OSError("the disk is gone")

    found = []
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(recognizer.score_batches(batches(), vocabulary))
    np.testing.assert_array_equal(found, [recognizer.score_pixels(pixels, vocabulary)])


@pytest.mark.parametrize("shape", [(1, 1, 80, 80), (1, 3, 64, 64), (1, 3, 112, 112), (3, 80, 80), (0, 3, 80, 80)])
def test_pixels_of_another_shape_are_refused(recognizer: Recognizer, shape: tuple[int, ...]) -> None:
    """The kernels, and a captured pass, take what they get for pictures of the model's size."""
    vocabulary, dtype = recognizer.vocabulary(LABELS), np.uint8 if recognizer.engine.takes_uint8 else np.float32
    assert refused(lambda: recognizer.score_pixels(np.zeros(shape, dtype), vocabulary)) == ("pixels", list(shape))


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_pictures_that_cannot_be_read_shift_no_scores(
    recognizer: Recognizer, photos: list[Path], tmp_path: Path, batch_size: int
) -> None:
    """Among batches that are scored ahead of their records: at the start, a whole batch in the middle, at the end."""
    good, bad = [str(path) for path in photos[:4]], str(tmp_path / "missing.jpg")
    paths = [bad, good[0], *[bad] * 5, good[1], good[2], bad, good[3], bad]
    vocabulary = recognizer.vocabulary(LABELS)
    records = list(recognizer.stream(paths, vocabulary, batch_size=batch_size))
    assert [record.path for record in records] == paths
    for record in records:
        if record.path == bad:
            assert record.error is not None
            continue
        expected = recognizer.score_pixels(recognizer.pixels(record.path)[None], vocabulary)[0]
        assert record.scores is not None
        assert np.abs(record.scores - expected).max() < 1e-6


def test_stages_are_the_parts_of_a_pass(with_weights: Path, recognizer: Recognizer, photos: list[Path]) -> None:
    """Each gives the same however often it runs, and the last the pass's scores."""
    engine = TorchEngine(Bundle(with_weights), Device.CPU, Precision.FP32)
    pixels = torch.from_numpy(np.stack([recognizer.pixels(path) for path in photos[:2]]))
    with engine.running():
        on_device = engine.on_device(recognizer.vocabulary(LABELS))
        stages = engine.stages(pixels, on_device)
        assert list(stages) == ["tower", "svfr", "match"]
        first, again = ([stage() for stage in stages.values()] for _ in range(2))
        patches, _ = first[0]
        assert torch.equal(patches, again[0][0])
        assert first[1].shape == patches.shape
        assert not torch.equal(first[1], patches)
        assert torch.equal(first[2], engine.forward(pixels, on_device))
        assert torch.equal(first[2], again[2])
