"""What only a GPU with TensorRT shows: engines against the eager model. `pytest -m tensorrt` writes what it measures to
`benchmarks/results/tensorrt.json`."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from sigrl_deploy import Recognizer
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.engine_records import Ops, Range
from sigrl_deploy.bundle.manifest import change_manifest
from sigrl_deploy.checkpoints.eager import load_eager
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import Precision
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.tensorrt.build import BuildOptions, build_engines
from sigrl_deploy.tensorrt.library import installed
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused

MISSING = "no GPU" if not torch.cuda.is_available() else "" if installed() else "TensorRT is not installed"
pytestmark = [pytest.mark.tensorrt, pytest.mark.skipif(bool(MISSING), reason=MISSING)]
RESULTS = ROOT / "benchmarks" / "results" / "tensorrt.json"
VOCABULARIES = (["cat"], ["cat", "cup", "person", "rocket", "sky"], [f"label {i}" for i in range(81)])


@pytest.fixture(scope="module")
def exported(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tensorrt") / "bundle"
    precisions = (Precision.FP32, Precision.FP16, Precision.BF16)
    export_bundle(ExportOptions(weights / "sigrl.pth", out, text_tower=str(weights / "text.pth"), precisions=precisions))
    return out


def record(**values: Any) -> None:
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    RESULTS.write_text(json.dumps([*known, values], indent=1) + "\n")


@pytest.mark.parametrize("ops", list(Ops))
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16, Precision.BF16])
def test_engines_score_as_the_eager_model_does(
    exported: Path, weights: Path, photos: list[Path], precision: Precision, ops: Ops
) -> None:
    """Vocabularies and batches in turn, some beyond the profile's batch, which is then split."""
    if ops is Ops.PLUGIN and "tensorrt" not in installed():
        pytest.skip("TensorRT for RTX takes no plugins")
    change_manifest(exported, lambda manifest: replace(manifest, engines=()))
    build_engines(BuildOptions(exported, precision, ops, batch=Range(1, 1, 2)))
    engine = Recognizer(exported, backend="tensorrt", precision=precision, cache_dir=False, options=EngineOptions(build=False))
    eager = load_eager(CheckpointOptions(weights / "sigrl.pth", text_tower=str(weights / "text.pth")))
    largest = 0.0
    for labels in VOCABULARIES:
        for count in (1, 3, 2):
            pixels = np.stack([eager.pixels(path) for path in photos[:count]])
            expected = eager.score_pixels(pixels, eager.vocabulary(labels))
            found = engine.score_pixels(pixels, engine.vocabulary(labels))
            largest = max(largest, float(np.abs(found - expected).max()))
            local, _ = engine.engine.encode(pixels, engine.vocabulary(labels))
            assert local is not None
            assert local.shape == (count, 25, 512)
    record(engine=engine.engine.description, largest_error=largest, tolerance=precision.tolerance)
    assert largest < precision.tolerance


def test_more_labels_than_the_profile_s_are_refused_with_the_command(exported: Path, photos: list[Path]) -> None:
    build_engines(BuildOptions(exported, Precision.FP16, Ops.INLINED, labels=Range(1, 5, 10), force=True))
    recognizer = Recognizer(exported, backend="tensorrt", precision="fp16", cache_dir=False, options=EngineOptions(build=False))
    labels = [f"label {i}" for i in range(11)]
    command = "--precision fp16 --ops inlined --labels 1 5 11"
    assert_refused(lambda: recognizer.vocabulary(labels), UsageError, "11 labels", "1 to 10", command)


def test_a_stale_engine_is_built_again_and_logged(exported: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_engines(BuildOptions(exported, Precision.FP16))

    def other_driver(manifest: Any) -> Any:
        stale = [replace(record, key=replace(record.key, driver="1.0")) for record in manifest.engines]
        return replace(manifest, engines=tuple(stale))

    change_manifest(exported, other_driver)
    with caplog.at_level(logging.INFO):
        fallen_back = Recognizer(
            exported, backend="tensorrt", precision="fp16", cache_dir=False, options=EngineOptions(build=False)
        )
        assert "built with driver 1.0" in caplog.text
        assert "tensorrt" not in fallen_back.engine.description.lower()
        caplog.clear()
        recognizer = Recognizer(exported, backend="tensorrt", precision="fp16", cache_dir=False)
    assert "built with driver 1.0" in caplog.text
    assert "building engines" in caplog.text
    assert "tensorrt" in recognizer.engine.description.lower()
    assert Bundle(exported).manifest.engines[-1].key.driver != "1.0"
