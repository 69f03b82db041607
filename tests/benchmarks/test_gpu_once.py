"""The measurements of a GPU, rehearsed on a CPU: every section gives results or a reason, and one failure loses only itself."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import report
from benchmarks.gpu.compiling import in_children
from benchmarks.gpu.kernel_errors import poisoned
from benchmarks.gpu.run import NotRunError, Run
from benchmarks.gpu_once import SECTIONS
from sigrl_deploy.config import Precision
from tests.support.paths import ROOT
from tests.support.processes import misbehave

# What a CPU cannot show. All else must have been measured.
ONLY_ON_A_GPU = [("ncu", "all of it", "not run: only on a GPU")]


def gpu_once(out: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.gpu_once", "--out", str(out), "--device", "cpu"]
    done = subprocess.run([*command, "--variant", "tiny", *options], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((out / "rehearsal.json").read_text())
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One rehearsal, of all sections, with the files it left."""
    out = tmp_path_factory.mktemp("gpu")
    found = gpu_once(out)
    return found | {"files": sorted(path.name for path in out.iterdir())}


def test_every_section_gives_results_or_a_reason(results: dict[str, Any]) -> None:
    assert list(results["sections"]) == list(SECTIONS)
    left_out = [(entry["section"], entry["what"], entry["reason"]) for entry in results["left_out"]]
    assert left_out == ONLY_ON_A_GPU
    assert len(results["files"]) <= 6
    assert results["ceilings"]
    assert results["tests"]["status"] == "exit status 0"
    assert results["tests"]["counts"]["passed"] > 0


def test_kernels_are_as_exact_as_the_rule_asks(results: dict[str, Any]) -> None:
    errors = results["errors"]
    assert {entry["kernel"] for entry in errors} >= {"svfr.decouple", "svfr.reconstruct", "match", "gmc 32"}
    for entry in errors:
        assert entry["within twice plain"], entry
        assert (entry["differ"], entry["failed"]) == ([], {}), entry
    assert results["compiled"]["failed"] == []


def test_passes_have_records_that_the_report_reads(results: dict[str, Any]) -> None:
    records = results["records"]
    ours = [r for r in records if r["backend"] == "torch" and r["batch"] == 1]
    assert [r["precision"] for r in ours] == ["bf16", "fp16", "fp32"]
    peers = {"eager", "eager-as-written", "compile", "compile-graph", "torch-from-host"}
    assert {r["backend"] for r in records} == {"torch", *peers}
    for record in records:
        assert record["status"] == "ok", record
        assert 0 < record["p50_ms"] <= record["p99_ms"]
        assert record["times_floor"] > 0
        limit = 1e-5 if record["precision"] == "fp32" else Precision(record["precision"]).tolerance
        assert record.get("drift", {"score_error": 0})["score_error"] < limit, record
    assert "drift" in ours[0]


def test_stages_are_compared_with_the_whole(results: dict[str, Any]) -> None:
    found = {entry["stage"]: entry["us"] for entry in results["stages"]}
    parts = [us for name, us in found.items() if name not in ("sum", "whole", "pixels to the GPU")]
    assert len(parts) >= 3
    assert sum(parts) == pytest.approx(found["sum"], rel=1e-3)
    assert found["whole"] > 0


def test_what_does_not_fit_is_left_out_with_its_reason(tmp_path: Path) -> None:
    found = gpu_once(tmp_path, "--seconds", "5")
    late = [entry for entry in found["left_out"] if entry["section"] == "own_tests"]
    assert late[0]["reason"].startswith("not run: 0 s were left")
    assert list(found["sections"]) == list(SECTIONS)


def test_sections_are_added_to_a_file(tmp_path: Path, results: dict[str, Any]) -> None:
    earlier = {name: value for name, value in results.items() if name != "files"} | {"ceilings": {"kept": 1}}
    (tmp_path / "rehearsal.json").write_text(json.dumps(earlier))
    found = gpu_once(tmp_path, "--sections", "ncu")
    assert found["ceilings"] == {"kept": 1}
    assert found["records"] == results["records"]
    assert [entry["section"] for entry in found["left_out"]] == ["ncu"]


