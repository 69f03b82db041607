"""Data sets by name, as the command line gives them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sigrl_deploy.datasets.opening import KINDS, folder_identity, has_splits, open_dataset
from sigrl_deploy.errors import DatasetError, UsageError
from tests.support.dataset_files import picture, refusal, refused, targets, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "labels.csv", "path,labels\na.jpg,dog\nb.jpg,cat\n")
    picture(tmp_path / "a.jpg")
    return tmp_path


def test_a_folder_is_the_same_however_it_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    specs = [
        f"folder:{folder}",
        str(folder),
        str(folder / "labels.csv"),
        f"folder:{folder}/labels.csv",
        f"folder:~/{folder.name}",
    ]
    found = [targets(open_dataset(spec, split)) for spec in specs for split in ("train", "test")]
    assert found == [{"a.jpg": [-1, 1], "b.jpg": [1, -1]}] * 10
    assert len({folder_identity(spec) for spec in specs}) == 1
    assert [has_splits(spec) for spec in specs] == [False] * 5
    write(folder / "labels.csv", "path,split,labels\na.jpg,train,dog\n")
    assert [has_splits(spec) for spec in specs] == [True] * 5
    assert folder_identity("scenes") is None


def test_a_path_with_a_colon_is_a_path(tmp_path: Path) -> None:
    write(tmp_path / "a:b" / "labels.csv", "path,labels\na.jpg,dog\n")
    assert open_dataset(str(tmp_path / "a:b"), "test").labels == ("dog",)
    assert open_dataset(f"folder:{tmp_path / 'a:b'}", "test").labels == ("dog",)


# What each reader says of an empty folder shows that it was the one to look.
SAYS = {
    "nus-wide": "NUS-WIDE is incomplete",
    "coco": "COCO 2014 is incomplete",
    "voc": "no VOC 2012 found",
    "open-images": "Open Images is incomplete",
    "folder": "labels.csv: no such file",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_looks_in_the_folder_given(tmp_path: Path, kind: str) -> None:
    message = refusal(DatasetError, lambda: open_dataset(f"{kind}:{tmp_path}", "test"))
    assert SAYS[kind] in message
    assert str(tmp_path) in message


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_folder_is_an_error_about_data(tmp_path: Path, kind: str) -> None:
    error = refused(UsageError, lambda: open_dataset(f"{kind}:{tmp_path}/gone", "test"))
    assert (error.argument, error.value) == ("data", f"{kind}:{tmp_path}/gone")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_is_between_nothing_and_everything(folder: Path, share: float) -> None:
    error = refused(UsageError, lambda: open_dataset(str(folder), "val", share))
    assert (error.argument, error.value) == ("validation_share", f"{share:g}")


def test_a_data_set_with_splits_takes_no_share() -> None:
    assert refused(UsageError, lambda: open_dataset("scenes", "val", 0.1)).argument == "validation_share"


def test_scenes_take_a_seed() -> None:
    default, zero, seven = (open_dataset(spec, "test") for spec in ("scenes", "scenes:0", "scenes:7"))
    rows = [[dataset.targets(i).tolist() for i in range(5)] for dataset in (default, zero, seven)]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("spec", ["imagenet:/data", "coco", "coco:", "nowhere.csv", "", "scene"])
def test_an_unknown_data_set_is_answered_with_the_known_ones(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(UsageError, lambda: open_dataset(spec, "test"))
    assert (error.argument, error.value) == ("data", spec)
    assert all(known in error.problem for known in (*KINDS, "scenes:SEED"))


@pytest.mark.parametrize("spec", ["scenes:", "scenes:-1", "scenes:x", "scenes:1.5", "scenes:²"])
def test_a_seed_is_a_whole_number(spec: str) -> None:
    error = refused(UsageError, lambda: open_dataset(spec, "test"))
    assert (error.argument, error.value) == ("data", spec)


def test_an_unknown_split_is_answered_with_the_known_ones(folder: Path) -> None:
    error = refused(UsageError, lambda: open_dataset(str(folder), "validation"))
    assert (error.argument, error.value) == ("split", "validation")
    assert "train, val, test" in error.problem


def test_opening_a_folder_imports_neither_h5py_nor_torch(folder: Path) -> None:
    program = (
        "import sys; from sigrl_deploy.datasets.opening import open_dataset; "
        f"open_dataset({str(folder)!r}, 'test').image(0); print(sorted({{'torch', 'h5py', 'sklearn'}} & {{*sys.modules}}))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
