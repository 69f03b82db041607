"""A user's own folder of pictures with labels.csv."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sigrl_deploy.datasets.labelled_folder import read_folder
from sigrl_deploy.errors import DatasetError, UsageError
from tests.support.dataset_files import picture, refusal, refused, targets, write

GOOD = {
    "table": ("path,dog,cat\na.jpg,1,0\nb.jpg,,1\n", ("dog", "cat"), {"a.jpg": [1, -1], "b.jpg": [0, 1]}),
    "table with -1": ("path,dog,cat\na.jpg,1,0\nb.jpg,-1,\n", ("dog", "cat"), {"a.jpg": [1, 0], "b.jpg": [-1, 0]}),
    "list": (
        "path,labels\na.jpg,dog; cat ;\nb.jpg,\nc.jpg,traffic light\n",
        ("cat", "dog", "traffic light"),
        {"a.jpg": [1, 1, -1], "b.jpg": [-1, -1, -1], "c.jpg": [-1, -1, 1]},
    ),
    "list that repeats": ("path,labels\na.jpg,dog;dog\n", ("dog",), {"a.jpg": [1]}),
    "as a spreadsheet saves it": ("\ufeffpath,dog\r\na.jpg, 1\r\n\r\n", ("dog",), {"a.jpg": [1]}),
    "quoted": (
        'path,"lemon, lime"\n"a,b.jpg",1\n"say ""hi"".jpg",0\n',
        ("lemon, lime",),
        {"a,b.jpg": [1], 'say "hi".jpg': [-1]},
    ),
    "with splits": (
        "path,split,labels\na.jpg,train,dog\nb.jpg,val,cat\nc.jpg, test ,dog;cat\n",
        ("cat", "dog"),
        {"a.jpg": [-1, 1], "b.jpg": [1, -1], "c.jpg": [1, 1]},
    ),
    "one label called split": ("path,dog,split\na.jpg,1,0\n", ("dog", "split"), {"a.jpg": [1, -1]}),
    "one label called labels": ("path,labels,dog\na.jpg,1,0\n", ("labels", "dog"), {"a.jpg": [1, -1]}),
}


@pytest.mark.parametrize(("text", "labels", "rows"), GOOD.values(), ids=GOOD)
def test_both_forms_are_read(tmp_path: Path, text: str, labels: tuple[str, ...], rows: dict[str, list[int]]) -> None:
    csv_file = write(tmp_path / "labels.csv", text)
    for root in (tmp_path, csv_file):
        dataset = read_folder(root)
        assert dataset.labels == labels
        assert dataset.label_sets == {"all": labels}
        assert list(targets(dataset).items()) == list(rows.items())


def test_paths_are_relative_to_the_csv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "sub" / "photos" / "a.jpg")
    write(tmp_path / "sub" / "validation.csv", "path,labels\nphotos/a.jpg,dog\n./b.jpg,cat\n")
    monkeypatch.chdir(tmp_path)
    dataset = read_folder(Path("sub/validation.csv"))
    assert dataset.name(0) == os.path.join("sub", "photos", "a.jpg")
    assert dataset.name(1) == os.path.join("sub", "b.jpg")
    assert dataset.image(0).size == (8, 8)


BAD = {
    "empty": ("", "line 1"),
    "no header": ("a.jpg,dog\n", "line 1"),
    "paths alone": ("path\na.jpg\n", "line 1"),
    "semicolons": ("path;dog\na.jpg;1\n", "line 1"),
    "no rows": ("path,dog\n", "no picture"),
    "no labels": ("path,labels\na.jpg,\n", "no labels"),
    "label twice": ("path,dog,dog\na.jpg,1,1\n", "'dog' repeats"),
    "label missing": ("path,dog,\na.jpg,1,1\n", "item 1"),
    "word": ("path,dog,cat\na.jpg,1,0\nb.jpg,1,yes\n", "line 3: 'yes' for 'cat'"),
    "too few": ("path,dog,cat\na.jpg,1\n", "line 2: 2 cells.* 3"),
    "too many": ("path,labels\na.jpg,dog,cat\n", "line 2: 3 cells.* 2"),
    "twice": ("path,dog\na.jpg,1\n\na.jpg,0\n", "line 4: 'a.jpg' .*line 2"),
    "way up": ("path,dog\na.jpg,1\nsub/../../b.jpg,1\n", r"line 3: 'sub/\.\./\.\./b\.jpg'"),
    "absolute": ("path,dog\n/etc/b.jpg,1\n", "line 2: '/etc/b.jpg'"),
    "no path": ("path,dog\n,1\n", "line 2: ''"),
    "folder itself": ("path,dog\n.,1\n", r"line 2: '\.'"),
    "open quote": ('path,dog\n"a.jpg,1\n', "line 2"),
    "Latin-1": ("path,dog\n\udce9.jpg,1\n", "UTF-8"),
    "huge cell": ("path,labels\na.jpg," + "x" * 200_000, "line 2"),
    "huge row": ("path,labels\n" + "," * (1 << 23), "line 2: .*4194304"),
    "row without an end": ("path,labels\n" + '"\n",' * (1 << 21), "4194304"),
    "a million columns": ("path" + ",x" * 1_000_000, "1000000 labels"),
    "more targets than bytes": (
        "path,labels\n" + "".join(f"{i},{i}\n" for i in range(99_000)),
        "2147[0-9]{6} pictures times labels",
    ),
    "no labels behind split": ("path,split\na.jpg,train\n", "line 1"),
    "no split": ("path,split,dog\na.jpg,train,1\nb.jpg,1,1\n", "line 3: '1' for 'split'"),
    "split left empty": ("path,split,dog\na.jpg,,1\n", "line 2: '' for 'split'"),
    "long word": ("path,dog\na.jpg," + "y" * 1000, "line 2: '" + "y" * 100 + "'… for 'dog'"),
}


@pytest.mark.parametrize(("text", "fact"), BAD.values(), ids=BAD)
def test_a_csv_that_is_not_as_described_is_refused(tmp_path: Path, text: str, fact: str) -> None:
    (tmp_path / "labels.csv").write_bytes(text.encode(errors="surrogateescape"))
    message = refusal(DatasetError, lambda: read_folder(tmp_path))
    assert message.startswith(str(tmp_path))
    assert re.search(fact, message)


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    # Python 3.10's csv refuses the line, later ones leave it to us.
    write(tmp_path / "labels.csv", "path,dog\na\0.jpg,1\n")
    assert "line 2: " in refusal(DatasetError, lambda: read_folder(tmp_path))


@pytest.mark.parametrize("kind", ["pipe", "endless", "large"])
def test_a_csv_of_no_end_is_refused_before_it_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "labels.csv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 40)  # no room is taken
    message = refusal(DatasetError, lambda: read_folder(tmp_path))
    assert message.startswith(
        f"{path}: cannot be read ({'has 1,099,511,627,776 bytes' if kind == 'large' else 'is a folder, pipe'}"
    )


SPLIT = "path,split,dog,cat\na.jpg,train,1,0\nb.jpg,test,0,1\nc.jpg,train,1,1\n"


def test_a_column_says_what_each_picture_is_for(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", SPLIT)
    assert list(targets(read_folder(tmp_path, "train"))) == ["a.jpg", "c.jpg"]
    assert list(targets(read_folder(tmp_path, "test"))) == ["b.jpg"]
    assert str(tmp_path / "labels.csv") in refusal(UsageError, lambda: read_folder(tmp_path, "val"))
    assert refused(UsageError, lambda: read_folder(tmp_path, "train", 0.1)).argument == "validation_share"


def test_labels_are_the_same_in_every_split(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", "path,split,labels\na.jpg,train,dog\nb.jpg,val,cat\n")
    assert targets(read_folder(tmp_path, "train")) == {"a.jpg": [-1, 1]}
    assert targets(read_folder(tmp_path, "val")) == {"b.jpg": [1, -1]}


def test_a_picture_that_was_set_apart_stays_apart_when_others_are_added(tmp_path: Path) -> None:
    def write_pictures(numbers: list[int]) -> None:
        write(tmp_path / "labels.csv", "path,labels\n" + "".join(f"sub/{i}.jpg,dog\n" for i in numbers))

    write_pictures(list(range(300)))
    train, val = (set(targets(read_folder(tmp_path, split, 0.1))) for split in ("train", "val"))
    assert train.isdisjoint(val)
    assert len(train | val) == 300
    assert 15 <= len(val) <= 45  # 30, give or take three standard deviations
    write_pictures(list(range(599, -1, -1)))
    more_train, more_val = (set(targets(read_folder(tmp_path, split, 0.1))) for split in ("train", "val"))
    assert (train < more_train, val < more_val) == (True, True)
    assert more_val < set(targets(read_folder(tmp_path, "val", 0.2)))


def test_without_pictures_set_apart_none_validate(tmp_path: Path) -> None:
    write(tmp_path / "labels.csv", "path,labels\na.jpg,dog\nb.jpg,cat\n")
    for split in ("train", "test", None):
        assert list(targets(read_folder(tmp_path, split))) == ["a.jpg", "b.jpg"]
    assert "`validation_share`" in refusal(UsageError, lambda: read_folder(tmp_path, "val"))
    for split, share in (("test", 0.1), ("val", 1e-9)):
        error = refused(UsageError, lambda split=split, share=share: read_folder(tmp_path, split, share))
        assert error.argument == "validation_share"


def test_a_missing_csv_is_named_with_what_it_should_hold(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "labels.csv"):
        message = refusal(DatasetError, lambda root=root: read_folder(root))
        assert message.startswith(
            f"{tmp_path / 'labels.csv'}: no such file; expected a CSV file with the columns path and labels"
        )


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = refusal(DatasetError, lambda: read_folder(tmp_path / "gone"))
    assert message.startswith(f"{tmp_path / 'gone'}: ")
