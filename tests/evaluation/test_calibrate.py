"""Real runs of `sigrl-deploy calibrate`, and of the verbs that take its thresholds."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score, precision_score, recall_score

from sigrl_deploy import Recognizer
from sigrl_deploy.calibration.fitting import fit_thresholds
from sigrl_deploy.calibration.goals import parse_goal
from sigrl_deploy.config import Precision
from sigrl_deploy.datasets.opening import open_dataset
from sigrl_deploy.errors import DatasetError, LabelError, UsageError
from sigrl_deploy.evaluation.calibrate import CalibrateOptions, run_calibrate
from sigrl_deploy.evaluation.calibration_report import report
from sigrl_deploy.recognizer.thresholds import ThresholdFile, Thresholds
from tests.evaluation.conftest import LABELS
from tests.support.refusals import assert_refused, refused

SPARE = "a thing of which the folder knows nothing"


def run(verb: str, *arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sigrl_deploy", verb, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """The folder's labels in another order, one of them with a synonym, and one that it does not know."""
    path = tmp_path / "labels.toml"
    texts = [f'{{name = "{name}"}}' for name in LABELS[::-1]]
    texts[1] = '{name = "rocket", synonyms = ["space rocket"], parents = ["vehicle"]}'
    path.write_text(f'labels = [{", ".join(texts)}, "{SPARE}", {{name = "clouds", emit = false}}]\n')
    return path


@pytest.fixture
def options(data: Path, bundle: Path, labels: Path, tmp_path: Path) -> CalibrateOptions:
    return CalibrateOptions(str(data), bundle, tmp_path / "thresholds.json", labels)


def scored(data: Path, bundle: Path, labels: Path) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Scores and targets [13, 6] of the folder's labels, in its order."""
    dataset = open_dataset(str(data), "test")
    recognizer = Recognizer(bundle, device="cpu")
    names = recognizer.vocabulary(labels).labels
    scores = recognizer.scores([dataset.image(i) for i in range(len(dataset))], labels)
    targets = np.stack([dataset.targets(i) for i in range(len(dataset))])
    return scores[:, [names.index(name) for name in LABELS]], targets


def test_from_a_folder_to_decisions(data: Path, bundle: Path, labels: Path, tmp_path: Path) -> None:
    """calibrate, then infer, evaluate and verify with its file; each against figures from the scores themselves."""
    out, model = tmp_path / "thresholds.json", ["--bundle", bundle, "--labels", labels]
    shown = run("calibrate", data, *model, "--out", out, "--probabilities", "--plot-precision", tmp_path / "pr.svg").stdout
    scores, targets = scored(data, bundle, labels)
    expected = fit_thresholds(scores, targets, parse_goal("f1"))
    file = Thresholds.read(out).file
    np.testing.assert_allclose([file.thresholds[name] for name in LABELS], expected.thresholds, atol=1e-5)
    assert file.thresholds[SPARE] == file.global_threshold == pytest.approx(expected.global_threshold, abs=1e-5)
    assert file.calibration["pictures"] == 13
    assert "7 thresholds by f1, from 13 pictures" in shown
    assert SPARE in shown  # nothing is known of it
    assert "<svg" in (tmp_path / "pr.svg").read_text()

    limits = np.array([file.thresholds[name] for name in LABELS], np.float32)
    chosen = scores >= limits
    records = json.loads(run("infer", data, *model, "--thresholds", out, "--format", "json").stdout)
    for record, row in zip(records, chosen, strict=True):
        assert record["thresholds"] == "thresholds.json"
        tags = {tag["label"]: tag for tag in record["tags"]}
        assert tags.keys() - {SPARE, "vehicle"} == {LABELS[i] for i in np.flatnonzero(row)}
        assert ("vehicle" in tags) == ("rocket" in tags)
        assert all(tag["score"] >= tag["threshold"] and 0 < tag["probability"] < 1 for tag in tags.values())
        assert tags.get("vehicle", {"child": "rocket"})["child"] == "rocket"
    rows = list(csv.DictReader(io.StringIO(run("infer", data, *model, "--thresholds", out, "--format", "csv").stdout)))
    assert [row["label"] for row in rows] == [tag["label"] for record in records for tag in record["tags"]]
    assert {row["thresholds"] for row in rows} == {"thresholds.json"}

    evaluated = run("evaluate", data, *model, "--out", tmp_path / "found.json", "--thresholds", out)
    table = evaluated.stdout
    assert f"says nothing about {SPARE}: scored, not evaluated" in evaluated.stderr
    assert "was calibrated on" in evaluated.stderr
    found = json.loads((tmp_path / "found.json").read_text())["label_sets"][0]["results"][0]["at_thresholds"]
    known = targets != 0
    truth, decided = targets[known] == 1, chosen[known]
    for name, metric in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[name] == pytest.approx(metric(truth, decided))
    each = [f1_score(targets[k, c] == 1, chosen[k, c], zero_division=0) for c, k in enumerate(known.T)]
    assert found["macro_f1"] == pytest.approx(np.mean(each))
    assert "macro-F1" in table
    assert f"{100 * found['f1']:.2f}" in table


