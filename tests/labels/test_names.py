"""Files of lines, and labels that are nothing but names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sigrl_deploy.errors import LabelError
from sigrl_deploy.labels.names import MAX_LABEL_LENGTH, check_labels, read_labels
from tests.support.refusals import assert_refused, refused


def label_file(folder: Path, content: bytes) -> Path:
    path = folder / "labels.txt"
    path.write_bytes(content)
    return path


GOOD = {
    "plain": (b"dog\ncat", ("dog", "cat")),
    "byte order mark": (b"\xef\xbb\xbfdog\ncat\n", ("dog", "cat")),
    "mark before a comment": (b"\xef\xbb\xbf# animals\ncat\n", ("cat",)),
    "CRLF": (b"dog\r\ncat\r\n", ("dog", "cat")),
    "CR": (b"dog\rcat\r", ("dog", "cat")),
    "comments, blank lines": (b"# animals\n\n  \t\ndog\n  # indented\ncat\n", ("dog", "cat")),
    "# inside": (b"c# code\n", ("c# code",)),
    "spaces": (b"  traffic light \t\n", ("traffic light",)),
    "wide spaces": ("\u3000犬\u00a0\n".encode(), ("犬",)),
    "joined emoji": ("👩\u200d👩\u200d👧\n".encode(), ("👩\u200d👩\u200d👧",)),
    "case differs": (b"dog\nDog\n", ("dog", "Dog")),
    "longest": (b"x" * MAX_LABEL_LENGTH, ("x" * MAX_LABEL_LENGTH,)),
}


@pytest.mark.parametrize(("content", "expected"), GOOD.values(), ids=GOOD)
def test_label_file(tmp_path: Path, content: bytes, expected: tuple[str, ...]) -> None:
    assert read_labels(label_file(tmp_path, content)) == expected


BAD = {
    "empty": (b"", ()),
    "mark alone": (b"\xef\xbb\xbf", ()),
    "comments alone": (b"# dog\n\n#cat\n", ()),
    "duplicate": (b"# animals\ndog\ncat\n\ndog\n", ("line 5", "'dog'", "line 2")),
    "duplicate after stripping": (b"dog\r\n dog \r\n", ("line 2", "'dog'", "line 1")),
    "latin-1": (b"dog\ncaf\xe9\n", ("line 2", "UTF-8")),
    "UTF-16": ("dog\n".encode("utf-16"), ("line 1", "UTF-8")),
    "surrogate": (b"dog\n\xed\xa0\x80\n", ("line 2", "UTF-8")),
    "long": (b"dog\n" + b"x" * 300, ("line 2", "300", str(MAX_LABEL_LENGTH))),
    "tab": (b"dog\ttail\n", ("line 1", r"'dog\ttail'")),
    "NUL": (b"cat\ndog\x00tail\n", ("line 2",)),
    "escape": (b"\x1b[31mdog\n", ("line 1",)),
    "form feed": (b"dog\x0ccat\n", ("line 1",)),
    "next line": ("dog\u0085cat\n".encode(), ("line 1",)),
    "line separator": ("dog\u2028cat\n".encode(), ("line 1",)),
    "paragraph separator": ("cat\ndog\u2029cat\n".encode(), ("line 2",)),
}


@pytest.mark.parametrize(("content", "facts"), BAD.values(), ids=BAD)
def test_bad_label_file(tmp_path: Path, content: bytes, facts: tuple[str, ...]) -> None:
    path = label_file(tmp_path, content)
    assert refused(lambda: read_labels(path), LabelError) == ("labels", path)
    assert_refused(lambda: read_labels(path), LabelError, *facts)


def test_label_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.txt"):
        assert refused(lambda path=path: read_labels(path), LabelError) == ("labels", path)


def test_labels_given_in_code() -> None:
    assert check_labels([" dog ", "# 1"]) == ("dog", "# 1")
    wrong: list[tuple[Any, tuple[str, ...]]] = [
        ([], ()),
        (["dog", " "], ("item 1",)),
        (["a", "a"], ("item 1", "'a'", "item 0")),
        (["a", 1], ("item 1", "int")),
        ({"a", "b"}, ("a set",)),
        (frozenset("ab"), ("a frozenset",)),
        (["\ud800"], ("item 0",)),
    ]
    for labels, facts in wrong:
        assert_refused(lambda labels=labels: check_labels(labels), LabelError, "labels: ", *facts)


def test_labels_from_a_pipe_and_from_what_never_ends(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"cat\ndog\n")
    os.close(writing)
    assert read_labels(f"/dev/fd/{reading}") == ("cat", "dog")
    os.close(reading)
    assert_refused(lambda: read_labels("/dev/zero"), LabelError, "labels='/dev/zero'", "64 MB")
    assert refused(lambda: read_labels("a\0b"), LabelError) == ("labels", "a\0b")
