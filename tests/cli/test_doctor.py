"""`sigrl-deploy doctor` on this machine, and on one that is broken in ways that packages on its path can show."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from msgspec.structs import replace

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import change_manifest
from sigrl_deploy.cli.main import main
from sigrl_deploy.config import Precision
from sigrl_deploy.doctor import _bundle
from sigrl_deploy.doctor import examine as looked_at
from sigrl_deploy.extras import install_command
from sigrl_deploy.kernels.cpu.library import VARIABLE, find
from sigrl_deploy.machine.gpu import Gpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")


def examine(*arguments: str | Path, path: Path | None = None, code: int = 0) -> dict[str, Any]:
    """The JSON of a process whose packages include those of `path`, by what each finding is about."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, "-m", "sigrl_deploy", "doctor", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code, done.stderr
    report = json.loads(done.stdout)
    return {finding["about"]: finding for finding in report["backends"] + report["findings"]}


def test_it_says_what_runs_and_why_the_rest_does_not(tmp_path: Path) -> None:
    found = examine("--cache-dir", tmp_path)
    assert found["onnxruntime"]["fine"]
    assert found["openvino"]["fine"]
    assert found["torch"]["found"].endswith(", on the CPU, without the fused kernels")
    for backend in ("onnxruntime --device cuda", "onnxruntime-tensorrt", "tensorrt"):
        assert (found[backend]["fine"], found[backend]["found"]) == (False, "there is no GPU")
        assert found[backend]["command"] is None
    assert "driver is not there" in found["GPU"]["found"]
    assert found["GPU"]["found"].endswith("everything runs on the CPU")
    assert all(found[f"extra {extra}"]["fine"] for extra in ("export", "evaluate", "train"))
    assert found["tensorrt_rtx"]["fine"]
    assert str(tmp_path) in found["cache"]["found"]


