"""The benchmark harness: what it counts, what it records of contenders that work and that do not, and what it makes of that."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.bench import begun, drift_of, failure
from benchmarks.contenders import ON_CPU, ON_GPU, Cell, chosen, eager_forward, open_pass
from benchmarks.machine import describe, floor_ms, least_bytes, svfr_flop, vit_flop
from benchmarks.random_weights import label_embeddings
from benchmarks.report import stages
from benchmarks.stages import STAGES, cpu_stages
from benchmarks.tables import cell, summary
from benchmarks.workload import FUNCTION, OURS, bundle_of, prepare, vocabulary_file
from sigrl_deploy import Recognizer
from sigrl_deploy.config import Arch, Backend, Device, GraphConfig, ModelConfig, Precision, runs
from sigrl_deploy.engines.onnxruntime import CUDA, has_provider
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from sigrl_deploy.image_towers import VisionConfig
from sigrl_deploy.kernels.cpu.library import VARIABLE
from sigrl_deploy.model.sigrl import LABEL_TILE
from tests.support.checkpoints import loaded, saved, sigrl
from tests.support.paths import ROOT

GRAPH = (GraphConfig(512, 4, 32), GraphConfig(128, 1, 512))
VISION = VisionConfig(image_size=224, patch_size=16, width=768, layers=12, heads=12)
VIT_B16 = ModelConfig(Arch.SIGRL, 512, 16, VISION, graph=GRAPH)


RACED = ["eager", "onnxruntime"]
EARLIER = {
    "backend": "eager", "precision": "fp32", "device": "cpu", "labels": 20, "batch": 1,
    "status": "not run: a pass would take about 1234 s",
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A race over two sizes, gone on with where an interrupted run had its files and one record; in the second no pass may take
    any time."""
    folder = tmp_path_factory.mktemp("bench")
    out, partial = folder / "results.json", folder / "results.json.partial"
    partial.write_text(json.dumps({"machine": describe("cpu"), "variant": "tiny", "records": [EARLIER]}))
    (folder / "tiny").mkdir()
    prepare(folder / "tiny", "tiny", [7, 20], chosen("cpu", RACED), "cpu")
    command = [sys.executable, "-m", "benchmarks.bench", "--variant", "tiny", "--seconds", 0, "--rounds", 1, "--batches", 1]
    command += ["--backends", *RACED, "--labels", 7, 20, "--longest", 0, "--folder", folder, "--out", out]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not partial.exists()
    found: dict[str, Any] = json.loads(out.read_text())
    assert found["records"][0] == EARLIER
    return found


def test_results_of_another_machine_are_not_gone_on_with(tmp_path: Path) -> None:
    new = {"variant": "tiny", "machine": {"cpu": "a", "cores": 2, "date": "2026-01-01"}, "records": []}
    old = {"variant": "tiny", "machine": {"cpu": "a", "cores": 2, "date": "2025-01-01"}, "records": [{"labels": 7}]}
    (tmp_path / "partial").write_text(json.dumps(old))
    assert begun(tmp_path / "partial", new) == old
    for other in ({"variant": "vit-b16"}, {"machine": {"cpu": "b", "cores": 2, "date": "2026-01-01"}}):
        with pytest.raises(UsageError, match="of another model, machine or installation; remove it"):
            begun(tmp_path / "partial", new | other)
    assert begun(None, new) == begun(tmp_path / "none", new) == new


def test_a_contender_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--backends onnx: expected some of clip, eager-as-written, eager, compile"):
        chosen("cpu", ["eager", "onnx"])


