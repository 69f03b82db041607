"""Label files of every format: what is written is what is read, by people, spreadsheets and this package."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigrl_deploy.errors import LabelError
from sigrl_deploy.labels.label_set import MOST_THRESHOLD, SLOT, Label, LabelSet, Match
from sigrl_deploy.labels.names import MAX_LABEL_LENGTH
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.labels.schema import plain_of
from tests.support.refusals import assert_refused, refused

MARK = "\ufeff"
ODD = (
    "no",
    "1.5",
    "null",
    "true",
    "007",
    "ÅÄÖ naïve",
    "犬",
    "👩\u200d👩\u200d👧",
    'size 9" nail',
    "it's",
    "salt, pepper",
    "a.b.c.d.e.f.g.h.i.j",
    "{label}",
)
SOFA = Label("sofa", ("couch", "settee"), parents=("furniture",), threshold=0.25)
WALL = Label("wall", emit=False)


def read(folder: Path, name: str, content: str | bytes) -> LabelSet:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return read_label_set(path)


def as_csv(labels: LabelSet, delimiter: str = ",", line_end: str = "\r\n") -> str:
    def cells(label: Label) -> list[str]:
        number = "" if label.threshold is None else repr(label.threshold)
        number = number.replace(".", ",") if delimiter == ";" else number
        return [label.name, ";".join(label.synonyms), ";".join(label.parents), number, "yes" if label.emit else "no"]

    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator=line_end)
    writer.writerows([["label", "synonyms", "parents", "threshold", "emit"], *map(cells, labels.labels)])
    return text.getvalue()


def as_toml(values: Any) -> str:
    """A value of JSON in TOML, whose strings may be written as JSON's where they hold no control characters."""
    if isinstance(values, dict):
        return "{" + ", ".join(f"{key} = {as_toml(value)}" for key, value in values.items()) + "}"
    if isinstance(values, (list, tuple)):
        return "[" + ", ".join(map(as_toml, values)) + "]"
    return json.dumps(values, ensure_ascii=False)


def toml_file(labels: LabelSet) -> str:
    return "".join(f"{key} = {as_toml(value)}\n" for key, value in plain_of(labels).items())


def json_file(labels: LabelSet) -> str:
    return json.dumps(plain_of(labels), ensure_ascii=False)


def test_every_format_gives_the_same_names_and_text_stays_text(tmp_path: Path) -> None:
    expected = LabelSet(tuple(map(Label, ODD)))
    assert read(tmp_path, "a.txt", "\n".join(ODD)) == expected
    assert read(tmp_path, "a.labels", "\r\n".join(ODD)) == expected
    assert read(tmp_path, "a.toml", toml_file(expected)) == expected
    assert read(tmp_path, "a.toml", f"labels = {as_toml(ODD)}") == expected
    assert read(tmp_path, "a.json", json_file(expected)) == expected
    assert read(tmp_path, "a.json", json.dumps({"labels": ODD})) == expected
    for delimiter in ",;":
        assert read(tmp_path, "a.csv", as_csv(expected, delimiter)) == expected
    assert expected.is_plain


def test_every_format_gives_the_same_fields(tmp_path: Path) -> None:
    expected = LabelSet((SOFA, WALL, Label("cat")))
    assert read(tmp_path, "a.toml", toml_file(expected)) == expected
    assert read(tmp_path, "a.json", json_file(expected)) == expected
    for delimiter in ",;":
        assert read(tmp_path, "a.csv", as_csv(expected, delimiter)) == expected


