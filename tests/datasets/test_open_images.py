"""Open Images' verified labels, held sparsely, against a plain dictionary."""

from __future__ import annotations

import csv
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigrl_deploy.datasets.open_images import OpenImages
from sigrl_deploy.errors import DatasetError, LabelError
from tests.support.dataset_files import picture, refusal, targets, write

# Two cranes and two bats; the last is in no list of classes.
NAMES = {"/m/a": "Crane", "/m/b": "Dog", "/m/c": "Crane", "/m/d": "Lemon, lime", "/m/e": "Bat", "/m/f": "Bat", "/m/z": "Other"}
SEEN = ["/m/b", "/m/a", "/m/c"]
UNSEEN = ["/m/f", "/m/d", "/m/e"]
LABELS = ("Dog", "Crane", "Bat", "Lemon, lime")
IDS = ["ffffffffffffffff", "0000000000000000", "8000000000000001", "7fffffffffffffff", "00000000000000a0"]
Row = tuple[str, str, str]  # image id, MID, confidence


def _csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def _make(root: Path, rows: Sequence[Row], unseen: bool = True, split: str = "test") -> Path:
    _csv(root / "class-descriptions.csv", list(NAMES.items()))
    write(root / "classes-trainable.txt", "\n".join(SEEN if unseen else SEEN + UNSEEN))
    if unseen:
        write(root / "classes-unseen.txt", "# chosen by hand\n" + "\n".join(UNSEEN))
    header = ("ImageID", "Source", "LabelName", "Confidence")
    annotations = [header, *((id_, "verification", mid, confidence) for id_, mid, confidence in rows)]
    _csv(root / f"{split}-annotations-human-imagelabels.csv", annotations)
    (root / split).mkdir(exist_ok=True)
    return root


def _reference(rows: Sequence[Row]) -> dict[str, list[int]]:
    """A label of several MIDs is the "or" of three-valued logic: true if any is, false if all are."""
    verified: dict[str, dict[str, int]] = defaultdict(dict)
    for id_, mid, confidence in rows:
        value = 1 if float(confidence) else -1
        verified[id_][mid] = max(value, verified[id_].get(mid, -1))
    expected = {}
    for id_ in sorted(verified):
        row = []
        for label in LABELS:
            values = [verified[id_].get(mid, 0) for mid, name in NAMES.items() if name == label]
            row.append(1 if 1 in values else -1 if set(values) == {-1} else 0)
        if any(row):
            expected[f"{id_}.jpg"] = row
    return expected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(IDS), st.sampled_from([*NAMES, "/m/y"]), st.sampled_from(["1", "0", "1.0", "0.0"]))))
def test_any_rows_in_any_order_give_what_a_dictionary_gives(rows: list[Row]) -> None:
    expected = _reference(rows)
    with tempfile.TemporaryDirectory() as folder:
        root = _make(Path(folder), rows)
        if not expected:
            assert "has no row about any of the 4 labels" in refusal(DatasetError, lambda: OpenImages(root, "test"))
            return
        dataset = OpenImages(root, "test")
    assert dataset.labels == LABELS
    assert dataset.label_sets == {"seen": LABELS[:2], "unseen": LABELS[2:], "all": LABELS}
    assert list(targets(dataset).items()) == list(expected.items())
    with pytest.raises(IndexError):
        dataset.targets(len(dataset))


ROWS = [(IDS[0], "/m/b", "1"), (IDS[4], "/m/b", "0")]


def test_without_a_list_of_unseen_classes_there_is_one_label_set(tmp_path: Path) -> None:
    dataset = OpenImages(_make(tmp_path, ROWS, unseen=False), "test")
    assert dataset.label_sets == {"all": ("Dog", "Crane", "Bat", "Lemon, lime")}


