"""Engines built by TensorRT for RTX, which needs no GPU to build: by the command line, in a child process that may crash."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import onnx
import pytest
import torch
from click.testing import CliRunner, Result

import sigrl_deploy
from sigrl_deploy import Recognizer
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import change_manifest
from sigrl_deploy.cli.main import main
from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.engines.onnxruntime import TENSORRT, has_provider
from sigrl_deploy.errors import BundleError, ExportError, UsageError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.out_folder import check_out
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.machine.gpu import Gpu
from sigrl_deploy.tensorrt.build import Task, run_builder
from sigrl_deploy.tensorrt.find import find_engine
from tests.support.paths import ROOT
from tests.support.refusals import assert_refused, refused

LABELS = Path(sigrl_deploy.__file__).parent / "data" / "labels.txt"
AHEAD = ["--compute-capability", "8.0", "--compute-capability", "8.9", "--compute-capability", "12.0"]
L4 = Gpu("NVIDIA L4", "8.9", "580.65.06", "13.0", 24 << 30)


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to build engines into."""
    return Path(shutil.copytree(bundle, tmp_path / "own"))


def export(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", "tensorrt", *map(str, arguments)])


def refusal(*arguments: str | Path, code: int = 2) -> str:
    done = export(*arguments)
    assert done.exit_code == code, (done.output, done.exception)
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    return line


def command(*arguments: str | Path) -> list[str]:
    script = ROOT / "export" / "to_tensorrt.py"
    return [sys.executable, str(script), *map(str, arguments)]


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


def test_the_command_builds_both_engines_into_the_bundle(own: Path, photos: list[Path]) -> None:
    done = subprocess.run(command(own, *AHEAD), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    visual, text = done.stdout.splitlines()
    assert "visual-fp32-fused" in visual
    assert "text-fp32-inlined" in text
    assert "MB, built in" in text
    assert "for compute capability 8.0 8.9 12.0" in text
    records = Bundle(own).manifest.engines
    assert [record.key.graph for record in records] == ["visual", "text"]
    assert all((own / record.file).stat().st_size == record.size > 1e6 for record in records)
    assert records[0].key.profile.labels.most == 4096
    assert left_over(own) == []
    assert len(Recognizer(own, device="cpu", cache_dir=False).vocabulary(["cat"])) == 1  # still a bundle
    check_out(own, force=True)  # engines are part of it, for an export that replaces it


def test_what_is_there_is_kept(own: Path) -> None:
    assert export(own, *AHEAD).exit_code == 0
    before = Bundle(own).manifest.engines
    again = export(own, *AHEAD)
    assert again.exit_code == 0
    assert Bundle(own).manifest.engines == before
    assert export(own, *AHEAD, "--force").exit_code == 0
    forced = Bundle(own).manifest.engines
    assert [record.key for record in forced] == [record.key for record in before]


def test_profile_and_form_are_the_user_s(own: Path) -> None:
    assert export(own, *AHEAD, "--ops", "inlined", "--batch", 2, 4, 8, "--labels", 3, 30, 7586).exit_code == 0
    visual, text = Bundle(own).manifest.engines
    assert visual.key.ops.value == "inlined"
    assert (visual.key.profile.batch.least, visual.key.profile.batch.best, visual.key.profile.batch.most) == (2, 4, 8)
    assert text.key.profile.labels.most == 7586
    assert export(own, *AHEAD, "--ops", "inlined", "--labels", 3, 30, 7586).exit_code == 0
    assert len(Bundle(own).manifest.engines) == 3  # one text engine serves every batch


@pytest.mark.parametrize("arch", [Arch.MKT, Arch.CLIP])  # CLIP_FT has the graphs of CLIP
def test_architectures_without_a_label_graph(arch: Arch, weights: Path, without_text: dict[str, Path], tmp_path: Path) -> None:
    options = ExportOptions(weights / "sigrl.pth", tmp_path / "out", arch=arch, **without_text)
    export_bundle(replace(options, precisions=(Precision.FP16,)))
    assert export(tmp_path / "out", *AHEAD).exit_code == 0
    assert {record.key.ops.value for record in Bundle(tmp_path / "out").manifest.engines} == {"inlined"}
    assert "has no SVFR" in refusal(tmp_path / "out", *AHEAD, "--ops", "fused")


@pytest.mark.parametrize("name", ["scpnet_bundle", "biam_bundle", "ml2p_bundle", "linear_bundle"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_other_systems(name: str, precision: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    own = Path(shutil.copytree(request.getfixturevalue(name), tmp_path / "own"))
    done = export(own, *AHEAD, "--precision", precision)
    assert done.exit_code == 0, done.output
    assert [record.key.graph for record in Bundle(own).manifest.engines] == ["visual"]


def test_a_closed_vocabulary(weights: Path, bundle: Path, tmp_path: Path) -> None:
    """Its text graph takes no tokens, and engines are tuned for its number of labels."""
    labels = ["cat", "cup", "rocket"]
    embedding = Recognizer(bundle, device="cpu", cache_dir=False).vocabulary(labels).label_embedding
    torch.save(torch.from_numpy(embedding), tmp_path / "embeddings.pt")
    (tmp_path / "labels.txt").write_text("\n".join(labels))
    options = ExportOptions(weights / "sigrl.pth", tmp_path / "out", labels=tmp_path / "labels.txt")
    export_bundle(replace(options, label_embeddings=tmp_path / "embeddings.pt"))
    times = tmp_path / "times"
    arguments = [*AHEAD, "--hardware-compatible", "--workspace", "0.5", "--timing-cache", times]
    done = export(tmp_path / "out", *arguments)
    assert done.exit_code == 0, done.output
    visual, text = Bundle(tmp_path / "out").manifest.engines
    assert (visual.key.profile.labels.best, text.key.hardware_compatible) == (3, True)
    content = times.read_bytes()
    assert content
    assert export(tmp_path / "out", *arguments, "--force").exit_code == 0  # it is read, too


def test_without_a_gpu_it_asks_for_compute_capabilities(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides the GPU, where there is one
    assert "no GPU to build for" in (line := refusal(own))
    assert "--compute-capability 8.9" in line


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["--compute-capability", "89"], "expected a number such as 8.9", 2),
        (["--compute-capability", "9.0"], "builds for 8.0, 8.6, 8.9, 12.0, 12.1; for another GPU, build on a machine", 2),
        (["--compute-capability", "7.5"], "--compute-capability 7.5: tensorrt_rtx", 2),
        ([*AHEAD, "--ops", "plugin"], "tensorrt_rtx takes no plugins; use --ops fused", 2),
        ([*AHEAD, "--version-compatible"], "tensorrt_rtx builds no such engines; leave it out, or use --library tensorrt", 2),
        ([*AHEAD, "--batch", "4", "2", "8"], "--batch 4 2 8: expected three whole numbers", 2),
        (
            [*AHEAD, "--labels", "1", "2", "99999999999"],
            "--labels 1 2 99999999999: expected three",
            2,
        ),
        ([*AHEAD, "--workspace", "inf"], "--workspace inf: expected a number of gigabytes", 2),
        ([*AHEAD, "--timing-cache", str(LABELS)], "is not a timing cache", 2),
        ([*AHEAD, "--timing-cache", "/nowhere/times"], "expected a file in a folder that exists", 2),
        ([*AHEAD, "--precision", "bf16"], "--precision bf16: ", 2),
        (["--compute-capability", "8.9", "--compute-capability", "8"], "--compute-capability 8: expected a number", 2),
        ([*AHEAD, "--library", "tensorrt"], "tensorrt is not installed; pip install", 2),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(own: Path, arguments: list[str], words: str, code: int) -> None:
    assert words in refusal(own, *arguments, code=code)
    assert Bundle(own).manifest.engines == ()


def test_int8_is_left_to_onnx_runtime(own: Path) -> None:
    change_manifest(own, lambda held: msgspec.structs.replace(held, variants={Precision.INT8: held.variants[Precision.FP32]}))
    assert "holds only int8, which TensorRT does not run on cuda" in refusal(own, *AHEAD, code=3)


def task(onnx_file: Path, out: Path) -> Task:
    shapes = {"x": [[1, 4, 8, 16]] * 3}
    return Task("tensorrt_rtx", str(onnx_file), str(out), shapes, None, None, ["8.9"], False, False, None)


def save_graph(path: Path, op: str, inputs: list[str], **attributes: Any) -> None:
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, [None, 4, 8, 16])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, None)
    graph = onnx.helper.make_graph([onnx.helper.make_node(op, inputs, ["y"], **attributes)], "g", [x], [y])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)], ir_version=10), path)


