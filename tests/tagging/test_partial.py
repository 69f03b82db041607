"""What an unfinished file of records may hold, and what goes on from it."""

from __future__ import annotations

from pathlib import Path
from typing import TextIO

import pytest

from sigrl_deploy.errors import UsageError
from sigrl_deploy.tagging.partial import check_fresh, open_partial, partial_path
from sigrl_deploy.tagging.run_name import name_run
from tests.support.refusals import assert_refused

FIRST = '{"path": "a.jpg", "tags": [], "run": "run"}\n'
FAILED = '{"path": "b.jpg", "error": "is damaged", "run": "run"}\n'
LAST = '{"path": "c.jpg", "tags": [], "run": "run"}\n'
RESUME = {"resume": True, "retry_errors": False, "overwrite": False}


def _stop(stream: TextIO) -> None:
    stream.flush()
    raise KeyboardInterrupt


def test_a_line_cut_in_half_is_left_out_and_what_failed_is_known(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    partial_path(out).write_text(FIRST + FAILED + LAST[:-9])
    with open_partial(out, "run", **RESUME) as partial:
        assert partial.done == {"a.jpg": False, "b.jpg": True}
        partial.stream.write(LAST)
    assert out.read_text() == FIRST + FAILED + LAST
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("finished", [True, False])
def test_errors_are_left_out_where_they_are_tried_again(tmp_path: Path, finished: bool) -> None:
    out = tmp_path / "out.jsonl"
    (out if finished else partial_path(out)).write_text(FIRST + FAILED + LAST + FAILED[:5])
    with pytest.raises(KeyboardInterrupt), open_partial(out, "run", **RESUME | {"retry_errors": True}) as partial:
        _stop(partial.stream)
    assert partial.done == {"a.jpg": False, "c.jpg": False}
    assert partial_path(out).read_text() == FIRST + LAST
    assert not finished or out.read_text() == FIRST + FAILED + LAST + FAILED[:5]


@pytest.mark.parametrize("retry_errors", [True, False])
@pytest.mark.parametrize("content", ["", FIRST, FAILED])
def test_a_file_that_is_gone_on_with_is_kept_from_others(tmp_path: Path, content: str, retry_errors: bool) -> None:
    """Also where it had to be written anew."""
    out = tmp_path / "out.jsonl"
    for source in (out, partial_path(out)):
        source.write_text(content)
        with open_partial(out, "run", **RESUME | {"retry_errors": retry_errors}) as partial:
            assert_refused(open_partial(out, "run", **RESUME).__enter__, UsageError, "out: ", source.name)
            partial.stream.write(LAST)
        assert out.read_text().endswith(LAST)
        out.unlink()


def test_nothing_is_left_where_nothing_was_written(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt), open_partial(out, "run", **RESUME) as partial:
        _stop(partial.stream)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_no_work_to_be_lost(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.touch()
    partial_path(out).touch()
    check_fresh(out)
    out.write_text(FIRST)
    for resumable in (True, False):
        with pytest.raises(UsageError) as raised:
            check_fresh(out, resumable=resumable)
        assert (raised.value.argument, raised.value.value) == ("out", out)
        assert ("`resume`" in str(raised.value)) == resumable


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1]",
        "7",
        '{"path": "a.jpg"}',
        '{"path": ["a.jpg"], "run": "run"}',
        "\xff\xfe",
        '{"path": "a.jpg", "run": "x"}',
    ],
)
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("retry_errors", [True, False])
def test_a_file_of_something_else_is_refused_and_left_alone(
    tmp_path: Path, line: str, finished: bool, retry_errors: bool
) -> None:
    out = tmp_path / "out.jsonl"
    file = out if finished else partial_path(out)
    before = (FIRST + line + "\n").encode("latin-1", "backslashreplace")
    file.write_bytes(before)
    how = RESUME | {"retry_errors": retry_errors}
    assert_refused(open_partial(out, "run", **how).__enter__, UsageError, "line 2")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bundle": "other"}, "another bundle"),
        ({"labels": ("cat",)}, "other labels"),
        ({"engine": "torch", "options": 7}, "another backend, precision, preprocessing or crop and other options"),
    ],
)
def test_the_error_names_what_differs_from_the_run_that_is_resumed(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    made = {"bundle": "manifest", "engine": "onnxruntime", "labels": ("cat", "dog"), "options": (5, None)}
    out = tmp_path / "out.jsonl"
    partial_path(out).write_text(FIRST.replace('"run"}', f'"{name_run(**made)}"}}'))
    with open_partial(out, name_run(**made), **RESUME) as partial:
        assert partial.done == {"a.jpg": False}
    with pytest.raises(UsageError) as raised, open_partial(out, name_run(**made | changes), **RESUME):
        pass
    assert raised.value.argument == "resume"
    assert f"was written with {said}" in str(raised.value)
    assert len(name_run(**made)) < 40
