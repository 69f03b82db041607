"""Label sets in the recognizer: synonyms, templates, background, parents and thresholds, against plain lists of labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sigrl_deploy import Recognizer
from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.checkpoints.eager import load_eager
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.errors import LabelError, UsageError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.parity import LABELS
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.labels.label_set import Label, LabelSet, Match
from sigrl_deploy.labels.names import read_labels
from sigrl_deploy.recognizer.recognizer import _advise_more_labels
from tests.support.refusals import assert_refused

TOLERANCE = 1e-5  # fp32 scores within ±1, of one graph run in another order
OTHERS = read_labels(LABELS)[:11]


@pytest.fixture(scope="module")
def recognizer(export_tiny: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    return Recognizer(export_tiny(labels=LABELS), device="cpu", cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def without_tower(weights: Path, without_text: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    folder = tmp_path_factory.mktemp("without-tower") / "bundle"
    export_bundle(ExportOptions(weights / "sigrl.pth", folder, **without_text))
    return Recognizer(folder, device="cpu")


def mean_of_directions(rows: FloatArray) -> FloatArray:
    """Written anew: the sum of unit vectors over their number, times the mean length."""
    lengths = [float(np.sqrt((row.astype(np.float64) ** 2).sum())) for row in rows]
    unit = sum(row.astype(np.float64) / length for row, length in zip(rows, lengths, strict=True))
    return np.asarray(unit / len(rows) * (sum(lengths) / len(lengths)), np.float32)


def test_synonyms_become_one_row(recognizer: Recognizer) -> None:
    alone = recognizer.vocabulary(["sofa", "couch", "settee"]).label_embedding
    labels = LabelSet((Label("sofa", synonyms=("settee", "couch")), Label("tree")))
    found = recognizer.vocabulary(labels)
    assert (found.labels, found.label_embedding.shape) == (("sofa", "tree"), (2, alone.shape[1]))
    # Values of some tens, in fp32.
    np.testing.assert_allclose(found.label_embedding[0], mean_of_directions(alone), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.label_embedding[1], recognizer.vocabulary(["tree"]).label_embedding[0])
    other_order = recognizer.vocabulary(LabelSet((Label("tree"), Label("sofa", synonyms=("couch", "settee")))))
    assert other_order.digest == found.digest
    np.testing.assert_array_equal(other_order.label_embedding, found.label_embedding[::-1])


def test_a_synonym_more_encodes_one_text(recognizer: Recognizer, caplog: pytest.LogCaptureFixture) -> None:
    labels = [Label(name, synonyms=(f"{name} close up", f"small {name}")) for name in OTHERS]
    recognizer.vocabulary(labels)
    more = [
        Label("newcomer" if i == 3 else label.name, (*label.synonyms, *["odd one"] * (i == 5)))
        for i, label in enumerate(labels)
    ]
    with caplog.at_level("DEBUG", logger="sigrl_deploy"):
        recognizer.vocabulary(more)
        recognizer.vocabulary(labels)
        recognizer.vocabulary(OTHERS)
    assert [line for line in caplog.messages if line.startswith("encoding")] == [
        "encoding 2 of 34 texts, which are not in the cache",
        "encoding 0 of 11 texts, which are not in the cache",
    ]


def test_templates_take_the_place_of_the_bundles(recognizer: Recognizer, weights: Path) -> None:
    """Against the checkpoint in PyTorch, loaded with each template as its own."""
    templates = ("a drawing of a {label}", "{label}!")
    checkpoint, text = weights / "sigrl.pth", str(weights / "text.pth")
    rows = [load_eager(CheckpointOptions(checkpoint, text_tower=text, template=t)).vocabulary(["cat"]) for t in templates]
    expected = mean_of_directions(np.concatenate([row.label_embedding for row in rows]))
    found = recognizer.vocabulary(LabelSet((Label("cat"), Label("dog", templates=("{label}!",))), templates=templates))
    np.testing.assert_allclose(found.label_embedding[0], expected, rtol=1e-4, atol=1e-4)
    own = recognizer.vocabulary([Label("dog", templates=("{label}!",)), "cat"])
    np.testing.assert_array_equal(own.label_embedding[0], found.label_embedding[1])
    assert recognizer.vocabulary(LabelSet((Label("cat"),), templates=("There is a {label} in the scene",))).digest == (
        recognizer.vocabulary(["cat"]).digest
    )


def test_any_takes_the_best_of_rows_that_stand_apart(recognizer: Recognizer, photos: list[Path]) -> None:
    names = ["crane bird", "crane", "tower crane", *OTHERS]
    plain = recognizer.scores(photos, names)
    apart = Label("crane", synonyms=("crane bird", "tower crane"), match=Match.ANY)
    found = recognizer.scores(photos, [apart, *OTHERS])
    assert found.shape == (len(photos), 1 + len(OTHERS))
    np.testing.assert_allclose(found[:, 0], plain[:, :3].max(axis=1), atol=TOLERANCE)
    np.testing.assert_allclose(found[:, 1:], plain[:, 3:], atol=TOLERANCE)
    # Its evidence is that of the row that scored best.
    vocabulary = recognizer.vocabulary([apart, *OTHERS])
    tags = recognizer.recognize(photos[:1], vocabulary, top=99, evidence=True)[0]
    shown = next(tag.evidence for tag in tags if tag.label == "crane")
    by_name = {tag.label: tag.evidence for tag in recognizer.recognize(photos[:1], names, top=99, evidence=True)[0]}
    best = names[int(plain[0, :3].argmax())]
    assert shown is not None
    np.testing.assert_allclose(shown, by_name[best], atol=1e-3)  # values of several hundred, in fp32


def test_background_is_scored_and_never_a_tag(recognizer: Recognizer, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "others.txt").write_text("\n".join((*OTHERS, "CAT")))
    labels = LabelSet((Label("cat"), Label("rocket", emit=False), Label("cup")), background=str(tmp_path / "others.txt"))
    everything = recognizer.scores(photos, ["cat", "rocket", "cup", *OTHERS])
    np.testing.assert_allclose(recognizer.scores(photos, labels), everything[:, [0, 2]], atol=TOLERANCE)
    (tags, *_) = recognizer.recognize(photos, labels, top=9)
    assert sorted(tag.label for tag in tags) == ["cat", "cup"]
    (record, *_) = recognizer.stream(photos, labels)
    assert record.scores is not None
    np.testing.assert_allclose(record.scores, everything[0, [0, 2]], atol=TOLERANCE)


def test_the_bundles_own_labels_as_background(recognizer: Recognizer, photos: list[Path]) -> None:
    own = recognizer.own_labels
    assert own is not None
    labels = LabelSet((Label("a thing of mine"), Label(own[2])), background="bundle")
    rest = [name for name in own if name != own[2]]
    everything = recognizer.scores(photos, ["a thing of mine", own[2], *rest])
    np.testing.assert_allclose(recognizer.scores(photos, labels), everything[:, :2], atol=TOLERANCE)


def test_few_labels_with_a_background_are_no_few_labels(
    recognizer: Recognizer, photos: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    _advise_more_labels.cache_clear()  # it says so once
    recognizer.recognize(photos[:1], LabelSet((Label("cat"), Label("cup")), background="common"))
    assert "scores compare" not in caplog.text
    recognizer.recognize(photos[:1], ["cat", "cup"])
    assert "scores compare" in caplog.text


def test_a_parent_that_is_a_background_label_too_is_a_tag(recognizer: Recognizer, photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "others.txt").write_text("\n".join((*OTHERS, "Animal")))
    labels = LabelSet((Label("cat", parents=("animal",)), Label("cup")), background=str(tmp_path / "others.txt"))
    (tags,) = recognizer.recognize(photos[:1], labels)
    assert {tag.label for tag in tags} == {"cat", "cup", "animal"}


def test_a_label_set_is_no_file_of_arrays(recognizer: Recognizer, tmp_path: Path) -> None:
    vocabulary = recognizer.vocabulary([Label("cat", synonyms=("kitty",)), "cup"])
    assert_refused(lambda: vocabulary.write(tmp_path / "labels.npz"), LabelError, "more than names")
    assert not (tmp_path / "labels.npz").exists()


def test_parents_come_with_their_best_child(recognizer: Recognizer, photos: list[Path]) -> None:
    family = [
        Label("poodle", parents=("dog",)),
        Label("dog", parents=("pet", "animal")),
        Label("cat", parents=("pet",)),
        Label("pet", emit=False),
        *OTHERS[4:],
    ]
    scores = dict(zip(recognizer.vocabulary(family).labels, recognizer.scores(photos[:1], family)[0].tolist(), strict=True))
    assert "animal" not in scores  # no row of its own
    (tags,) = recognizer.recognize(photos[:1], family, top=99)
    found = {tag.label: tag for tag in tags}
    assert "pet" not in found  # scored, and never a tag
    assert found["dog"].score == max(scores["dog"], scores["poodle"])
    assert found["animal"].score == max(scores["dog"], scores["poodle"])
    assert found["animal"].child == max(("dog", "poodle"), key=lambda name: scores[name])
    assert found["poodle"].child is None
    assert [tag.score for tag in tags] == sorted((tag.score for tag in tags), reverse=True)
    # Only what reaches its threshold brings its parents.
    strict = [Label("poodle", parents=("dog",), threshold=2), Label("dog", parents=("animal",), threshold=2), *OTHERS[4:]]
    assert {"dog", "animal", "poodle"}.isdisjoint(tag.label for tag in recognizer.recognize(photos[:1], strict, top=99)[0])


def test_a_labels_own_threshold_goes_before_the_runs(recognizer: Recognizer, photos: list[Path]) -> None:
    scores = dict(zip(OTHERS, recognizer.scores(photos[:1], OTHERS)[0].tolist(), strict=True))
    best, *_, worst = sorted(OTHERS, key=lambda name: -scores[name])
    labels = [Label(name, threshold={best: 2.0, worst: -2.0}.get(name)) for name in OTHERS]
    middle = sorted(scores.values())[5]
    (tags,) = recognizer.recognize(photos[:1], labels, threshold=middle, top=99)
    assert {tag.label for tag in tags} == {name for name in OTHERS if scores[name] >= middle} - {best} | {worst}
    assert {tag.label: tag.threshold for tag in tags}[worst] == -2.0
    # At most `top` of those that pass, not those of the best `top` that pass.
    assert len(recognizer.recognize(photos[:1], labels, threshold=middle, top=3)[0]) == 3


def test_what_a_bundle_without_a_text_tower_can_do(without_tower: Recognizer) -> None:
    own = without_tower.vocabulary().label_embedding
    found = without_tower.vocabulary([Label("cat", synonyms=("cup",)), "rocket"])
    np.testing.assert_allclose(found.label_embedding[0], mean_of_directions(own[:2]), rtol=1e-5, atol=1e-6)
    assert_refused(lambda: without_tower.vocabulary([Label("cat", synonyms=("kitty",))]), LabelError, "kitty", "no text tower")
    assert_refused(
        lambda: without_tower.vocabulary([Label("cat", templates=("a {label}",))]), LabelError, "templates", "no text tower"
    )


def test_a_vocabulary_of_another_bundle_is_refused(recognizer: Recognizer, without_tower: Recognizer) -> None:
    foreign = without_tower.vocabulary([Label("cat", synonyms=("cup",)), "rocket"])
    assert_refused(lambda: recognizer.recognize([], foreign), UsageError, "another bundle")


def test_the_bundle_as_background_of_a_bundle_without_labels(bundle: Path) -> None:
    with Recognizer(bundle, device="cpu") as recognizer:
        labels = LabelSet((Label("cat"),), background="bundle")
        assert_refused(lambda: recognizer.vocabulary(labels), LabelError, "background", "no labels of its own")
