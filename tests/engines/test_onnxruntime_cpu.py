"""ONNX Runtime's tower with the native kernel behind it, against the same file run by ONNX Runtime alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sigrl_deploy import Recognizer
from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.config import Precision
from sigrl_deploy.engines import onnxruntime_cpu
from sigrl_deploy.engines.onnxruntime_cpu import OnnxRuntimeCpuEngine, TowerAndSvfr
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels.cpu.library import VARIABLE, installed_library

LABELS = ["cat", "cup", "person", "rocket", "sky", "tree", "boat"]
PRECISIONS = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8X3, Precision.INT8_ALL)
# fp32: another order of operations. fp16: the function rounds what the kernel computes in fp32. int8: both round tanh to the
# same steps, and a value between two steps may go either way.
APART = {Precision.FP32: 1e-6, Precision.FP16: 1e-3}


@pytest.fixture(scope="module")
def exported(export_tiny: Callable[..., Path]) -> Path:
    return export_tiny(*PRECISIONS)


@pytest.fixture(autouse=True)
def _with_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    try:
        if not installed_library().instruction_sets:
            pytest.skip("this CPU has no instructions for it")
    except OSError as error:
        pytest.skip(str(error))


def opened(bundle: Path, precision: Precision = Precision.FP32, **options: object) -> Recognizer:
    chosen = EngineOptions(device="cpu", backend="onnxruntime", precision=precision, **options)  # type: ignore[arg-type]
    return Recognizer(bundle, options=chosen, cache_dir=False)


def scores_of(recognizer: Recognizer, photos: list[Path]) -> FloatArray:
    return recognizer.score_pixels(np.stack([recognizer.pixels(path) for path in photos[:3]]), recognizer.vocabulary(LABELS))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_scores_as_the_function_does(exported: Path, photos: list[Path], precision: Precision) -> None:
    native, function = opened(exported, precision), opened(exported, precision, unfused=frozenset({"svfr"}))
    assert isinstance(native.engine, OnnxRuntimeCpuEngine)
    assert not isinstance(function.engine, OnnxRuntimeCpuEngine)
    assert "SVFR in a native kernel with" in native.engine.description
    apart = np.abs(scores_of(native, photos) - scores_of(function, photos)).max()
    assert apart < APART.get(precision, 1e-3)


def test_it_can_be_switched_off(bundle: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    native = scores_of(opened(bundle), photos)
    monkeypatch.setenv(VARIABLE, "off")
    without = opened(bundle)
    assert f"SVFR as an ONNX function (no native kernel: {VARIABLE} is off)" in without.engine.description
    assert np.abs(scores_of(without, photos) - native).max() < 1e-6
    monkeypatch.setenv(VARIABLE, "fastest")
    with pytest.raises(UsageError, match="fastest"):
        opened(bundle)


def test_without_the_library_the_function_runs(bundle: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    native = scores_of(opened(bundle), photos)
    monkeypatch.setattr("sigrl_deploy.kernels.cpu.library._opened", [])
    monkeypatch.setattr("sigrl_deploy.kernels.cpu.library._MODULE", "sigrl_deploy.kernels.cpu.nothing")
    without = opened(bundle)
    assert "it was not built" in without.engine.description
    assert np.abs(scores_of(without, photos) - native).max() < 1e-6


def test_a_graph_that_cannot_be_cut_runs_whole(
    bundle: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = scores_of(opened(bundle), photos)

    def fails(path: Path) -> None:
        raise ValueError("it has no SVFR node as this package writes it")

    monkeypatch.setattr(onnxruntime_cpu, "cut", fails)
    whole = opened(Path(shutil.copytree(bundle, tmp_path / "copy")))
    assert "visual.onnx cannot be cut: it has no SVFR node" in whole.engine.description
    assert np.abs(scores_of(whole, photos) - native).max() < 1e-6


def test_threads_may_share_an_engine(bundle: Path, photos: list[Path]) -> None:
    recognizer = opened(bundle, threads=2)
    vocabulary = recognizer.vocabulary(LABELS)
    pixels = [recognizer.pixels(path)[None] for path in photos]
    expected = [recognizer.score_pixels(each, vocabulary) for each in pixels]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: recognizer.score_pixels(pixels[i % len(pixels)], vocabulary), range(24)))
    assert all(np.array_equal(scores, expected[i % len(pixels)]) for i, scores in enumerate(found))


def test_a_large_batch_runs_in_parts(bundle: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Which fit the caches, of a size that depends on the threads; each picture scores as it does alone."""
    recognizer, given = opened(bundle, threads=1), []
    pixels = np.stack([recognizer.pixels(photos[i % len(photos)]) for i in range(5)])
    assert isinstance(recognizer.engine, OnnxRuntimeCpuEngine)
    visual, vocabulary = recognizer.engine._visual, recognizer.vocabulary(LABELS)
    assert isinstance(visual, TowerAndSvfr)
    tower = visual.tower

    def watched(feeds: dict[str, FloatArray]) -> dict[str, FloatArray]:
        given.append(len(feeds["pixels"]))
        return tower(feeds)

    monkeypatch.setattr(visual, "tower", watched)
    scores = recognizer.score_pixels(pixels, vocabulary)
    assert given == [2, 2, 1]
    alone = np.concatenate([recognizer.score_pixels(each[None], vocabulary) for each in pixels])
    assert np.abs(scores - alone).max() < 1e-6  # products of another shape add in another order


def test_too_much_memory_is_one_line(bundle: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = opened(bundle)
    assert isinstance(recognizer.engine, OnnxRuntimeCpuEngine)
    visual = recognizer.engine._visual
    assert isinstance(visual, TowerAndSvfr)

    def fails(*_: object) -> FloatArray:
        raise MemoryError("no memory for SVFR of 25 patches and 7 labels")

    monkeypatch.setattr(visual, "svfr", fails)
    with pytest.raises(UsageError, match=r"no memory for SVFR of 25 patches and 7 labels; take a smaller `batch_size`"):
        scores_of(recognizer, photos)
