"""Background labels: what they add to a set, what of them is left out, and the list that ships."""

from __future__ import annotations

from pathlib import Path

import pytest

from sigrl_deploy.errors import LabelError
from sigrl_deploy.labels.background import COMMON, background_labels, with_background
from sigrl_deploy.labels.label_set import Label, LabelSet, Match, label_set
from sigrl_deploy.labels.names import read_labels
from tests.support.refusals import assert_refused, refused

SET = (Label("sofa", ("Couch",), parents=("furniture",), threshold=0.5), Label("wall", emit=False))


def test_no_background_changes_nothing() -> None:
    labels = LabelSet(SET, templates=("a {label}",))
    assert with_background(labels, ("cat",)) is labels


def test_the_bundle_s_labels_stand_behind_the_set_s_own_and_doubles_are_left_out() -> None:
    found = with_background(LabelSet(SET, background="bundle"), ("cat", "SOFA", "couch", "furniture", "Wall", "dog"))
    assert found == LabelSet((*SET, *(Label(name, emit=False) for name in ("cat", "dog"))))
    assert found.names == ("sofa",)


def test_without_a_vocabulary_the_bundle_s_labels_are_refused() -> None:
    labels = LabelSet(SET, background="bundle")
    assert refused(lambda: with_background(labels, None), LabelError) == ("background", "bundle")
    assert_refused(lambda: with_background(labels, None), LabelError, "'common'", "label file", "`labels`")


def test_a_file_keeps_its_wordings_and_loses_what_is_about_tags(tmp_path: Path) -> None:
    path = tmp_path / "others.toml"
    path.write_text("""
    templates = ["a photo of a {label}"]
    [[labels]]
    name = "crane"
    synonyms = ["tower crane"]
    templates = ["{label} outdoors"]
    parents = ["machine"]
    threshold = 0.3
    match = "any"
    [[labels]]
    name = "seat"
    synonyms = ["COUCH"]
    [[labels]]
    name = "cat"
    """)
    labels = LabelSet(SET, background=str(path))
    crane = Label("crane", ("tower crane",), ("{label} outdoors",), emit=False, match=Match.ANY)
    cat = Label("cat", templates=("a photo of a {label}",), emit=False)
    assert with_background(labels, None) == LabelSet((*SET, crane, cat))
    assert [label.name for label in background_labels(labels, None)[1]] == ["seat"]


def test_a_background_has_no_background(tmp_path: Path) -> None:
    path = tmp_path / "others.json"
    path.write_text('{"labels": ["cat"], "background": "common"}')
    labels = LabelSet(SET, background=str(path))
    assert refused(lambda: with_background(labels, None), LabelError) == ("background", str(path))
    assert_refused(lambda: with_background(labels, None), LabelError, "others.json", "has a background itself, 'common'")


@pytest.mark.parametrize(("name", "content"), [("others.txt", "cat\ncat\n"), ("others.csv", "label\ncat\ncat\n")])
def test_a_mistake_in_the_background_is_named(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    assert_refused(lambda: with_background(LabelSet(SET, background=str(path)), None), LabelError, name, "line ", "'cat'")
    path.unlink()
    assert refused(lambda: with_background(LabelSet(SET, background=str(path)), None), LabelError) == ("background", str(path))


def test_the_common_labels_are_some_300_different_things() -> None:
    names = read_labels(COMMON)
    assert 280 <= len(names) <= 320
    assert len({name.casefold().removesuffix("s") for name in names}) == len(names)
    assert [name for name in names if name.split()[0] in ("a", "an", "the")] == []
    found = with_background(label_set(["Cat", "spaceship"]), None)
    assert found.names == ("Cat", "spaceship")
    found = with_background(LabelSet((Label("Cat"), Label("spaceship")), background="common"), None)
    assert found.names == ("Cat", "spaceship")
    assert len(found.labels) == 2 + len(names) - 1
