"""The README says what is so: its table comes from the results file, and its Python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def test_the_table_is_what_the_results_file_says() -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.report", "--check"], check=True, cwd=ROOT)


def test_the_python_example_runs(bundle: Path, photos: list[Path], label_file: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "labels.txt").symlink_to(label_file)
    for name, photo in zip(("cat.jpg", "cup.jpg"), photos, strict=False):
        (tmp_path / name).symlink_to(photo)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(5, 5)") == 10


def test_every_option_that_the_readme_names_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    option = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
    known: set[str] = set()
    for command in (
        ["infer"],
        ["export", "onnx"],
        ["export", "tensorrt"],
        ["labels", "build"],
        ["train"],
        ["evaluate"],
        ["demo"],
        ["doctor"],
        ["verify"],
    ):
        arguments = [sys.executable, "-m", "sigrl_deploy", *command, "--help"]
        known |= set(option.findall(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout))
    named = set(option.findall(readme)) - {"--force-reinstall", "--no-deps", "--count"}  # pip's, and the fuzz's
    assert named
    assert named <= known
