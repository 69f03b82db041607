"""`labels show`: how a label file was understood, and what to do about it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sigrl_deploy.cli.main import main
from sigrl_deploy.labels.background import COMMON
from sigrl_deploy.labels.names import read_labels
from sigrl_deploy.labels.reading import read_label_set
from tests.support.paths import ROOT

TOML = """
templates = ["a photo of a {label}", "{label}"]

[[labels]]
name = "sofa"
synonyms = ["couch", "settee"]
parents = ["furniture"]
threshold = 0.25

[[labels]]
name = "crane"
synonyms = ["crane bird"]
templates = ["{label} outdoors"]
parents = ["bird"]
match = "any"

[[labels]]
name = "bird"
parents = ["animal"]

[[labels]]
name = "wall"
emit = false
"""
COMMON_LABELS = len(read_labels(COMMON))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "labels.toml"
    path.write_text(TOML)
    return path


def show(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["labels", "show", *map(str, arguments)])


def shown(*arguments: str | Path) -> list[str]:
    done = show(*arguments)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def test_the_table_has_every_field(file: Path) -> None:
    lines = shown(file)
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines[: lines.index("")]]
    assert cells == [
        ["label", "wordings", "parents", "threshold", "emitted"],
        ["sofa", "couch | settee", "furniture", "0.25", "yes"],
        ["crane", "crane bird", "bird", "yes"],
        ["as: {label} outdoors"],
        ["match: any"],
        ["bird", "animal", "yes"],
        ["wall", "no"],
    ]
    starts = {line.index(word) for line, word in ((lines[0], "threshold"), (lines[1], "0.25"))}
    assert len(starts) == 1


def test_the_summary_counts_what_is_scored(file: Path) -> None:
    lines = shown(file)
    assert lines[lines.index("") + 1 :] == [
        "4 labels, 3 emitted",
        "5 rows to score, 12 texts to encode",  # crane has two rows; 3 × 2, 2 × 1, 2 and 2 texts
        "templates: a photo of a {label}; {label}",
        "parents that are labels too: bird",
        "parents without a row of their own: furniture, animal",
        "warning: fewer than 10 labels: where a system compares them, one scores high on any picture; add labels, or the "
        "background 'common'",
    ]


def test_the_background_is_counted_and_doubles_are_named(file: Path, tmp_path: Path) -> None:
    lines = shown(file, "--background", "common")
    assert f"background: {COMMON_LABELS - 1} labels of common; left out, because the set has them: sofa" in lines
    rows = 5 + COMMON_LABELS - 1
    assert f"{rows} rows to score, {12 + 2 * (COMMON_LABELS - 1):,} texts to encode, background included" in lines
    assert not any(line.startswith("warning") for line in lines)
    (tmp_path / "others.txt").write_text("Birds\nSettee\n")
    lines = shown(file, "--background", tmp_path / "others.txt")
    assert f"background: 1 label of {tmp_path / 'others.txt'}; left out, because the set has them: Settee" in lines
    assert any(line.startswith("warning: 'Birds' and 'bird' differ by case or a plural s only") for line in lines)
    assert "background: the bundle's labels, which are not counted here" in shown(file, "--background", "bundle")


def test_labels_that_differ_by_little_are_named(tmp_path: Path) -> None:
    names = ["cat", "Cat", "dogs", "dog", "glass", "glas", "bus", "bu", *(f"label {i}" for i in range(9))]
    (tmp_path / "a.txt").write_text("\n".join(names))
    warnings = [line for line in shown(tmp_path / "a.txt") if line.startswith("warning")]
    assert [re.findall(r"'(\w+)'", line) for line in warnings] == [["Cat", "cat"], ["dog", "dogs"]]
    (tmp_path / "a.json").write_text(json.dumps({"labels": [{"name": "cat", "synonyms": ["Cat", "cats"]}, *names[4:]]}))
    assert [line for line in shown(tmp_path / "a.json") if line.startswith("warning")] == []


def test_long_cells_and_odd_texts_stay_in_their_columns(tmp_path: Path) -> None:
    synonyms = [f"word-{i}" for i in range(30)]
    labels = ["x" * 100, "犬\u202e", {"name": "cat", "synonyms": synonyms}]
    (tmp_path / "a.json").write_text(json.dumps({"labels": labels}))
    lines = shown(tmp_path / "a.json")
    assert max(map(len, lines[: lines.index("")])) <= 110
    words = " ".join(" ".join(lines).split())
    assert all(f"{word} |" in words for word in synonyms[:-1])
    assert "\u202e" not in words


def test_json_holds_the_same_set(file: Path, tmp_path: Path) -> None:
    text = show(file, "--json").stdout
    (tmp_path / "again.json").write_text(text)
    assert read_label_set(tmp_path / "again.json") == read_label_set(file)
    assert json.loads(text)["labels"][2:] == [{"name": "bird", "parents": ["animal"]}, {"name": "wall", "emit": False}]
    assert show(tmp_path / "again.json", "--json").stdout == text


def test_json_names_the_background_so_that_it_is_found_from_anywhere(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "others.txt").write_text("cat\n")
    monkeypatch.chdir(tmp_path)
    assert json.loads(show(file, "--json", "--background", "others.txt").stdout)["background"] == str(tmp_path / "others.txt")
    assert json.loads(show(file, "--json", "--background", "common").stdout)["background"] == "common"


def test_what_cannot_be_used_is_one_line_and_status_2(file: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("label,emit\ncat,maybe\n")
    for arguments, said in (
        ([wrong], f"{wrong}: line 2, emit: 'maybe'"),
        ([tmp_path / "missing.toml"], "missing.toml: cannot be read"),
        ([file, "--background", wrong], f"--background {wrong}: line 2, emit"),
        ([file, "--background", tmp_path / "missing.txt", "--json"], "--background "),
        ([file, "--background", ""], "--background "),
    ):
        done = show(*arguments)
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert said in line
        assert (done.exit_code, done.stdout) == (2, "")


def test_the_example_in_the_documents_shows_every_field(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "labels.md").read_text(encoding="utf-8")
    for language in ("toml", "json", "csv"):
        (example,) = re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        (tmp_path / f"labels.{language}").write_text(example, encoding="utf-8")
        assert shown(tmp_path / f"labels.{language}")
    found = json.loads(show(tmp_path / "labels.toml", "--json").stdout)
    assert set(found) == {"version", "templates", "background", "labels"}
    fields = {field for label in found["labels"] for field in label}
    assert fields == {"name", "synonyms", "templates", "parents", "threshold", "emit", "match"}
    assert read_label_set(tmp_path / "labels.csv").names == read_label_set(tmp_path / "labels.json").names
