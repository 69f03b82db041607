"""ONNX Runtime's tower with SVFR and the match behind it: on the CPU, plain and with the kernels in the interpreter."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sigrl_deploy import Recognizer
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import MANIFEST
from sigrl_deploy.config import Device, Precision
from sigrl_deploy.engines.choosing import choose
from sigrl_deploy.engines.onnxruntime import OnnxRuntimeEngine
from sigrl_deploy.engines.onnxruntime_fused import OnnxRuntimeFusedEngine
from sigrl_deploy.engines.opening import ThisMachine
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import BundleError
from tests.support.refusals import assert_refused

LABELS = ["cat", "cup", "person", "rocket", "sky"]


@pytest.fixture(scope="module", params=[Precision.FP32, Precision.FP16])
def exported(request: pytest.FixtureRequest, export_tiny: Callable[..., Path]) -> Bundle:
    return Bundle(export_tiny(request.param))


def test_tower_and_head_score_as_the_whole_graph_does(exported: Bundle, photos: list[Path]) -> None:
    """Batches of two sizes and vocabularies of two in turn. fp32 differs in the order of sums only, fp16 by its tolerance."""
    whole = Recognizer(exported.path, backend="onnxruntime", device="cpu", cache_dir=False)
    engine = OnnxRuntimeFusedEngine(exported, Device.CPU, exported.precisions(None)[0], (), None)
    pixels = np.stack([whole.pixels(path) for path in photos[:3]])
    tolerance = 1e-5 if engine.precision is Precision.FP32 else engine.precision.tolerance
    for labels in (LABELS, LABELS[:2], LABELS):
        vocabulary = whole.vocabulary(labels)
        for batch in (pixels, pixels[1:2]):
            assert np.abs(engine.score(batch, vocabulary) - whole.engine.score(batch, vocabulary)).max() < tolerance
    strided = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for mine, other in zip(engine.encode(strided, vocabulary), whole.engine.encode(pixels, vocabulary), strict=True):
        assert mine is not None
        assert other is not None
        assert mine.shape == other.shape
        assert np.abs(mine - other).max() < 4 * tolerance * np.abs(other).max()


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here, not in the interpreter")
def test_the_kernels_run_behind_the_tower(exported: Bundle, photos: list[Path]) -> None:
    whole = Recognizer(exported.path, backend="onnxruntime", device="cpu", cache_dir=False)
    engine = OnnxRuntimeFusedEngine(exported, Device.CPU, exported.precisions(None)[0], ("svfr", "match"), None)
    assert "fused match svfr behind it" in engine.description
    vocabulary, pixels = whole.vocabulary(LABELS[:2]), whole.pixels(photos[0])[None]
    tolerance = 1e-5 if engine.precision is Precision.FP32 else engine.precision.tolerance
    assert np.abs(engine.score(pixels, vocabulary) - whole.engine.score(pixels, vocabulary)).max() < tolerance


def test_a_batch_that_does_not_fit_is_halved(bundle: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime's words for it are its own; other errors stay what they are."""
    whole = Recognizer(bundle, backend="onnxruntime", device="cpu", cache_dir=False)
    engine = OnnxRuntimeFusedEngine(Bundle(bundle), Device.CPU, Precision.FP32, (), None)
    tower, vocabulary = engine._tower, whole.vocabulary(LABELS)
    pixels = np.stack([whole.pixels(path) for path in photos[:4]])
    ran: list[int] = []

    class Small:
        """A tower on a GPU with room for one picture."""

        message = "Non-zero status code. BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer"
        io_binding = staticmethod(tower.io_binding)

        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            batch = max(engine._buffers)
            if batch > 1:
                raise RuntimeError(self.message)
            ran.append(batch)
            tower.run_with_iobinding(binding, options)

    monkeypatch.setattr(engine, "_tower", Small())
    assert np.abs(engine.score(pixels, vocabulary) - whole.engine.score(pixels, vocabulary)).max() < 1e-5
    assert ran == [1, 1, 1, 1]
    monkeypatch.setattr(Small, "message", "no kernel image is available")
    engine._largest_batch.clear()
    with pytest.raises(RuntimeError, match="no kernel image"):
        engine.score(pixels, vocabulary)


def test_the_text_half_is_onnx_runtimes(exported: Bundle) -> None:
    whole, engine = (
        OnnxRuntimeEngine(exported, choose(exported, EngineOptions(device=Device.CPU), ThisMachine())),
        OnnxRuntimeFusedEngine(exported, Device.CPU, exported.precisions(None)[0], (), None),
    )
    ids = np.array([[49406, 320, 49407], [49406, 49407, 0]], np.int64)
    rows = engine.encode_labels(ids)
    assert np.array_equal(rows, whole.encode_labels(ids))
    mine, other = engine.project_graph(rows), whole.project_graph(rows)
    assert mine is not None
    assert other is not None
    assert np.array_equal(mine, other)


def test_a_graph_that_the_manifest_does_not_describe_is_refused(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / MANIFEST).read_text())
    (tmp_path / "bundle" / MANIFEST).write_text(json.dumps(manifest | {"embed_dim": 256}))
    changed = Bundle(tmp_path / "bundle")
    assert_refused(lambda: OnnxRuntimeFusedEngine(changed, Device.CPU, Precision.FP32, (), None), BundleError, "visual.onnx")
