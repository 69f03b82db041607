"""ONNX Runtime's tower with SVFR and the match behind it: on the CPU, plain and with the kernels in the interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sigrl_deploy import Recognizer
from sigrl_deploy.bundle import Bundle
from sigrl_deploy.config import Precision
from sigrl_deploy.engines.onnxruntime import OnnxRuntimeEngine
from sigrl_deploy.engines.onnxruntime_fused import OnnxRuntimeFusedEngine
from sigrl_deploy.errors import UsageError
from sigrl_deploy.export.bundle import ExportOptions, export_bundle

LABELS = ["cat", "cup", "person", "rocket", "sky"]


@pytest.fixture(scope="module", params=[Precision.FP32, Precision.FP16])
def exported(request: pytest.FixtureRequest, bundle: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    if request.param is Precision.FP32:
        return Bundle(bundle)
    out = tmp_path_factory.mktemp("fused") / "bundle"
    options = ExportOptions(weights / "sigrl.pth", out, text_tower=str(weights / "text.pth"), precisions=(request.param,))
    export_bundle(options)
    return Bundle(out)


@pytest.mark.parametrize(
    "fused",
    [
        (),
        pytest.param(
            ("svfr", "match"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="kernels run on the GPU here, not in the interpreter"),
        ),
    ],
)
def test_tower_and_head_score_as_the_whole_graph_does(exported: Bundle, photos: list[Path], fused: tuple[str, ...]) -> None:
    """Batches of two sizes and vocabularies of two in turn. fp32 differs in the order of sums only, fp16 by its tolerance."""
    whole = Recognizer(exported.path, backend="onnxruntime", device="cpu", cache_dir=False)
    engine = OnnxRuntimeFusedEngine(exported, "cpu", None, fused, None)
    pixels = np.stack([whole.pixels(path) for path in photos[:3]])
    tolerance = 1e-5 if engine.precision is Precision.FP32 else engine.precision.tolerance
    for labels in (LABELS, LABELS[:2], LABELS):
        vocabulary = whole.vocabulary(labels)
        for batch in (pixels, pixels[1:2]):
            assert np.abs(engine.score(batch, vocabulary) - whole.engine.score(batch, vocabulary)).max() < tolerance
    found, expected = (e.encode(pixels, vocabulary) for e in (engine, whole.engine))
    for mine, other in zip(found, expected, strict=True):
        assert mine is not None
        assert other is not None
        assert mine.shape == other.shape
        assert np.abs(mine - other).max() < 4 * tolerance * np.abs(other).max()


def test_the_text_half_is_onnx_runtimes(exported: Bundle) -> None:
    whole, engine = OnnxRuntimeEngine(exported, "cpu"), OnnxRuntimeFusedEngine(exported, "cpu", None, (), None)
    ids = np.array([[49406, 320, 49407], [49406, 49407, 0]], np.int64)
    rows = engine.encode_labels(ids)
    assert np.array_equal(rows, whole.encode_labels(ids))
    assert np.array_equal(engine.project_graph(rows), whole.project_graph(rows))  # type: ignore[arg-type]


def test_a_precision_that_the_bundle_lacks_is_refused(bundle: Path) -> None:
    with pytest.raises(UsageError, match="--precision bf16"):
        OnnxRuntimeFusedEngine(Bundle(bundle), "cpu", Precision.BF16, (), None)
