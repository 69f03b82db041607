"""The file that a vocabulary is kept in."""

from pathlib import Path

import numpy as np
import pytest

from sigrl_deploy.errors import LabelError
from sigrl_deploy.files import DamagedFileError, write_arrays
from sigrl_deploy.vocabulary.vocabulary import Vocabulary
from tests.support.refusals import refused

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