def test_text_has_the_same_and_a_command_below_what_is_wrong(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", "--cache-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "  ok  onnxruntime: onnxruntime " in done.output
    assert "  --  onnxruntime --device cuda, onnxruntime-tensorrt, tensorrt: there is no GPU\n" in done.output
    assert done.output.count("GPU") == 3  # that line, and one that says it of the machine


def test_the_cpu_comes_first_with_what_int8_and_bf16_depend_on() -> None:
    found = examine()
    assert next(iter(json.loads(_said("--json"))["findings"]))["about"] == "CPU"
    cores = len(os.sched_getaffinity(0))
    assert f", {cores} core{'' if cores == 1 else 's'} for this process" in found["CPU"]["found"]
    flags = Path("/proc/cpuinfo").read_text()
    for flag in ("amx_int8", "avx512_vnni", "amx_bf16", "avx512_bf16"):
        assert (flag in found["CPU"]["found"]) == (flag in flags)
    assert "int8 products: " in found["CPU"]["found"]


def test_it_says_how_svfr_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    kernel = find()
    found = examine()["SVFR on the CPU"]
    if kernel.chosen is not None:
        assert (found["fine"], found["command"]) == (True, None)
        assert kernel.chosen.full_name in found["found"]
    monkeypatch.setenv(VARIABLE, "off")
    assert f"as an ONNX function, which is slower with many labels: {VARIABLE} is off" in examine()["SVFR on the CPU"]["found"]
    monkeypatch.setenv(VARIABLE, "sse")
    found = examine()["SVFR on the CPU"]
    assert (found["fine"], found["command"]) == (False, f"unset {VARIABLE}")
    assert f"{VARIABLE} is 'sse'" in found["found"]


def _said(*arguments: str) -> str:
    done = CliRunner().invoke(main, ["doctor", *arguments])
    assert done.exit_code == 0, done.output
    return done.output


_WITHOUT = """
import sys
sys.modules |= dict.fromkeys(["torch", "sklearn", "tensorrt", "tensorrt_rtx"])  # as if they were not installed
from sigrl_deploy.cli.main import main
main(["doctor"])
"""


def test_without_a_gpu_nothing_is_advised_that_needs_one() -> None:
    """Where no TensorRT is installed either."""
    done = subprocess.run([sys.executable, "-c", _WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("nvidia-smi", "onnxruntime-gpu", "CUDA", "tensorrt]"):
        assert word not in done.stdout
    assert install_command("evaluate") in done.stdout
    assert "not installed: scikit-learn; for sigrl-deploy evaluate" in done.stdout


def test_two_packages_of_onnxruntime_are_a_clash(tmp_path: Path) -> None:
    folder = tmp_path / "onnxruntime_gpu-1.30.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: onnxruntime-gpu\nVersion: 1.30.0\n")
    found = examine(path=tmp_path)["ONNX Runtime"]
    assert not found["fine"]
    assert "both installed and share a folder" in found["found"]
    assert found["command"].startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_a_library_that_does_not_load_is_told_from_one_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    (tmp_path / "openvino.py").write_text("raise ImportError('no TBB')")
    found = examine(path=tmp_path)["tensorrt"]
    assert not found["fine"]
    assert "does not load (libnvinfer.so.10: cannot open shared object file)" in found["found"]
    assert found["command"].startswith("pip install --force-reinstall ")
    assert "[tensorrt]" in found["command"]


def test_it_looks_at_a_bundle_s_engines(bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    assert "engines" not in examine(own)  # which are for GPUs
    done = CliRunner().invoke(main, ["export", "tensorrt", str(own), "--compute-capability", "8.9"])
    assert done.exit_code == 0, done.output
    found = examine(own)
    visual, text = Bundle(own).manifest.engines
    for record in (visual, text):
        assert found[record.file]["fine"]
        assert "for compute capability 8.9, tensorrt_rtx" in found[record.file]["found"]
        assert "intact; not tried, since there is no GPU" in found[record.file]["found"]
    (own / visual.file).write_bytes(b"?")
    (own / text.file).unlink()
    found = examine(own)
    assert "it is damaged" in found[visual.file]["found"]
    assert "it is missing" in found[text.file]["found"]
    assert found[text.file]["command"] == f"sigrl-deploy export tensorrt {own}"


def test_engines_are_advised_of_what_tensorrt_runs(bundle: Path, tmp_path: Path) -> None:
    gpu = Gpu("NVIDIA L4", "8.9", "580.65.06", "13.0", 1 << 34)
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    assert "export tensorrt" in {finding.about: finding for finding in _bundle(own, gpu)}["engines"].found
    change_manifest(own, lambda manifest: replace(manifest, variants={Precision.INT8: manifest.variants[Precision.FP32]}))
    found = {finding.about: finding for finding in _bundle(own, gpu)}
    assert found["bundle"].fine
    assert found["engines"].found == "none; TensorRT runs none of the bundle's precisions"


def test_a_bundle_that_is_broken_is_one_finding_among_others(bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    (own / "visual.onnx").write_bytes(b"?")
    found = examine(own, code=3)
    assert "visual.onnx: differs from the manifest's sha256" in found["bundle"]["found"]
    assert found["onnxruntime"]["fine"]
    for path in (tmp_path, tmp_path / "nowhere"):
        (finding,) = (finding for finding in _bundle(path, None) if finding.about == "bundle")
        assert not finding.fine
        assert finding.found.startswith(f"{path}: ")
    done = CliRunner().invoke(main, ["doctor", str(own)])
    assert done.exit_code == 3
    assert done.output.count(str(own)) == 1


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = examine("--cache-dir", tmp_path / "file" / "cache")["cache"]
    assert not found["fine"]
    assert found["command"].startswith("export SIGRL_DEPLOY_CACHE=")
    assert examine("--cache-dir", tmp_path / "not" / "yet")["cache"]["fine"]


def test_a_cache_folder_that_others_can_write_to_is_not_fine(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    (finding,) = (finding for finding in looked_at(cache).findings if finding.about == "cache")
    assert not finding.fine
    assert "other users can write to it" in finding.found
    assert finding.command is not None
    assert finding.command.startswith("chmod go-w")