def test_the_function_s_contender_runs_without_the_kernel(
    bundle: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")  # which is put back after what the contender sets
    recognizer = Recognizer(bundle, cache_dir=False)
    vocabulary, pixels = recognizer.vocabulary(["cat", "cup", "sky"]), recognizer.pixels(photos[0])[None]
    bundle_of(tmp_path, "fp32").symlink_to(bundle)
    rows = {"label_embedding": vocabulary.label_embedding, "graph_projection": vocabulary.graph_projection}
    np.savez(vocabulary_file(tmp_path, 3), **rows)
    (native, _), (function, opened) = (
        open_pass(Cell(name, "fp32", "cpu", 3, 1), tmp_path) for name in ("onnxruntime", FUNCTION)
    )
    assert "SVFR as an ONNX function" in opened.engine.description
    assert np.abs(native(pixels) - function(pixels)).max() < 1e-6  # another order of operations


def test_every_contender_of_this_project_exists() -> None:
    for device, pairs in ((Device.CPU, ON_CPU), (Device.CUDA, ON_GPU)):
        for backend, precision in pairs:
            named = Backend.ONNXRUNTIME.value if backend == FUNCTION else backend
            assert backend not in OURS or runs(Backend(named), Precision(precision), device), (backend, precision, device)


@pytest.mark.skipif(has_provider(CUDA), reason="this onnxruntime has a CUDA provider")
def test_no_contender_needs_a_provider_that_is_not_there() -> None:
    backends = {backend for backend, _ in chosen("cuda", None)}
    assert backends >= {"eager", "compile", "compile-tiled", "torch"}
    assert not backends & {"naive-onnx", "onnxruntime"}


def test_of_the_tiled_model_one_tile_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The bodies of both stages for a whole tile and for the last one, however many labels there are."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = loaded(saved(tmp_path / "sigrl.pth", sigrl()))
    labels, pixels = torch.from_numpy(label_embeddings(3 * LABEL_TILE + 5, seed=1)), torch.zeros(1, 3, 48, 48)
    with torch.inference_mode():
        projection = model.graph_projection(labels)
        vocabulary = {"label_embedding": labels, "graph": labels, "graph_projection": projection}
        plain = model(pixels, labels, projection)
        compiled = eager_forward("compile-tiled", model, vocabulary)(pixels)
    assert torch.allclose(compiled, plain, atol=1e-6)
    assert 1 < torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


def test_every_record_has_what_the_schema_asks(results: dict[str, Any]) -> None:
    machine = results["machine"]
    assert machine["gemm_gflops"].keys() >= {"fp32", "bf16", "int8"}
    assert machine["copy_gb_per_s"] > 0
    assert machine["date"]
    assert machine["versions"]["torch"]
    measured = [record for record in results["records"] if record["labels"] == 7]
    names = {(record["backend"], record["precision"]) for record in measured}
    assert names == {("eager", "fp32")} | {("onnxruntime", name) for name in ("fp32", "int8", "int8x3", "int8-all")}
    for record in measured:
        assert record["status"] == "ok"
        assert 0 < record["p50_ms"] <= record["p90_ms"] <= record["p99_ms"]
        assert record["images_per_s"] > 0
        assert record["peak_bytes"] > 50e6
        assert record["times_floor"] > 0
        assert set(record["cold_start_ms"]) == {"start_and_import", "open", "first_picture"}


def test_scores_are_compared_with_eager_in_fp32(results: dict[str, Any]) -> None:
    for record in results["records"][1:5]:
        limit = 1e-5 if record["precision"] == "fp32" else Precision(record["precision"]).tolerance
        assert record["drift"]["score_error"] < limit
        assert record["drift"]["pictures"] == (12 if record["backend"] == "onnxruntime" else 1)


def test_every_stage_is_measured(results: dict[str, Any]) -> None:
    for record in results["records"][1:5]:
        if record["backend"] == "onnxruntime":
            assert set(record[STAGES]) == {"decode", "preprocess", "tower", "svfr", "match"}
            assert all(ms > 0 for ms in record[STAGES].values())


@pytest.mark.parametrize("unfused", [frozenset(), frozenset({"svfr"})], ids=["kernel", "function"])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.INT8X3])
def test_the_stages_of_onnx_runtime_are_the_whole_pass(
    precision: Precision, unfused: frozenset[str], export_tiny: Callable[..., Path], photos: list[Path]
) -> None:
    """What the last stage gives, from what the ones before it made, are the engine's own scores."""
    out = export_tiny(precision)
    options = EngineOptions(Backend.ONNXRUNTIME, Device.CPU, unfused=unfused)
    recognizer = Recognizer(out, options=options, cache_dir=False)
    vocabulary = recognizer.vocabulary(["cat", "cup", "sky"])
    pixels = np.stack([recognizer.pixels(path) for path in photos[:2]])
    parts = cpu_stages(out / "visual.onnx", recognizer, pixels, vocabulary)
    assert list(parts) == ["tower", "svfr", "match"]
    for part in parts.values():
        last = part()
    assert np.abs(np.stack(last) - recognizer.score_pixels(pixels, vocabulary)).max() < 1e-6


def test_a_stage_that_is_a_difference_is_not_shown() -> None:
    measured = {"decode": 1.0, "preprocess": 2.0, "tower": 30.0, "svfr": -4.5, "match": 0.5}
    record = {"backend": "onnxruntime", "precision": "fp32", "labels": 20, "batch": 1}
    old, new = stages([record | {"stages_ms": measured}]), stages([record | {STAGES: measured}])
    assert "-4.5" not in old
    assert "left out" in old
    assert "| 30.0 | -4.5 | 0.5 |" in new


