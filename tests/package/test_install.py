"""The package as a user of the runtime installs it: a wheel, the base dependencies, no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

PYTHON = os.environ.get("SIGRL_BASE_PYTHON")
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="SIGRL_BASE_PYTHON names no environment with the base install; `make test` does"
)


def run(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    assert PYTHON is not None
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(cwd),
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    return subprocess.run([PYTHON, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_the_base_install_has_none_of_the_export_tools(tmp_path: Path) -> None:
    names = ("torch", "onnx", "onnxscript", "open_clip", "ray", "pyarrow")
    script = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    assert run("-c", script, cwd=tmp_path).stdout.strip() == "[]"


def test_a_copied_bundle_gives_the_same_tags_without_torch(
    bundle: Path, photos: list[Path], label_file: Path, tmp_path: Path
) -> None:
    from sigrl_deploy import Recognizer

    shutil.copytree(bundle, tmp_path / "elsewhere")
    arguments = ["infer", *photos, "--bundle", "elsewhere", "--labels", label_file, "--format", "json", "--scores", "all"]
    done = run(Path(str(PYTHON)).parent / "sigrl-deploy", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    recognizer = Recognizer(bundle, cache_dir=False)
    expected = recognizer.scores(photos, recognizer.vocabulary(label_file))
    for record, row in zip(json.loads(done.stdout), expected, strict=True):
        assert max(abs(a - b) for a, b in zip(record["scores"].values(), row.tolist(), strict=True)) < 1e-5


def test_export_says_what_it_needs(tmp_path: Path) -> None:
    script = Path(str(PYTHON)).parent / "sigrl-deploy"
    (tmp_path / "model.pth").touch()
    done = run(script, "export", "onnx", "model.pth", "--out", "bundle", cwd=tmp_path)
    assert done.returncode == 2
    assert "[export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_openvino_says_what_it_needs(bundle: Path, photos: list[Path], label_file: Path, tmp_path: Path) -> None:
    arguments = ["infer", photos[0], "--bundle", bundle, "--labels", label_file, "--backend", "openvino"]
    done = run(Path(str(PYTHON)).parent / "sigrl-deploy", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "openvino is not installed" in done.stderr
    assert "[openvino]'" in done.stderr


def test_bulk_says_what_it_needs(bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    arguments = ["bulk", photos[0], "--bundle", bundle, "--out", "rows"]
    done = run(Path(str(PYTHON)).parent / "sigrl-deploy", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "ray is not installed" in done.stderr
    assert "[ray]'" in done.stderr


def test_the_wheel_carries_its_data_types_and_licence(tmp_path: Path) -> None:
    script = """
from importlib.metadata import files
print("\\n".join(str(f) for f in files("sigrl-deploy")))
"""
    names = run("-c", script, cwd=tmp_path).stdout.splitlines()
    for expected in (
        "sigrl_deploy/py.typed",
        "sigrl_deploy/data/common-labels.txt",
        "sigrl_deploy/data/labels.txt",
        "sigrl_deploy/data/photos/cat.jpg",
        "sigrl_deploy/demo/page.html",
        "sigrl_deploy/serve/page/index.html",
    ):
        assert expected in names
    assert any(name.endswith("LICENSE") for name in names)
