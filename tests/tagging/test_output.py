"""What the records look like in each format, and what a resumed file may hold."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest

from sigrl_deploy.errors import UsageError
from sigrl_deploy.recognizer.predictions import Prediction, Record
from sigrl_deploy.tagging.output import WRITERS, RawCsvWriter, Shown, choose_format, open_output, printable

LABELS = ["cat", 'a "big", dog', "sea\u2028shore"]
SCORES = np.array([0.1, 0.25, 1 / 3], np.float32)
TAGGED = Record("a.jpg", (Prediction(LABELS[2], float(SCORES[2])), Prediction(LABELS[1], float(SCORES[1]))), SCORES)
BARE = Record("bare.jpg", (), SCORES)
BROKEN = Record("b.jpg", error="b.jpg: is damaged")
NAMES = [
    os.fsdecode(name) for name in (b"caf\xe9.jpg", b"new\nline.jpg", b"re\rturn.jpg", b'com,ma "quote".jpg', "Ж😀.jpg".encode())
]


def _written(format_: str, *records: Record, all_scores: bool = False, run: str = "run") -> str:
    stream = io.StringIO()
    writer = WRITERS[format_](stream, Shown(LABELS, all_scores), run)
    for record in records:
        writer.write(record)
    writer.end()
    return stream.getvalue()


def test_json_holds_every_record_in_order_with_scores_that_read_back_as_the_same_fp32() -> None:
    tagged, bare, broken = json.loads(_written("json", TAGGED, BARE, BROKEN))
    assert tagged == {"path": "a.jpg", "tags": [{"label": LABELS[2], "score": 0.33333334}, {"label": LABELS[1], "score": 0.25}]}
    assert np.float32(tagged["tags"][0]["score"]) == SCORES[2]
    assert bare == {"path": "bare.jpg", "tags": []}
    assert broken == {"path": "b.jpg", "error": "b.jpg: is damaged"}


def test_json_without_records_is_an_empty_list() -> None:
    assert json.loads(_written("json")) == []


def test_json_lines_are_one_object_a_line() -> None:
    lines = _written("jsonl", TAGGED, BROKEN).split("\n")
    assert [json.loads(line)["path"] for line in lines[:-1]] == ["a.jpg", "b.jpg"]
    assert lines[-1] == ""


@pytest.mark.parametrize("format_", ["json", "jsonl"])
def test_all_scores_come_in_the_vocabularys_order(format_: str) -> None:
    (record,) = np.atleast_1d(json.loads(_written(format_, TAGGED, all_scores=True)))
    assert list(record["scores"]) == LABELS
    np.testing.assert_array_equal(np.float32(list(record["scores"].values())), SCORES)


def test_csv_has_a_row_a_tag_and_leaves_no_picture_out() -> None:
    rows = list(csv.DictReader(io.StringIO(_written("csv", TAGGED, BARE, BROKEN), newline="")))
    assert [(row["path"], row["label"], row["error"]) for row in rows] == [
        ("a.jpg", LABELS[2], ""),
        ("a.jpg", LABELS[1], ""),
        ("bare.jpg", "", ""),
        ("b.jpg", "", "b.jpg: is damaged"),
    ]
    assert [np.float32(row["score"]) for row in rows[:2]] == [SCORES[2], SCORES[1]]


def test_csv_with_all_scores_has_a_column_a_label() -> None:
    header, tagged, broken = csv.reader(io.StringIO(_written("csv", TAGGED, BROKEN, all_scores=True), newline=""))
    assert header == ["path", "error", *LABELS]
    np.testing.assert_array_equal(np.float32(tagged[2:]), SCORES)
    assert broken == ["b.jpg", "b.jpg: is damaged", *[""] * len(LABELS)]


def test_a_table_says_so_where_no_label_passes_or_a_picture_is_broken() -> None:
    _, bare, broken = _written("table", BARE, BROKEN).splitlines()
    assert "bare.jpg" in bare
    assert "no label above the threshold" in bare
    assert "error" in broken
    assert "is damaged" in broken


@pytest.mark.parametrize("format_", WRITERS)
def test_any_file_name_can_be_written_to_a_file(format_: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with open_output(format_, out) as stream:
        writer = WRITERS[format_](stream, Shown(LABELS), "run")
        for name in NAMES:
            writer.write(Record(name, TAGGED.predictions[:1], SCORES))
        writer.end()
    text = out.read_bytes().decode("utf-8")
    if format_ == "json":
        assert [record["path"] for record in json.loads(text)] == NAMES
    elif format_ == "jsonl":
        assert [json.loads(line)["path"] for line in text.split("\n")[:-1]] == NAMES
    elif format_ == "csv":
        assert [row[0] for row in csv.reader(io.StringIO(text, newline=""))] == ["path", r"caf\udce9.jpg", *NAMES[1:]]
    else:
        assert len(text.splitlines()) == 1 + len(NAMES)


def test_nothing_that_moves_a_terminals_cursor_gets_into_a_table() -> None:
    table = _written("table", Record("\x1b[2J\x07\x9b\r\u202eevil.jpg", TAGGED.predictions[:1], SCORES))
    assert table.count("\n") == 2
    assert all(c.isprintable() for c in table.replace("\n", ""))
    assert "evil.jpg" in table


def test_printable_leaves_ordinary_text_alone() -> None:
    assert printable("Ж ü 猫 a\\b.jpg") == "Ж ü 猫 a\\b.jpg"
    assert printable("a\x1b\n\udce9") == r"a\x1b\n\udce9"


@pytest.mark.parametrize(
    ("name", "out", "expected"),
    [
        (None, None, "table"),
        (None, "a.JSONL", "jsonl"),
        (None, "a.csv", "csv"),
        (None, "a.txt", "table"),
        ("json", "a.csv", "json"),
        ("json", "a.xml", "json"),
        ("table", "a", "table"),
    ],
)
def test_the_format_follows_the_option_then_the_ending(name: str | None, out: str | None, expected: str) -> None:
    assert choose_format(name, Path(out) if out else None) == expected


@pytest.mark.parametrize("out", ["a.xml", "a", "jsonl", "a.csv.gz"])
def test_a_name_that_says_no_format_is_refused(out: str) -> None:
    with pytest.raises(UsageError) as raised:
        choose_format(None, Path(out))
    assert (raised.value.argument, raised.value.value) == ("out", Path(out))


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_text_in_a_csv_begins_like_a_formula_and_numbers_stay_numbers(text: str) -> None:
    scores = np.array([-0.5], np.float32)
    shown = [Record(text, (Prediction(text, -0.5),), scores), Record("a.jpg", error=text)]
    for all_scores in (False, True):
        for kind, quote in (WRITERS["csv"], "'"), (RawCsvWriter, ""):
            stream = io.StringIO()
            writer = kind(stream, Shown([text], all_scores), "run")
            for record in shown:
                writer.write(record)
            rows = list(csv.reader(io.StringIO(stream.getvalue(), newline=""), quoting=csv.QUOTE_NONNUMERIC))
            guarded = quote + text
            if all_scores:
                assert rows == [["path", "error", guarded], [guarded, "", -0.5], ["a.jpg", guarded, ""]]
            else:
                assert rows[1:] == [[guarded, guarded, -0.5, ""], ["a.jpg", "", "", guarded]]


def _write_half(stream: TextIO) -> None:
    stream.write("half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("format_", ["table", "json", "csv"])
def test_a_run_that_fails_leaves_an_older_output_as_it_was(format_: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("older")
    with pytest.raises(KeyboardInterrupt), open_output(format_, out) as stream:
        _write_half(stream)
    assert out.read_text() == "older"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
