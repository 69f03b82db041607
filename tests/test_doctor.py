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

from sigrl_deploy.bundle import Bundle
from sigrl_deploy.cli import main

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")


def examine(*arguments: str | Path, path: Path | None = None) -> dict[str, Any]:
    """The JSON of a process whose packages include those of `path`, by what each finding is about."""
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, "-m", "sigrl_deploy", "doctor", "--json", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    report = json.loads(done.stdout)
    return {finding["about"]: finding for finding in report["backends"] + report["findings"]}


def test_it_says_what_runs_and_why_the_rest_does_not(tmp_path: Path) -> None:
    found = examine("--cache-dir", tmp_path)
    assert found["onnxruntime"]["fine"]
    assert found["openvino"]["fine"]
    for backend in ("onnxruntime --device cuda", "onnxruntime-tensorrt", "torch", "tensorrt"):
        assert not found[backend]["fine"]
        assert "there is no GPU" in found[backend]["found"]
    assert "driver is not there" in found["GPU"]["found"]
    assert found["tensorrt_rtx"]["fine"]
    assert str(tmp_path) in found["cache"]["found"]


def test_text_has_the_same_and_a_command_below_what_is_wrong(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", "--cache-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "  ok  onnxruntime: onnxruntime " in done.output
    assert "  --  GPU: " in done.output


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
    assert found["command"] == "pip install --force-reinstall '.[tensorrt]'"


def test_it_looks_at_a_bundle_s_engines(bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    assert f"sigrl-deploy export tensorrt {own} builds them" in examine(own)["engines"]["found"]
    done = CliRunner().invoke(main, ["export", "tensorrt", str(own), "--compute-capability", "8.9"])
    assert done.exit_code == 0, done.output
    found = examine(own)
    visual, text = Bundle(own).manifest.engines
    for record in (visual, text):
        assert found[record.file]["fine"]
        assert "for compute capability 8.9, tensorrt_rtx" in found[record.file]["found"]
        assert "whole; not tried, since there is no GPU" in found[record.file]["found"]
    (own / visual.file).write_bytes(b"?")
    (own / text.file).unlink()
    found = examine(own)
    assert "it is damaged" in found[visual.file]["found"]
    assert "it is missing" in found[text.file]["found"]
    assert found[text.file]["command"] == f"sigrl-deploy export tensorrt {own}"


def test_a_bundle_that_is_broken_is_one_finding_among_others(bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "own"))
    (own / "visual.onnx").write_bytes(b"?")
    found = examine(own)
    assert "visual.onnx: differs from the manifest's sha256" in found[f"bundle {own}"]["found"]
    assert found["onnxruntime"]["fine"]
    assert "so it is no bundle" in examine(tmp_path)[f"bundle {tmp_path}"]["found"]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = examine("--cache-dir", tmp_path / "file" / "cache")["cache"]
    assert not found["fine"]
    assert found["command"].startswith("export SIGRL_DEPLOY_CACHE=")
    assert examine("--cache-dir", tmp_path / "not" / "yet")["cache"]["fine"]
