"""Label files as people write them, and the file that a vocabulary is kept in."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigrl_deploy.errors import LabelError
from sigrl_deploy.files import DamagedFileError, write_arrays
from sigrl_deploy.labels.names import MAX_LABEL_LENGTH, check_labels, read_labels
from sigrl_deploy.vocabulary.vocabulary import Vocabulary
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


ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_vocabulary_file_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    wanted = Vocabulary(("犬", "dog"), ROWS, ROWS + 1)
    wanted.write(path)
    found = Vocabulary.read(path, graph=True, width=3)
    assert found.labels == wanted.labels
    assert np.array_equal(found.label_embedding, ROWS)
    assert np.array_equal(found.graph_projection, ROWS + 1)
    assert found.labels == wanted.labels
    assert [path.name for path in tmp_path.iterdir()] == ["v.npz"]
    assert found.index("dog") == 1
    assert refused(lambda: found.index("cat"), LabelError) == ("label", "cat")


LABELS = np.array(["a", "b"])
WRONG = {
    "no graph": {"labels": LABELS, "label_embedding": ROWS},
    "a scalar": {"labels": np.array("a"), "label_embedding": ROWS, "graph_projection": ROWS},
    "no text": {"labels": np.arange(2), "label_embedding": ROWS, "graph_projection": ROWS},
    "a row too few": {"labels": LABELS, "label_embedding": ROWS[:1], "graph_projection": ROWS},
    "graph of another width": {"labels": LABELS, "label_embedding": ROWS, "graph_projection": ROWS[:, :2]},
    "fp64": {"labels": LABELS, "label_embedding": ROWS.astype(np.float64), "graph_projection": ROWS},
    "NaN": {"labels": LABELS, "label_embedding": ROWS, "graph_projection": ROWS * np.float32("nan")},
    "nothing": {"labels": LABELS[:0], "label_embedding": ROWS[:0], "graph_projection": ROWS[:0]},
}


@pytest.mark.parametrize("arrays", WRONG.values(), ids=WRONG)
def test_file_of_something_else(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_arrays(tmp_path / "v.npz", arrays)
    with pytest.raises(DamagedFileError, match=r"v\.npz"):
        Vocabulary.read(tmp_path / "v.npz", graph=True, width=3)


def test_every_cut_and_every_flipped_byte_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    Vocabulary(("a", "b"), ROWS, ROWS).write(path)
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedFileError):
            Vocabulary.read(path, graph=True, width=3)
    for position in range(0, len(whole), 3):
        broken = bytearray(whole)
        broken[position] ^= 0xFF
        path.write_bytes(broken)
        try:
            found = Vocabulary.read(path, graph=True, width=3)
        except DamagedFileError:
            continue
        # what zip leaves unchecked (dates, attributes) holds none of the arrays
        assert found.labels == ("a", "b")
        assert np.array_equal(found.label_embedding, ROWS)
        assert np.array_equal(found.graph_projection, ROWS)


def test_file_gets_the_umasks_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    Vocabulary(("a", "b"), ROWS).write(tmp_path / "v.npz")
    assert (tmp_path / "v.npz").stat().st_mode == plain.stat().st_mode


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "v.npz"
    Vocabulary(("a", "b"), ROWS).write(path)
    with pytest.raises(ValueError, match="pickle"):
        write_arrays(path, {"labels": np.array([{}], dtype=object)})
    assert Vocabulary.read(path, graph=False, width=3).labels == ("a", "b")
    assert list(tmp_path.iterdir()) == [path]


def test_labels_from_a_pipe_and_from_what_never_ends(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"cat\ndog\n")
    os.close(writing)
    assert read_labels(f"/dev/fd/{reading}") == ("cat", "dog")
    os.close(reading)
    assert_refused(lambda: read_labels("/dev/zero"), LabelError, "labels='/dev/zero'", "64 MB")
    assert refused(lambda: read_labels("a\0b"), LabelError) == ("labels", "a\0b")
