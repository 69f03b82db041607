"""Label files with mistakes: one line each, with the line number or the key, what was expected and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigrl_deploy.errors import LabelError
from sigrl_deploy.labels import label_set, names
from sigrl_deploy.labels.reading import read_label_set
from tests.support.refusals import assert_refused

DEEP = 100_000  # levels, a hundred times what Python's stack holds
DIGITS = "9" * 5000
FIELDS = label_set.Label.__struct_fields__
SET_FIELDS = label_set.LabelSet.__struct_fields__

TOML = {
    "empty": ("", ("labels: is missing", "expected a list")),
    "one name": ('labels = "cat"', ("labels: is the text 'cat'", "expected a list")),
    "no labels": ("labels = []", ("holds no labels",)),
    "a number": ('labels = ["cat", 1.5]', ("labels[1]: is 1.5", "in quotes")),
    "a boolean": ("labels = [false]", ("labels[0]: is false", "in quotes")),
    "a date": ("labels = [{name = 1979-05-27}]", ("labels[0].name: is a date", "in quotes")),
    "no name": ('labels = [{synonyms = ["cat"]}]', ("labels[0]: has no name",)),
    "empty name": ('labels = ["cat", " "]', ("labels[1].name: empty",)),
    "one synonym": ('[[labels]]\nname = "sofa"\nsynonyms = "couch"', ("labels[0].synonyms of 'sofa'", '["couch", "settee"]')),
    "synonym": ('labels = [{name = "sofa", synonyms = ["couch", 2]}]', ("labels[0].synonyms[1] of 'sofa': is 2", "in quotes")),
    "threshold": ('labels = ["a", {name = "sofa", threshold = "0.5"}]', ("labels[1].threshold of 'sofa'", "without quotes")),
    "nan": ('labels = [{name = "sofa", threshold = nan}]', ("labels[0].threshold of 'sofa': is nan", "finite number")),
    "inf": ('labels = [{name = "sofa", threshold = -inf}]', ("labels[0].threshold of 'sofa': is -inf", "finite number")),
    "large": (f'labels = [{{name = "sofa", threshold = {DIGITS[:400]}}}]', ("labels[0].threshold of 'sofa'", "too large")),
    "larger": (f"threshold = {DIGITS}", ("a number has thousands of digits",)),
    "emit": ('labels = [{name = "sofa", emit = "no"}]', ("labels[0].emit of 'sofa'", "expected true or false")),
    "match": ('labels = [{name = "sofa", match = "best"}]', ("labels[0].match of 'sofa'", '"mean" or "any"')),
    "template": ('labels = ["a"]\ntemplates = ["a photo"]', ("templates: 'a photo'", "{label}")),
    "templates": ('labels = ["a"]\ntemplates = "{label}"', ("templates: is the text", '["a photo of a {label}"]')),
    "own template": ('labels = [{name = "sofa", templates = ["{label}{label}"]}]', ("labels[0].templates of 'sofa'", "once")),
    "key": ('labels = [{name = "sofa", synonym = ["couch"]}]', ("labels[0] of 'sofa': unknown key 'synonym'", "synonyms")),
    "key of the set": ('[[label]]\nname = "sofa"', ("unknown key 'label'", "labels, version, templates, background")),
    "background below": (
        '[[labels]]\nname = "a"\nbackground = "common"',
        ("labels[0] of 'a'", "'background'", "above the first"),
    ),
    "version": ('version = 2\nlabels = ["a"]', ("version: is 2", "expected the number 1")),
    "version as text": ('version = "1"\nlabels = ["a"]', ("version: is the text '1'", "expected the number 1")),
    "background": ('labels = ["a"]\nbackground = 3', ("background: is 3", '"bundle", "common"')),
    "no background file": ('labels = ["a"]\nbackground = "others.txt"', ("a.toml", "background: ", "others.txt' is no file")),
    "a folder": ('labels = ["a"]\nbackground = "."', ("a.toml", "background: ", "is no file")),
    "twice": (
        'labels = ["cat", {name = "sofa", synonyms = ["cat"]}]',
        ("labels[1].synonyms of 'sofa'", "repeats labels[0].name"),
    ),
    "parent": (
        'labels = [{name = "sofa", synonyms = ["seat"]}, {name = "chair", parents = ["seat"]}]',
        ("labels[1].parents of 'chair'", "'seat' is a synonym of 'sofa'"),
    ),
    "circle": (
        'labels = [{name = "a", parents = ["b"]}, {name = "b", parents = ["c"]}, {name = "c", parents = ["a"]}]',
        ("].parents of '", "a → b", "b → c", "c → a", "is a circle"),
    ),
    "large circle": (
        f"labels = {[{'name': str(i), 'parents': [str((i + 1) % 9999)]} for i in range(9999)]}".replace("':", "' ="),
        ("is a circle",),
    ),
    "never a tag": ('labels = [{name = "a", emit = false}]', ("holds no labels that may become tags",)),
    "syntax": ('labels = [\n  "cat"\n  "dog"\n]\n', ("line 3, column 3", "expected TOML")),
    "no end": ('labels = ["cat"', ("end of the file", "expected TOML")),
    "key twice": ('version = 1\nversion = 1\nlabels = ["a"]', ("Cannot overwrite a value",)),
    "NUL": ('labels = ["a\0b"]', ("line 1, column 13", "expected TOML")),
    "escaped NUL": ('labels = ["a\\u0000b"]', ("labels[0].name", "control character")),
    "deep": ("labels = " + "[" * DEEP, ("nested too deeply",)),
    "deep tables": ("labels = " + "{a = " * DEEP, ("nested too deeply",)),
    "long key": ("a" + ' . "a"' * DEEP + " = 1", ("more than 8 parts",)),
    "long key in a header": ("[a" + ".a" * DEEP + "]", ("more than 8 parts",)),
}

JSON = {
    "empty": ("", ("line 1, column 1", "expected JSON")),
    "a list": ('["cat", "dog"]', ("is a list", '{"labels": ["cat", "dog"]}')),
    "null": ("null", ("is null", "expected an object")),
    "syntax": ('{"labels": [\n"cat",\n]}', ("line 3, column 1", "expected JSON")),
    "a comment": ('{"labels": ["cat"]} // all', ("line 1, column 21", "expected JSON")),
    "key twice": ('{"labels": ["cat"], "labels": ["dog"]}', ("key 'labels' stands twice",)),
    "key of a label twice": (
        '{"labels": ["cat", {"name": "sofa", "emit": true, "emit": false}]}',
        ("labels[1] of 'sofa'", "key 'emit' stands twice"),
    ),
    "NaN": ('{"labels": [{"name": "sofa", "threshold": NaN}]}', ("labels[0].threshold of 'sofa': is nan", "finite")),
    "infinite": (
        '{"labels": [{"name": "sofa", "threshold": -Infinity}]}',
        ("labels[0].threshold of 'sofa': is -inf", "finite"),
    ),
    "overflow": ('{"labels": [{"name": "sofa", "threshold": 1e999}]}', ("labels[0].threshold of 'sofa': is inf", "finite")),
    "large": (f'{{"labels": [{DIGITS}]}}', ("a number has thousands of digits",)),
    "a boolean": ('{"labels": [{"name": "sofa", "threshold": true}]}', ("labels[0].threshold of 'sofa': is true",)),
    "surrogate": ('{"labels": ["\\ud800"]}', ("labels[0].name", "plain text")),
    "NUL": ('{"labels": ["a\0"]}', ("line 1, column 15", "expected JSON")),
    "NUL in a path": ('{"labels": ["a"], "background": "\\u0000"}', ("background", "is no file")),
    "line feed in a path": ('{"labels": ["a"], "background": "b\\nc"}', ("background", "is no file")),
    "deep": ("[" * DEEP, ("nested too deeply",)),
    "deep objects": ('{"labels":' * DEEP, ("nested too deeply",)),
    "deep label": ('{"labels": ' + "[" * 500 + "]" * 500 + "}", ("labels[0]: is a list",)),
    "long name": (f'{{"labels": ["{"x" * 300}"]}}', ("labels[0].name: 300 characters long",)),
    "long key": (f'{{"labels": ["a"], "{"x" * 300}": 1}}', ("unknown key 'xxx",)),
}

CSV = {
    "empty": ("", ("line 1", "no column is called label")),
    "lines": ("cat\ndog\n", ("line 1", "no column is called label", ".txt")),
    "header alone": ("label,emit\n", ("holds no labels",)),
    "unknown column": ("label,synonym\n", ("line 1", "unknown column 'synonym'", "label,synonyms,parents,threshold,emit")),
    "templates": ("label,templates\n", ("line 1", "unknown column 'templates'", ".toml")),
    "column twice": ("label,emit,Emit\n", ("line 1", "column emit stands twice")),
    "column without a name": ("label,,emit\n", ("line 1", "unknown column ''")),
    "too many cells": ("label,emit\ncat,yes\n\nsalt, pepper,yes\n", ("line 4", "3 cells, expected 2", "in quotes")),
    "no label": ("synonyms,label\na,cat\nb,\n", ("line 3, label: empty",)),
    "a row of two lines": (
        'label,synonyms\ncat,"kitty;\npuss"\nkitty,\n',
        ("line 4, label", "'kitty' repeats line 2, synonyms"),
    ),
    "label twice": ("label\ncat\n\ndog\ncat\n", ("line 5, label", "'cat' repeats line 2, label")),
    "synonym twice": ("label,synonyms\ncat,kitty\nlion,cub;kitty\n", ("line 3, synonyms", "'kitty' repeats line 2, synonyms")),
    "threshold": ("label,threshold\ncat,high\n", ("line 2, threshold", "'high'", "0.25")),
    "decimal comma": ('label,threshold\ncat,"0,5"\n', ("line 2, threshold", "'0,5'", "0.25")),
    "nan": ("label,threshold\ncat,nan\n", ("line 2, threshold", "'nan'", "finite")),
    "infinite": (f"label,threshold\ncat,{DIGITS}\n", ("line 2, threshold", "finite")),
    "underscore": ("label,threshold\ncat,1_0\n", ("line 2, threshold", "'1_0'")),
    "emit": ("label,emit\ncat,maybe\n", ("line 2, emit", "'maybe'", "yes, no, true, false, 1, 0")),
    "open quote": ('label,emit\ncat,yes\n"dog,yes\nowl,yes\n', ("line 3", "quotes in pairs")),
    "text after a quote": ('label\n"cat"s\n', ("line 2", "quotes in pairs")),
    "long cell": (f'label\n"{"x" * 200_000}"\n', ("line 2", "field larger than")),
    "NUL": ("label\ndog\ncat\0\n", ("line 3",)),
    "circle": ("label,parents\na,b\nb,a\n", (", parents", "a → b", "b → a")),
}

CASES = [
    (f"{kind}, {name}", f"a.{kind.lower()}", *case)
    for kind, cases in (("TOML", TOML), ("JSON", JSON), ("CSV", CSV))
    for name, case in cases.items()
]


@pytest.mark.parametrize(("name", "content", "facts"), [case for _, *case in CASES], ids=[name for name, *_ in CASES])
def test_a_mistake_is_named(tmp_path: Path, name: str, content: str, facts: tuple[str, ...]) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert_refused(lambda: read_label_set(tmp_path / name), LabelError, name, *facts)
    with pytest.raises(LabelError) as raised:
        read_label_set(tmp_path / name)
    assert len(raised.value.problem) < 500


@pytest.mark.parametrize("name", ["a.toml", "a.json", "a.csv"])
def test_bytes_that_are_no_utf_8_are_named_by_their_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (b"label\ncaf\xe9\n", b"\n\xed\xa0\x80", b"label\r\n\xff\r\n", b"#\r\x80"):
        path.write_bytes(content)
        assert_refused(lambda: read_label_set(path), LabelError, name, "line 2: not UTF-8")
    path.write_bytes("label\n".encode("utf-16"))
    assert_refused(lambda: read_label_set(path), LabelError, name, "line 1: not UTF-8")


@pytest.mark.parametrize("name", ["a.toml", "a.json", "a.csv"])
def test_too_large_a_file_is_not_parsed(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_MOST_BYTES", 1 << 20)
    (tmp_path / name).write_bytes(b" " * ((1 << 20) + 1))
    assert_refused(lambda: read_label_set(tmp_path / name), LabelError, name, "more than 1 MB")


def test_too_many_wordings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    lines = [f"templates = {['{label} ' + str(i) for i in range(1000)]}", f"labels = {[f'label {i}' for i in range(1001)]}"]
    path.write_text("\n".join(lines))
    assert_refused(
        lambda: read_label_set(path), LabelError, "a.toml", "1,001,000 texts", f"{label_set.MOST_WORDINGS:,} at most"
    )


VALID = {
    "a.toml": b'background = "common"\n[[labels]]\nname = "sofa"\nsynonyms = ["couch"]\nthreshold = 0.25\nemit = true\n',
    "a.json": b'{"version": 1, "labels": ["cat", {"name": "sofa", "parents": ["thing"], "threshold": 1e-2, "match": "any"}]}',
    "a.csv": b'label;synonyms;threshold\r\nsofa;"couch;""settee""";0,25\r\ncat;;\r\n',
}
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


def read_or_refuse(name: str, content: bytes) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        refusal = None
        try:
            assert read_label_set(path).names
        except LabelError as error:
            refusal = error
        assert refusal is None or refusal.value == path
        assert "\n" not in str(refusal)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(VALID)), st.data())
def test_damaged_files_are_read_or_refused(name: str, data: st.DataObject) -> None:
    content = bytearray(VALID[name])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 3)))
        content[start:end] = data.draw(st.binary(max_size=3) | st.sampled_from([b'"', b"[", b"}", b"\n", b".", b"1", b";"]))
    read_or_refuse(name, bytes(content))


@settings(max_examples=300, deadline=None)
@given(st.lists(PLAIN, max_size=3), st.dictionaries(st.sampled_from(SET_FIELDS), PLAIN))
def test_any_json_is_read_or_refused(labels: list[object], others: dict[str, object]) -> None:
    read_or_refuse("a.json", json.dumps({"labels": labels} | others).encode())