def test_what_follows_a_lost_gpu_runs_in_another_process(tmp_path: Path) -> None:
    script = """
import sys
from benchmarks import gpu_once
from benchmarks.gpu import sections
from benchmarks.gpu.run import GpuLostError

def lose(run):
    run.add("records", {"backend": "torch"})
    raise GpuLostError("an illegal memory access")

sections.SECTIONS["passes"] = lose
gpu_once.main()
"""
    options = ["--out", str(tmp_path), "--device", "cpu", "--variant", "tiny", "--sections", "passes", "ncu"]
    done = subprocess.run([sys.executable, "-c", script, *options], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "rehearsal.json").read_text())
    assert found["records"] == [{"backend": "torch"}]
    assert [(entry["section"], entry["reason"]) for entry in found["left_out"]] == [
        ("passes", "the GPU was lost: an illegal memory access"),
        ("ncu", "not run: only on a GPU"),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run("cpu", "tiny", tmp_path / "results.json", 30, {"left_out": [], "sections": {}})


def test_a_measurement_that_fails_loses_only_itself(run: Run) -> None:
    def section(run: Run) -> None:
        run.attempt("first", lambda: 1 / 0)
        run.attempt("second", lambda: run.add("records", {"backend": "torch"}))
        run.attempt("third", _refuse)
        raise torch.OutOfMemoryError("no room")

    run.section("passes", section)
    reasons = [(entry["what"], entry["reason"]) for entry in run.results["left_out"]]
    assert reasons == [
        ("first", "failed: ZeroDivisionError: division by zero"),
        ("third", "not run: has no such thing"),
        ("all of it", "out of memory"),
    ]
    assert json.loads(run.path.read_text())["records"] == [{"backend": "torch"}]


def _refuse() -> None:
    raise NotRunError("has no such thing")


def test_a_measurement_that_does_not_end_is_stopped(tmp_path: Path) -> None:
    run = Run("cpu", "tiny", tmp_path / "results.json", 8, {"left_out": [], "sections": {}})

    def section(run: Run) -> None:
        run.attempt("endless", lambda: time.sleep(60))
        run.attempt("next", lambda: run.add("records", {}))

    run.section("passes", section)
    assert run.results["left_out"][0]["reason"] == "not run: the time was over"
    assert "records" not in run.results


def test_a_candidate_takes_only_its_process_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.compiling.LONGEST", 5)
    work = {"a": "", "b": "dies", "c": "loses the GPU", "d": "hangs", "e": "", "f": "fails"}
    failed = in_children(list(work), misbehave, work, 1, lambda: 100.0)
    assert failed == {
        "b": "its process died", "c": "loses the GPU", "d": "did not end in 5 s", "f": "fails"
    }  # fmt: skip


def test_what_a_kernel_leaves_unwritten_is_nan() -> None:
    with poisoned():
        assert torch.empty(7).isnan().all()
        assert torch.empty(7, dtype=torch.bfloat16).isnan().all()


@pytest.fixture
def with_gpu(results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Has the report see the rehearsal as a GPU's results, beside the CPU's."""

    def put() -> None:
        machine = results["machine"] | {"gpu": {"name": "NVIDIA X"}}
        (tmp_path / "x.json").write_text(json.dumps(results | {"machine": machine}))

    (tmp_path / "cpu.json").write_text((ROOT / "benchmarks" / "results" / "cpu.json").read_text())
    monkeypatch.setattr("benchmarks.tables.RESULTS", tmp_path)
    return put


def rows(readme: str) -> list[str]:
    """Of the README's table."""
    return [line for line in readme.split(report.BEGIN)[1].split(report.END)[0].splitlines() if line.startswith("| ")][2:]


def test_readme_and_page_have_a_gpu_s_results_when_there_are_any(with_gpu: Callable[[], None]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, page_before = rows(report.with_tables(readme)), report.page()
    assert "no GPU's results are among them" in page_before
    with_gpu()
    after, page = rows(report.with_tables(readme)), report.page()
    assert "no GPU's results" not in page
    assert "NVIDIA X (matrix products in TFLOP/s" in page
    assert after[: len(before)] == before  # the CPU's rows are what they were
    assert [row.split(":")[0] for row in after[len(before) :]] == ["| X", "| X"]
    assert len(after) <= 5
    for title in (
        "Stages on the GPU, µs",
        "Kernels",
        "Errors of kernels",
        "What the GPU can do",
        "`pytest -m gpu`",
        "Not measured",
    ):
        assert f"### {title}\n" in page