def test_which_labels_flip(data: Path, export_tiny: Callable[..., Path], labels: Path, tmp_path: Path) -> None:
    """Each label's threshold is put where the score of one picture crosses it by the rounding of fp16."""
    bundle = Path(shutil.copytree(export_tiny(Precision.FP32, Precision.FP16), tmp_path / "bundle"))  # verify writes into it
    exact, rounded = (Recognizer(bundle, device="cpu", precision=p) for p in ("fp32", "fp16"))
    pictures = sorted(data.glob("*.png"))
    a, b = (recognizer.scores(pictures, labels) for recognizer in (exact, rounded))
    names = exact.vocabulary(labels).labels
    thresholds = np.maximum(a, b)[np.abs(a - b).argmax(axis=0), range(len(names))]
    scope = exact.scope(exact.vocabulary(labels))
    out = tmp_path / "thresholds.json"
    ThresholdFile(scope, "f1", 0.0, dict(zip(names, thresholds.tolist(), strict=True))).write(out)
    shown = run("verify", bundle, *pictures, "--labels", labels, "--thresholds", out, "--backend", "onnxruntime").stdout
    assert "scores across the thresholds of thresholds.json" in shown
    line = next(line for line in shown.splitlines() if line.startswith("Across in fp16 ONNX Runtime"))
    flipped = np.count_nonzero((a >= thresholds) != (b >= thresholds), axis=0)
    assert flipped.all()
    for name, count in zip(names, flipped, strict=True):
        assert f"{name} {count}×" in line


def test_without_truth_so_many_labels_pass(photos: list[Path], bundle: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(LABELS))
    options = CalibrateOptions(str(photos[0].parent), bundle, tmp_path / "thresholds.json", labels, tags_per_picture=2.5)
    found = run_calibrate(options)
    tags = Recognizer(bundle, device="cpu").recognize(photos, labels, thresholds=options.out)
    assert sum(map(len, tags)) == round(2.5 * len(photos))
    assert "6 thresholds by tags-per-picture@2.5, from 4 pictures" in report(found)
    assert (found.validation, found.unknown) == (None, ())


@pytest.mark.parametrize("crop", ["pad", "tiles"])
def test_thresholds_for_other_crops(options: CalibrateOptions, data: Path, crop: str) -> None:
    run_calibrate(replace(options, crop=crop))
    recognizer = Recognizer(options.bundle, device="cpu", crop=crop)
    pictures, vocabulary = sorted(data.glob("*.png")), recognizer.vocabulary(options.labels)
    limits = Thresholds.read(options.out).limits(recognizer.scope(vocabulary), vocabulary)
    tags = recognizer.recognize(pictures, vocabulary, thresholds=options.out)
    passing = (recognizer.scores(pictures, vocabulary) >= limits).sum(axis=1)
    assert [len([tag for tag in each if tag.child is None]) for each in tags] == passing.tolist()


def test_what_the_report_says_of_single_labels(options: CalibrateOptions) -> None:
    shown = report(run_calibrate(options))
    assert "Fewer than 10 pictures show rocket, person, night sky, cup of coffee, cat" in shown
    assert "No picture shows unicorn: the threshold for all labels is taken." in shown
    assert f"says nothing about {SPARE}" in shown
    assert shown.count("unicorn") == 2  # once in the table of labels


def test_what_cannot_be_calibrated(options: CalibrateOptions, data: Path, photos: list[Path], tmp_path: Path) -> None:
    def refusal(**changed: Any) -> tuple[str, object]:
        return refused(lambda: run_calibrate(replace(options, **changed)))

    assert refusal(metric="precision@2") == ("metric", "precision@2")
    assert refusal(out=tmp_path / "thresholds.txt") == ("out", tmp_path / "thresholds.txt")
    assert refusal(out=tmp_path / "gone" / "thresholds.json") == ("out", tmp_path / "gone" / "thresholds.json")
    assert refusal(plot_precision=tmp_path / "plot.pdf") == ("plot_precision", tmp_path / "plot.pdf")
    same = tmp_path / "plot.png"
    assert refusal(plot_precision=same, plot_reliability=same, probabilities=True) == ("plot_precision", same)
    assert refusal(out=options.bundle / "manifest.json", overwrite=True) == ("out", options.bundle / "manifest.json")
    assert refusal(plot_reliability=tmp_path / "plot.png") == ("plot_reliability", None)
    assert refusal(probabilities=True, tags_per_picture=2.0) == ("probabilities", None)
    assert refusal(metric="recall@0.8", tags_per_picture=2.0) == ("metric", "recall@0.8")
    assert refusal(tags_per_picture=7.0) == ("tags_per_picture", 7.0)
    pictures = str(photos[0].parent)
    assert_refused(lambda: run_calibrate(replace(options, source=pictures)), DatasetError, pictures, "tags_per_picture")
    (tmp_path / "labels.txt").write_text("gnu\nyak\n")
    strangers = replace(options, labels=tmp_path / "labels.txt")
    assert_refused(lambda: run_calibrate(strangers), LabelError, "labels.txt", "'gnu'", str(data))
    (data / "labels.csv").write_text("path,cat,rocket\n00.png,0,\n01.png,,0\n")
    assert_refused(lambda: run_calibrate(options), DatasetError, "no picture shows any of the labels")
    (data / "labels.csv").write_text("path,cat,rocket\n")
    assert_refused(lambda: run_calibrate(options), UsageError, "no picture")
    options.out.write_text("{}")
    assert refusal() == ("out", options.out)
    assert options.out.read_text() == "{}"