def test_a_crash_of_the_builder_is_a_message(tmp_path: Path) -> None:
    """TensorRT for RTX 1.7 crashes on attention whose query, key and value are one tensor."""
    save_graph(tmp_path / "crash.onnx", "Attention", ["x", "x", "x"])
    crash = task(tmp_path / "crash.onnx", tmp_path / "x.engine")
    assert_refused(lambda: run_builder(crash, tmp_path), ExportError, "x.engine", "SIGSEGV")
    assert not (tmp_path / "x.engine").exists()


def test_a_graph_that_it_does_not_take_is_named(tmp_path: Path) -> None:
    save_graph(tmp_path / "odd.onnx", "NonMaxSuppressionOfSorts", ["x"])
    odd = task(tmp_path / "odd.onnx", tmp_path / "x.engine")
    assert_refused(lambda: run_builder(odd, tmp_path), ExportError, "x.engine", "odd.onnx", "NonMaxSuppressionOfSorts")


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    try:
        return [int(child) for thread in tasks.iterdir() for child in (thread / "children").read_text().split()]
    except OSError:
        return []


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


def test_a_builder_that_is_killed_leaves_nothing(own: Path) -> None:
    process = subprocess.Popen(command(own, *AHEAD), stderr=subprocess.PIPE, text=True)
    (child,) = wait_for(lambda: children(process.pid))
    os.kill(child, signal.SIGKILL)
    said = process.communicate()[1]
    assert process.returncode == 3
    assert "the builder was ended by SIGKILL, most likely because memory ran out" in said
    assert list(own.glob("*.engine")) == left_over(own) == []
    assert Bundle(own).manifest.engines == ()


