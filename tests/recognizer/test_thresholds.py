"""Files of thresholds: what they decide, and what they are not used with."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from sigrl_deploy import Recognizer
from sigrl_deploy.calibration.probabilities import Platt
from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.errors import UsageError
from sigrl_deploy.export.parity import LABELS
from sigrl_deploy.labels.label_set import Label, LabelSet
from sigrl_deploy.labels.names import read_labels
from sigrl_deploy.recognizer.thresholds import ThresholdFile, Thresholds
from tests.support.refusals import assert_refused, refused

NAMES = read_labels(LABELS)[:17]


@pytest.fixture(scope="module")
def recognizer(bundle: Path) -> Recognizer:
    return Recognizer(bundle, device="cpu")


@pytest.fixture
def file(recognizer: Recognizer, photos: list[Path]) -> ThresholdFile:
    """The median score of each label over the photos, except the last label, which takes the global threshold."""
    middle = np.median(recognizer.scores(photos, NAMES), axis=0)
    thresholds = dict(zip(NAMES[:-1], middle[:-1].tolist(), strict=True))
    scope = recognizer.scope(recognizer.vocabulary(NAMES))
    return ThresholdFile(scope, "f1", -2.0, thresholds, probabilities=Platt(a=3.0, b=-0.5))


@pytest.fixture
def path(file: ThresholdFile, tmp_path: Path) -> Path:
    file.write(tmp_path / "thresholds.json")
    return tmp_path / "thresholds.json"


def test_each_label_is_decided_by_its_own_threshold(
    recognizer: Recognizer, photos: list[Path], file: ThresholdFile, path: Path
) -> None:
    scores = recognizer.scores(photos, NAMES)
    limits = np.array([*file.thresholds.values(), -2.0], np.float32)
    found = recognizer.recognize(photos, NAMES, thresholds=path)
    for tags, row in zip(found, scores, strict=True):
        assert {tag.label for tag in tags} == {NAMES[i] for i in np.flatnonzero(row >= limits)}
        assert [tag.threshold for tag in tags] == [limits[NAMES.index(tag.label)] for tag in tags]
        for tag in tags:
            assert tag.probability == pytest.approx(1 / (1 + np.exp(0.5 - 3 * tag.score)), abs=1e-6)  # in fp32
    assert max(map(len, found)) > 5  # the number of tags is not bounded, unless asked for
    assert max(len(tags) for tags in recognizer.recognize(photos, NAMES, thresholds=path, top=4)) == 4
    streamed = [record.predictions for record in recognizer.stream(photos, NAMES, thresholds=Thresholds.read(path))]
    assert streamed == [tuple(tags) for tags in found]


def test_the_order_of_labels_changes_nothing(recognizer: Recognizer, photos: list[Path], path: Path) -> None:
    (tags,) = recognizer.recognize(photos[:1], NAMES, thresholds=path)
    (turned,) = recognizer.recognize(photos[:1], NAMES[::-1], thresholds=path)
    assert {tag.label for tag in tags} == {tag.label for tag in turned}


def test_a_threshold_in_the_label_file_goes_before_the_files(recognizer: Recognizer, photos: list[Path], path: Path) -> None:
    labels = [Label(name, threshold=9.0 if name == NAMES[-1] else None) for name in NAMES]
    (tags,) = recognizer.recognize(photos[:1], labels, thresholds=path)
    (others,) = recognizer.recognize(photos[:1], NAMES, thresholds=path)
    assert {tag.label for tag in others} - {tag.label for tag in tags} == {NAMES[-1]}


def test_other_labels_are_refused_or_scaled(recognizer: Recognizer, photos: list[Path], path: Path) -> None:
    more = (*NAMES, "one more thing")
    assert_refused(
        lambda: recognizer.recognize(photos, more, thresholds=path),
        UsageError,
        str(path),
        "'one more thing'",
        "rescale_thresholds",
    )
    with_background = LabelSet(tuple(map(Label, NAMES)), background="common")
    assert_refused(lambda: recognizer.recognize(photos, with_background, thresholds=path), UsageError, "another background")
    assert_refused(
        lambda: recognizer.recognize(photos, [Label(NAMES[0], ("synonym",)), *NAMES[1:]], thresholds=path),
        UsageError,
        "other synonyms",
    )
    rescaled = Thresholds.read(path, rescale=True)
    vocabulary = recognizer.vocabulary(more)
    limits = rescaled.limits(recognizer.scope(vocabulary), vocabulary)
    own = np.array([*rescaled.file.thresholds.values(), -2.0, -2.0])
    np.testing.assert_allclose(limits, own * np.sqrt(17 / 18), rtol=1e-6)
    (tags,) = recognizer.recognize(photos[:1], more, thresholds=rescaled)
    assert {tag.probability for tag in tags} == {None}  # the curve is about the scores of the other labels


def test_another_model_precision_or_crop_is_refused(
    export_tiny: Callable[..., Path], bundle: Path, path: Path, photos: list[Path]
) -> None:
    mkt = Recognizer(export_tiny(checkpoint="mkt", arch=Arch.MKT), device="cpu")
    assert_refused(lambda: mkt.recognize(photos, NAMES, thresholds=path), UsageError, str(path), "another bundle")
    both = Recognizer(export_tiny(Precision.FP32, Precision.FP16), device="cpu", precision="fp16")
    assert_refused(lambda: both.recognize(photos, NAMES, thresholds=path), UsageError, "precision='fp32'")
    same = Recognizer(export_tiny(Precision.FP32, Precision.FP16), device="cpu", precision="fp32")
    assert same.recognize(photos[:1], NAMES, thresholds=path)  # the same checkpoint, exported with more precisions
    padded = Recognizer(bundle, device="cpu", crop="pad")
    assert_refused(lambda: padded.recognize(photos, NAMES, thresholds=path), UsageError, "crop='centre'")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda values: values | {"version": 2}, "version"),
        (lambda values: {name: value for name, value in values.items() if name != "scope"}, "scope"),
        (lambda values: values | {"global_threshold": "high"}, "global_threshold"),
        (lambda values: values | {"thresholds": {"cat": None}}, "thresholds"),
        (lambda values: values | {"odd": 1}, "odd"),
        (lambda values: values | {"probabilities": {"type": "isotonic", "x": [1, 0], "y": [0, 1]}}, "x"),
        (lambda values: [values], "version"),
    ],
)
def test_damaged_files_are_refused(path: Path, change: Callable[[object], object], fact: str) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    assert_refused(lambda: Thresholds.read(path), UsageError, str(path), fact, "calibrate")


def test_files_that_are_no_json(path: Path, tmp_path: Path) -> None:
    assert refused(lambda: Thresholds.read(tmp_path / "gone.json")) == ("thresholds", tmp_path / "gone.json")
    path.write_text("[" * 100_000)
    assert_refused(lambda: Thresholds.read(path), UsageError, str(path))
    path.write_bytes(b"\xff\xfe")
    assert_refused(lambda: Thresholds.read(path), UsageError, str(path))


@pytest.mark.parametrize("wrong", [0.3, True, {"cat": 0.1}])
def test_what_is_no_file(recognizer: Recognizer, photos: list[Path], wrong: object) -> None:
    assert refused(lambda: recognizer.recognize(photos, NAMES, thresholds=wrong)) == ("thresholds", None)  # type: ignore[arg-type]


def test_one_threshold_and_a_file_of_them(recognizer: Recognizer, photos: list[Path], path: Path) -> None:
    assert refused(lambda: recognizer.recognize(photos, NAMES, threshold=0.1, thresholds=path)) == ("threshold", None)


def test_what_is_written_reads_back(file: ThresholdFile, path: Path) -> None:
    assert Thresholds.read(path).file == file
    with_facts = msgspec.structs.replace(file, calibration={"pictures": 4, "source": "Ж"})
    with_facts.write(path)
    assert replace(Thresholds.read(path), path=Path()).file == with_facts