@pytest.mark.parametrize(
    ("split", "folder", "annotations"),
    [
        ("train", "train", "train-annotations-human-imagelabels.csv"),
        ("train", "train", "oidv6-train-annotations-human-imagelabels.csv"),
        ("train", "train", "oidv7-train-annotations-human-imagelabels.csv"),
        ("val", "validation", "validation-annotations-human-imagelabels.csv"),
        ("val", "validation", "oidv7-val-annotations-human-imagelabels.csv"),
        ("test", "test", "oidv7-test-annotations-human-imagelabels.csv"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "oidv6-", "oidv7-"])
def test_the_names_of_every_version_are_known(tmp_path: Path, split: str, folder: str, annotations: str, prefix: str) -> None:
    _make(tmp_path, ROWS, split=folder)
    (tmp_path / f"{folder}-annotations-human-imagelabels.csv").rename(tmp_path / annotations)
    (tmp_path / "class-descriptions.csv").unlink()
    _csv(tmp_path / f"{prefix}class-descriptions.csv", [("LabelName", "DisplayName")][: len(prefix)] + list(NAMES.items()))
    (tmp_path / "classes-trainable.txt").rename(tmp_path / f"{prefix}classes-trainable.txt")
    picture(tmp_path / folder / f"{IDS[0]}.jpg")
    dataset = OpenImages(tmp_path, split)
    assert [Path(dataset.name(i)).name for i in range(len(dataset))] == [f"{IDS[4]}.jpg", f"{IDS[0]}.jpg"]
    assert dataset.name(1) == str(tmp_path / folder / f"{IDS[0]}.jpg")
    assert dataset.image(1).size == (8, 8)


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    message = refusal(DatasetError, lambda: OpenImages(tmp_path, "val"))
    for missing in (
        "validation-annotations-human-imagelabels.csv or oidv6-validation-annotations-human-imagelabels.csv",
        "class-descriptions.csv or oidv6-class-descriptions.csv",
        "classes-trainable.txt or oidv6-classes-trainable.txt",
        "validation/;",
    ):
        assert missing in message


def _line(text: str) -> str:
    return f"ImageID,Source,LabelName,Confidence\n{IDS[0]},verification,/m/b,1\n{text}\n"


BAD = {
    "test-annotations-human-imagelabels.csv": [
        ("", "line 1: .*ImageID, LabelName, Confidence"),
        (f"{IDS[0]},verification,/m/b,1\n", "line 1"),
        (_line(f"{IDS[0]},verification,/m/b"), "line 3: 3 cells.* 4"),
        (_line(f"{IDS[0]},machine,/m/b,0.7"), "line 3"),
        (_line("../../../x,verification,/m/b,1"), "line 3"),
        (_line("00000000000000A0,verification,/m/b,1"), "line 3"),
        (_line("\udcff"), "UTF-8"),
        (_line('"open'), "line 3"),
    ],
    "class-descriptions.csv": [
        ("/m/a,Crane\n/m/b,Dog,Hound\n", "line 2: 3 cells"),
        ("/m/a,Crane\n/m/b,Dog\n", "classes-trainable.txt: '/m/c' .*class-descriptions.csv"),
        ("/m/b,\n/m/a,x\n/m/c,x\n/m/d,x\n/m/e,y\n/m/f,y\n", "classes-unseen.txt: 'x'"),
        ("/m/b,\n/m/a,x\n/m/c,x\n/m/d,z\n/m/e,y\n/m/f,y\n", "class-descriptions.csv: item 0"),
    ],
    "classes-unseen.txt": [
        ("/m/f\n/m/x\n", "classes-unseen.txt: '/m/x'"),
        ("/m/f\n/m/b\n", "classes-unseen.txt: 'Dog' .*classes-trainable.txt"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "text", "fact"), [(name, *case) for name, cases in BAD.items() for case in cases])
def test_damaged_files_are_refused(tmp_path: Path, name: str, text: str, fact: str) -> None:
    _make(tmp_path, ROWS)
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    message = refusal(DatasetError, lambda: OpenImages(tmp_path, "test"))
    assert str(tmp_path) in message
    assert re.search(fact, message)


def test_one_name_on_both_sides_of_the_zero_shot_protocol_is_refused(tmp_path: Path) -> None:
    """Another MID, but the same text: a label that was trained on is not unseen."""
    _make(tmp_path, ROWS)
    write(tmp_path / "classes-trainable.txt", "/m/a\n/m/b\n")
    write(tmp_path / "classes-unseen.txt", "/m/c\n")
    assert "'Crane' is also a label of" in refusal(DatasetError, lambda: OpenImages(tmp_path, "test"))
    write(tmp_path / "classes-unseen.txt", "/m/f\n/m/f\n")
    assert "line 2: '/m/f' repeats" in refusal(LabelError, lambda: OpenImages(tmp_path, "test"))
