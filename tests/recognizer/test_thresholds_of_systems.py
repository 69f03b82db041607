"""Files of thresholds with architectures that do not compare labels: one label's threshold holds beside any others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from sigrl_deploy import Recognizer
from sigrl_deploy.calibration.probabilities import Platt
from sigrl_deploy.config import Crop, Precision
from sigrl_deploy.errors import LabelError, UsageError
from sigrl_deploy.labels.label_set import Label, LabelSet, Match
from sigrl_deploy.recognizer.thresholds import Scope, ThresholdFile, Thresholds
from tests.support import ml2p_files, scpnet_files, vgg_files
from tests.support.refusals import assert_refused

BUNDLES = {
    "scpnet_bundle": (scpnet_files.LABELS, {"sparse_topk": 6, "reweight": 0.2, "scale": 10.0}, {"scale": "clip"}),
    "biam_bundle": (vgg_files.BIAM_LABELS, {"heads": 3}, {"heads": 6}),
    "ml2p_bundle": (ml2p_files.LABELS, {"raw_vectors": False}, {"raw_vectors": True}),
}


@pytest.fixture(params=BUNDLES)
def case(request: pytest.FixtureRequest) -> tuple[Recognizer, tuple[str, ...], dict[str, object], dict[str, object]]:
    labels, settings, others = BUNDLES[request.param]
    return Recognizer(request.getfixturevalue(request.param), device="cpu", cache_dir=False), labels, settings, others


Case = tuple[Recognizer, tuple[str, ...], dict[str, object], dict[str, object]]


def thresholds(recognizer: Recognizer, labels: tuple[str, ...], photos: list[Path], path: Path) -> dict[str, float]:
    """A file of each label's median score over the photos."""
    middle = np.median(recognizer.scores(photos, list(labels)), axis=0).tolist()
    scope = recognizer.scope(recognizer.vocabulary(list(labels)))
    found = dict(zip(labels, middle, strict=True))
    ThresholdFile(scope, "f1", 0.0, found, probabilities=Platt(a=3.0, b=-0.5)).write(path)
    return found


def test_some_of_the_labels(case: Case, photos: list[Path], tmp_path: Path) -> None:
    recognizer, labels, *_ = case
    path, some = tmp_path / "thresholds.json", labels[3:0:-1]
    limits = thresholds(recognizer, labels, photos, path)
    scores = recognizer.scores(photos, list(labels))
    found = recognizer.recognize(photos, list(some), thresholds=path)
    for tags, row in zip(found, scores, strict=True):
        passing = {label for label in some if row[labels.index(label)] >= np.float32(limits[label]) * (1 - 1e-6)}
        assert {tag.label for tag in tags} <= passing  # but for rounding of a sum over other rows
        assert all(tag.probability == pytest.approx(1 / (1 + np.exp(0.5 - 3 * tag.score)), abs=1e-6) for tag in tags)
    assert sum(map(len, found)) >= len(some)
    with_background = LabelSet((Label(some[0], threshold=-9.0), *map(Label, some[1:])), background="bundle")
    for tags in recognizer.recognize(photos, with_background, thresholds=path):
        assert some[0] in {tag.label for tag in tags}
    fewer = thresholds(recognizer, some, photos, path)
    assert_refused(
        lambda: recognizer.recognize(photos, list(labels), thresholds=path), UsageError, "no threshold", repr(labels[0])
    )
    own = [Label(label, threshold=None if label in some else 9.0) for label in labels]
    for tags in recognizer.recognize(photos, own, thresholds=path):
        assert {tag.label for tag in tags if tag.label not in some} == set()
    rescaled = recognizer.vocabulary(list(labels))
    every = Thresholds.read(path, rescale=True).limits(recognizer.scope(rescaled), rescaled)
    np.testing.assert_array_equal(every, np.float32([fewer.get(label, 0.0) for label in labels]))  # as they are


def test_other_wordings_are_refused(biam_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    recognizer = Recognizer(biam_bundle, device="cpu", cache_dir=False)
    labels, path = vgg_files.BIAM_LABELS, tmp_path / "thresholds.json"
    thresholds(recognizer, labels, photos, path)
    worded = [Label("cat", ("dog",), match=Match.ANY), "tree"]
    with pytest.raises(UsageError) as raised:
        recognizer.recognize(photos, worded, thresholds=path)
    assert "depends on all labels" not in str(raised.value)


def test_settings_that_no_file_shows(case: Case) -> None:
    """The same files exported with another setting give other scores."""
    recognizer, labels, settings, others = case
    manifest, vocabulary = recognizer.bundle.manifest, recognizer.vocabulary(list(labels))
    assert manifest.source["settings"] == settings
    changed = replace(manifest, source=manifest.source | {"settings": settings | others})
    models = [Scope.of(m, Precision.FP32, Crop.CENTRE, vocabulary).model for m in (manifest, changed)]
    assert models[0] != models[1]


def test_the_order_of_labels_makes_another_model(scpnet_bundle: Path) -> None:
    """It says which row of the checkpoint is which label's."""
    manifest = Recognizer(scpnet_bundle, device="cpu", cache_dir=False).bundle.manifest
    assert manifest.source["labels"]["file"] == "labels.txt"


def test_rows_of_a_classifier_are_not_averaged(linear_bundle: Path, photos: list[Path]) -> None:
    recognizer = Recognizer(linear_bundle, device="cpu", cache_dir=False)
    both = Label("cat", ("rocket",))
    assert_refused(lambda: recognizer.vocabulary([both, "label 2"]), LabelError, "cat", "any", "linear")
    scores = recognizer.scores(photos[:1], [replace(both, match=Match.ANY), "label 2"])
    apart = recognizer.scores(photos[:1], ["cat", "rocket"])
    np.testing.assert_allclose(scores[0, 0], apart.max(), rtol=1e-6)


def test_a_background_that_a_closed_bundle_does_not_know(scpnet_bundle: Path) -> None:
    recognizer = Recognizer(scpnet_bundle, device="cpu", cache_dir=False)
    labels = LabelSet((Label("cat"), Label("dog")), background="common")
    with pytest.raises(LabelError) as raised:
        recognizer.vocabulary(labels)
    assert (raised.value.argument, raised.value.value) == ("background", "common")