@pytest.mark.parametrize("write", [toml_file, json_file, as_csv], ids=["TOML", "JSON", "CSV"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["LF", "CRLF"])
def test_a_byte_order_mark_and_other_line_ends_change_nothing(
    tmp_path: Path, write: Callable[[LabelSet], str], line_end: str
) -> None:
    labels = LabelSet((SOFA, WALL))
    name = {toml_file: "A.TOML", json_file: "A.Json", as_csv: "A.CSV"}[write]
    content = write(labels).replace("\r\n", "\n").replace("\n", line_end)
    assert read(tmp_path, name, MARK + content) == labels


def test_toml_as_people_write_it(tmp_path: Path) -> None:
    content = """
    version = 1  # of the schema
    templates = ["a photo of a {label}", "{label}"]
    background = "common"

    [[labels]]
    name = "  sofa "
    synonyms = ["couch", "settee"]
    parents = ["furniture"]
    threshold = 0.25

    [[labels]]
    name = 'crane'
    synonyms = ["tower crane"]
    templates = ["{label}, outdoors"]
    threshold = 1
    match = "any"

    [[labels]]
    name = "wall"
    emit = false
    """
    crane = Label("crane", ("tower crane",), ("{label}, outdoors",), threshold=1.0, match=Match.ANY)
    expected = LabelSet((SOFA, crane, WALL), templates=("a photo of a {label}", "{label}"), background="common")
    assert read(tmp_path, "a.toml", content) == expected


def test_json_takes_texts_and_objects_side_by_side(tmp_path: Path) -> None:
    found = read(tmp_path, "a.json", '{"labels": ["cat", {"name": "sofa", "synonyms": ["couch"], "threshold": null}, "true"]}')
    assert found == LabelSet((Label("cat"), Label("sofa", ("couch",)), Label("true")))


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    content = 'Emit, LABEL ,threshold,Synonyms,,\r\nFALSE,wall,,,,\r\n,,,,,\r\n\r\n1,"bed, double",1E-2," a ;; b ;"\r\n,no\r\n'
    expected = LabelSet((WALL, Label("bed, double", ("a", "b"), threshold=0.01), Label("no")))
    assert read(tmp_path, "a.csv", content) == expected
    assert read(tmp_path, "b.csv", content.replace("\r\n", "\r")) == expected
    assert read(tmp_path, "c.csv", "label\nsalt; pepper\n") == LabelSet((Label("salt; pepper"),))


def test_semicolons_between_cells_bring_decimal_commas(tmp_path: Path) -> None:
    found = read(tmp_path, "a.csv", 'label;threshold;synonyms\nsofa;0,25;"couch;settee"\nchair;0.5;\n')
    assert found == LabelSet((Label("sofa", ("couch", "settee"), threshold=0.25), Label("chair", threshold=0.5)))


def test_a_background_file_is_found_from_the_label_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "others.txt").write_text("cat\n")
    monkeypatch.chdir(tmp_path / "sets")
    (tmp_path / "sets" / "a.json").write_text('{"labels": ["dog"], "background": "../others.txt"}')
    assert read_label_set("a.json").background == str(tmp_path / "others.txt")
    for name in ("bundle", "common"):
        assert read(tmp_path, "a.toml", f'labels = ["dog"]\nbackground = "{name}"').background == name


def test_the_error_names_the_argument_and_the_file(tmp_path: Path) -> None:
    for ending in ("txt", "toml", "json", "csv", "md"):
        path = tmp_path / f"missing.{ending}"
        assert refused(lambda path=path: read_label_set(path), LabelError) == ("labels", path)
        assert refused(lambda path=path: read_label_set(path, "background"), LabelError) == ("background", path)


# Round trips

TEXT = (
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), max_size=MAX_LABEL_LENGTH).map(str.strip).filter(bool)
)
BESIDE_SLOT = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), max_size=20).filter(lambda text: SLOT not in text)
TEMPLATES = st.lists(
    st.tuples(BESIDE_SLOT, BESIDE_SLOT)
    .map(lambda ends: SLOT.join(ends))
    .filter(lambda t: t.count(SLOT) == 1 and t.isprintable()),
    max_size=2,
).map(tuple)


@st.composite
def label_sets(draw: st.DrawFn) -> LabelSet:
    texts = draw(st.lists(TEXT, min_size=1, max_size=12, unique=True))
    labels: list[Label] = []
    while texts:
        name, synonyms = texts.pop(), tuple(texts.pop() for _ in range(min(len(texts), draw(st.integers(0, 2)))))
        above = [label.name for label in labels]  # so that there is no circle
        parents = draw(st.lists(st.sampled_from(above), unique=True, max_size=2)) if above else []
        threshold = draw(st.none() | st.floats(-MOST_THRESHOLD, MOST_THRESHOLD))
        match, emit = draw(st.sampled_from(Match)), draw(st.booleans()) or not labels
        labels.append(Label(name, synonyms, draw(TEMPLATES), tuple(parents), threshold, emit, match))
    background = draw(st.sampled_from((None, "bundle", "common")))
    return LabelSet(tuple(labels), templates=draw(TEMPLATES), background=background)


@settings(max_examples=100, deadline=None)
@given(label_sets())
def test_what_is_written_as_json_or_toml_is_read_back(labels: LabelSet) -> None:
    with TemporaryDirectory() as folder:
        assert read(Path(folder), "a.json", json_file(labels)) == labels
        assert read(Path(folder), "a.toml", toml_file(labels)) == labels


@settings(max_examples=100, deadline=None)
@given(label_sets(), st.sampled_from(",;"))
def test_what_a_spreadsheet_can_hold_is_read_back(labels: LabelSet, delimiter: str) -> None:
    def cut(label: Label) -> Label:
        parts = [tuple(text for text in texts if ";" not in text) for texts in (label.synonyms, label.parents)]
        return Label(label.name, parts[0], (), parts[1], label.threshold, label.emit)

    labels = LabelSet(tuple(map(cut, labels.labels)))
    with TemporaryDirectory() as folder:
        assert read(Path(folder), "a.csv", as_csv(labels, delimiter)) == labels


def test_a_file_of_another_kind_is_refused_with_advice(tmp_path: Path) -> None:
    for name, advice in (("a.md", ".txt"), ("a.yaml", ".toml"), ("a.YML", ".json"), ("a.xlsx", "CSV"), ("a.ods", "CSV")):
        (tmp_path / name).write_text("- cat\n")
        assert_refused(lambda name=name: read_label_set(tmp_path / name), LabelError, name, advice)