def test_what_takes_too_long_is_recorded_as_not_run(results: dict[str, Any]) -> None:
    skipped = [record for record in results["records"] if record["labels"] == 20]
    assert len(skipped) == 5
    assert all(record["status"].startswith("not run: a pass would take") for record in skipped)


def test_a_contender_out_of_memory_is_recorded_as_such(tmp_path: Path) -> None:
    script = """
import numpy as np, sys
from benchmarks import measure
measure.reference = lambda *arguments: np.ones(2**50)
measure.main()
"""
    task = {
        "cell": {"backend": "eager", "precision": "fp32", "device": "cpu", "labels": 7, "batch": 1},
        "folder": str(tmp_path),
    }
    (tmp_path / "task.json").write_text(json.dumps(task | {"reference": True, "scores": "", "image_size": 80}))
    command = [sys.executable, "-c", script, str(tmp_path / "task.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert failure(done) == "out of memory", done.stderr
    done = subprocess.run(
        [sys.executable, "-c", "raise ValueError('no such thing')"], capture_output=True, text=True, check=False
    )
    assert failure(done) == "failed: ValueError: no such thing"


def test_work_is_counted_as_the_method_page_says() -> None:
    """docs/method.md, "Cost": 35 GFLOP for the ViT, 17 and 207 GFLOP and 1.6 TFLOP for SVFR."""
    assert vit_flop(VIT_B16) == pytest.approx(35e9, rel=0.02)
    for labels, flop in ((81, 17e9), (1006, 207e9), (7586, 1.6e12)):
        assert svfr_flop(VIT_B16, labels) == pytest.approx(flop, rel=0.03)
    assert least_bytes(VIT_B16, 1006, 1, 2) == pytest.approx(2 * 86e6, rel=0.15)  # the weights, mostly


def test_the_floor_is_the_larger_of_products_and_copies() -> None:
    machine = {"gemm_gflops": {"fp32": 1e3, "bf16": 1e4, "int8": 1e4}, "copy_gb_per_s": 100.0}
    whole = floor_ms(VIT_B16, 1006, 1, Precision.FP32, machine)
    assert whole == pytest.approx(35 + 207 + 1.8, rel=0.02)
    assert floor_ms(VIT_B16, 1006, 1, Precision.INT8, machine) == pytest.approx(35 + 20.7 + 1.8, rel=0.02)
    assert floor_ms(VIT_B16, 1006, 1, Precision.BF16, machine) == pytest.approx(whole / 10)
    fast = machine | {"gemm_gflops": {"bf16": 1e9, "fp32": 1e9}}
    assert floor_ms(VIT_B16, 1006, 1, Precision.BF16, fast) == pytest.approx(2 * 86e6 / 100e9 * 1e3, rel=0.2)


def test_drift_is_the_largest_error_and_the_agreement_of_the_best() -> None:
    exact = np.array([[0.9, 0.5, 0.4, 0.3, 0.2, 0.1], [0.9, 0.5, 0.4, 0.3, 0.2, 0.1]])
    got = np.array([[0.9, 0.5, 0.4, 0.3, 0.2, 0.1], [0.5, 0.91, 0.4, 0.3, 0.1, 0.2]])
    found = drift_of(exact, got)
    assert found == {"pictures": 2, "score_error": 0.41, "largest_score": 0.9, "top1": 0.5, "top5_overlap": 0.9}


def test_the_table_gives_ratios_where_both_were_measured() -> None:
    def record(backend: str, labels: int, p50: float, status: str = "ok") -> dict[str, Any]:
        measured = {"p50_ms": p50, "peak_bytes": 2e9, "times_floor": 1.5} if status == "ok" else {}
        return {"backend": backend, "precision": "fp32", "labels": labels, "batch": 1, "status": status} | measured

    records = [record("eager-as-written", 1006, 20000.0), record("eager", 1006, 8000.0), record("compile", 1006, 2500.0)]
    records += [record("onnxruntime", 1006, 1000.0)]
    records += [record(name, 7586, 0, "out of memory") for name in ("eager-as-written", "eager")]
    records += [record("onnxruntime", 7586, 7500.0)]
    lines = summary({"records": records}).splitlines()
    assert lines[-1] == "| onnxruntime, fp32 | 1000 | 7500 | 2.0 GB | 20.0× | 8.0× | 2.5× | 1.5 |"
    assert lines[0].endswith("| than eager (fp32) | than compile (fp32) | times the floor |")
    assert "| out of memory |" in lines[2]
    assert cell({"status": "not run: a pass would take about 90 s"}) == "not run"