def test_a_command_that_is_killed_takes_its_builder_along(own: Path) -> None:
    process = subprocess.Popen(command(own, *AHEAD), stderr=subprocess.DEVNULL)
    (child,) = wait_for(lambda: children(process.pid))
    process.kill()
    process.wait()
    wait_for(lambda: not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])
    (own / ".visual-fp32.engine.0123456789ab.tmp").write_bytes(b"half")  # as a killed build leaves it
    assert export(own, *AHEAD).exit_code == 0
    assert left_over(own) == []
    assert len(Bundle(own).manifest.engines) == 2


def small_files() -> None:
    """In the child: limit files to 1 MB, which fails as a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


@pytest.mark.parametrize("ops", ["inlined", "fused"])
def test_a_full_disk_is_an_error_and_leaves_nothing(own: Path, ops: str) -> None:
    """Where the engine itself is written, or the copy of the graph that it is built from."""
    run = command(own, *AHEAD, "--ops", ops)
    done = subprocess.run(run, capture_output=True, text=True, preexec_fn=small_files)
    assert done.returncode == 3, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "(File too large)" in line
    assert list(own.glob("*.engine")) == left_over(own) == []
    assert Bundle(own).manifest.engines == ()


def test_two_builds_at_once_take_turns(own: Path) -> None:
    both = [subprocess.Popen(command(own, *AHEAD), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(out.count(", kept, by") for out, _ in said) == [0, 2]
    assert sum("another process builds engines" in stderr and "is there already" in stderr for _, stderr in said) == 1
    assert len(Bundle(own).manifest.engines) == 2


def test_a_damaged_or_missing_engine_does_not_fit_and_is_built_again(own: Path) -> None:
    assert export(own, *AHEAD).exit_code == 0
    record = Bundle(own).manifest.engines[0]
    library, path = record.key.library, own / record.file

    def reasons() -> tuple[str, ...]:
        return find_engine(Bundle(own), "visual", Precision.FP32, library, L4).reasons

    assert reasons() == ()
    content = path.read_bytes()
    path.write_bytes(content[:1000] + b"?" + content[1001:])
    assert "it is damaged" in reasons()[0]
    assert len(Recognizer(own, device="cpu", cache_dir=False).vocabulary(["cat"])) == 1  # other engines run on
    path.unlink()
    assert "it is missing" in reasons()[0]
    again = export(own, *AHEAD)
    assert again.exit_code == 0
    assert reasons() == ()


def test_the_newest_engine_that_fits_is_found(own: Path) -> None:
    """Driver, graph and GPU decide; the nearest engine is the model for the one to build."""
    assert export(own, *AHEAD).exit_code == 0
    bundle = Bundle(own)
    library = bundle.manifest.engines[0].key.library
    assert find_engine(bundle, "visual", Precision.FP32, library, L4).fits == bundle.manifest.engines[0]
    nowhere = find_engine(bundle, "text", Precision.FP32, library, replace(L4, compute_capability="9.0"))
    assert nowhere.fits is None
    assert nowhere.nearest == bundle.manifest.engines[1]
    assert "built for compute capability 8.0 8.9 12.0" in nowhere.reasons[0]

    def on_a_gpu(manifest: Any) -> Any:
        built = [
            msgspec.structs.replace(
                record, key=msgspec.structs.replace(record.key, gpu=L4.name, driver="570.1", compute_capabilities=("8.9",))
            )
            for record in manifest.engines
        ]
        return msgspec.structs.replace(manifest, engines=tuple(built))

    change_manifest(own, on_a_gpu)
    search = find_engine(Bundle(own), "visual", Precision.FP32, library, L4)
    assert search.fits is None
    assert "built with driver 570.1, and this is 580.65.06" in search.reasons[0]
    assert find_engine(Bundle(own), "visual", Precision.FP32, library, replace(L4, driver="570.1")).fits is not None


def test_engines_outside_the_bundle_are_refused(own: Path) -> None:
    assert export(own, *AHEAD).exit_code == 0
    manifest = json.loads((own / "manifest.json").read_text())
    manifest["engines"][0]["file"] = "../visual.engine"
    (own / "manifest.json").write_text(json.dumps(manifest))
    assert_refused(lambda: Bundle(own), BundleError, "engines", ".file")


def test_infer_says_that_there_is_no_gpu(
    own: Path, photos: list[Path], label_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hides the GPU, where there is one
    arguments = ["infer", str(photos[0]), "--bundle", str(own), "--labels", str(label_file), "--backend"]
    for backend in ["tensorrt"] if has_provider(TENSORRT) else ["tensorrt", "onnxruntime-tensorrt"]:
        done = CliRunner().invoke(main, [*arguments, backend])
        assert done.exit_code == 2
        assert f"--backend {backend}: there is no GPU" in done.output


def test_nothing_of_the_current_folder_runs_in_the_builder(own: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("numpy", "onnx", "tensorrt_rtx"):
        (elsewhere / f"{name}.py").write_text("raise SystemExit('of the current folder')")
    done = subprocess.run(command(own, *AHEAD), capture_output=True, text=True, cwd=elsewhere)
    assert done.returncode == 0, done.stderr


def test_a_bundle_with_engines_can_be_exported_again(own: Path, weights: Path) -> None:
    """Even with engines that have no record, and leftovers of a killed build; but not with any other file."""
    assert export(own, *AHEAD).exit_code == 0
    (own / ".visual-fp32-fused-0123456789ab.engine.0123456789ab.tmp").write_bytes(b"half")
    (own / "text-fp32-inlined-0123456789ab.engine").write_bytes(b"no record")
    check_out(own, force=True)
    (own / "holiday.jpg").write_bytes(b"")
    assert_refused(lambda: check_out(own, force=True), UsageError, f"out='{own}'", "holiday.jpg")
    (own / "holiday.jpg").unlink()
    (own / "manifest.json").write_text("[]")
    assert refused(lambda: check_out(own, force=True)) == ("out", own)
