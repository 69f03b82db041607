"""The public names: few, listed, typed, and each with an example that runs."""

from __future__ import annotations

import doctest
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sigrl_deploy
from sigrl_deploy import Precision, Recognizer
from sigrl_deploy.config import Crop
from sigrl_deploy.recognizer.thresholds import Scope, ThresholdFile
from tests.support.paths import ROOT

NAMES = [name for name in sigrl_deploy.__all__ if name != "__version__"]

PROGRAM = """
from pathlib import Path

from sigrl_deploy import ImageError, Precision, Prediction, Recognizer, Record, SigRLError, Vocabulary, __version__


def best(recognizer: Recognizer, picture: Path) -> Prediction:
    ((first, *_),) = recognizer.recognize([picture], ["cat", "cup of coffee"], top=3, evidence=True)
    return first


def run(bundle: Path, pictures: list[Path]) -> dict[str, float]:
    found: dict[str, float] = {}
    with Recognizer(bundle, device="cpu", precision=Precision.FP32) as recognizer:
        vocabulary: Vocabulary = recognizer.vocabulary("labels.txt")
        record: Record
        for record in recognizer.stream(pictures, vocabulary, batch_size=16):
            if record.error is None:
                found |= {prediction.label: prediction.score for prediction in record.predictions}
        scores = recognizer.scores(pictures, vocabulary)
        found["largest"] = float(scores.max())
        try:
            found["best"] = best(recognizer, pictures[0]).score
        except (ImageError, SigRLError) as error:
            print(error, __version__)
    return found
"""


def test_public_names_are_few_and_listed() -> None:
    assert len(sigrl_deploy.__all__) <= 13
    assert dir(sigrl_deploy) == sorted(sigrl_deploy.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_examples_run(name: str, bundle: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    for photo, copy in zip(photos, ("cat.jpg", "cup.jpg"), strict=False):
        shutil.copy(photo, tmp_path / copy)
    (tmp_path / "labels.txt").write_text("cat\ncup of coffee\nrocket\n", encoding="utf-8")
    scope = Scope("labels", 3, "model", Precision.FP32, Crop.CENTRE)
    ThresholdFile(scope, "f1", 0.1, {"cat": 0.2}).write(tmp_path / "thresholds.json")
    monkeypatch.chdir(tmp_path)
    public = getattr(sigrl_deploy, name)
    names = {known: getattr(sigrl_deploy, known) for known in NAMES} | {"recognizer": Recognizer("bundle", device="cpu")}
    examples = [test for test in doctest.DocTestFinder(recurse=True).find(public, name, globs=names) if test.examples]
    assert any(test.name == name for test in examples), f"{name} has no example"
    report: list[str] = []
    for test in examples:
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert not report, "".join(report)


def test_the_package_example_runs(bundle: Path, tmp_path: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    test_examples_run("Recognizer", bundle, photos, tmp_path, monkeypatch)
    assert doctest.testmod(sigrl_deploy, optionflags=doctest.ELLIPSIS).attempted > 0
    assert doctest.testmod(sigrl_deploy, optionflags=doctest.ELLIPSIS).failed == 0


def test_a_program_that_uses_the_package_is_typed(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run([*command, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
