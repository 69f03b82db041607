"""COCO 2014 and VOC 2012 from the files their owners publish."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sigrl_deploy.datasets.coco import read_coco
from sigrl_deploy.datasets.single_positive import hold_out
from sigrl_deploy.datasets.voc import CLASSES, read_voc
from sigrl_deploy.errors import DatasetError, ImageError
from tests.support.dataset_files import picture, refusal, targets, write
from tests.support.refusals import assert_refused

IDS = [9, 25, 30, 34, 36, 100, 110, 1000, 2000, 3]
Content = dict[str, Any]


def coco_content(official: str = "train2014") -> Content:
    """Ten pictures, three categories; picture i has category i mod 3, but that 30 has nothing."""
    return {
        "info": {"year": 2014},
        "images": [{"id": id_, "file_name": f"COCO_{official}_{id_:012}.jpg", "width": 8} for id_ in IDS],
        "categories": [{"id": 44, "name": "bottle"}, {"id": 3, "name": "car"}, {"id": 16, "name": "bird"}],
        "annotations": [
            {"id": i, "image_id": id_, "category_id": (3, 16, 44)[i % 3], "segmentation": [[0.5, 1.5]], "iscrowd": i % 2}
            for i, id_ in enumerate(IDS)
            if id_ != 30
        ]
        + [{"id": 98, "image_id": 9, "category_id": 44}, {"id": 99, "image_id": 9, "category_id": 44}],
    }


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    for official in ("train2014", "val2014"):
        write(tmp_path / "annotations" / f"instances_{official}.json", json.dumps(coco_content(official)))
        picture(tmp_path / official / f"COCO_{official}_{9:012}.jpg")
    return tmp_path


def _expected(ids: list[int], official: str) -> dict[str, list[int]]:
    rows = {id_: [1 if i % 3 == column else -1 for column in range(3)] for i, id_ in enumerate(IDS)}
    rows[30] = [-1, -1, -1]
    rows[9][2] = 1
    return {f"COCO_{official}_{id_:012}.jpg": rows[id_] for id_ in ids}


def test_coco_splits_follow_the_single_positive_protocol(coco: Path) -> None:
    by_text = sorted(IDS, key=str)
    test = read_coco(coco, "test")
    assert test.labels == ("car", "bird", "bottle")
    assert test.label_sets == {"all": test.labels}
    assert list(targets(test).items()) == list(_expected(by_text, "val2014").items())
    train, val = read_coco(coco, "train"), read_coco(coco, "val")
    annotated = [id_ for id_ in by_text if id_ != 30]
    held_out = [annotated[i] for i in hold_out(np.ones((9, 1), np.int8), "val")]
    assert len(held_out) == 2
    assert list(targets(val).items()) == list(_expected(held_out, "train2014").items())
    assert list(targets(train).items()) == list(_expected([i for i in by_text if i not in held_out], "train2014").items())


def test_coco_pictures_are_read_and_a_missing_one_is_named(coco: Path) -> None:
    test = read_coco(coco, "test")
    at = [test.name(i) for i in range(len(test))].index(str(coco / "val2014" / "COCO_val2014_000000000009.jpg"))
    assert test.image(at).size == (8, 8)
    assert_refused(lambda: test.image(0), ImageError, "COCO_val2014_000000000100.jpg")


def test_a_folder_of_pictures_may_be_a_link(coco: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "pictures"
    (coco / "val2014").rename(elsewhere)
    (coco / "val2014").symlink_to(elsewhere)
    assert len(read_coco(coco, "test")) == 10


def test_all_missing_coco_files_are_named_at_once(tmp_path: Path) -> None:
    message = refusal(DatasetError, lambda: read_coco(tmp_path, "test"))
    assert str(tmp_path) in message
    assert "annotations/instances_val2014.json, val2014/" in message
    assert str(tmp_path / "gone") in refusal(DatasetError, lambda: read_coco(tmp_path / "gone", "test"))


def _changed(change: Callable[[Content], object]) -> str:
    content = coco_content("val2014")
    change(content)
    return json.dumps(content)


BAD_COCO = {
    "cut": (json.dumps(coco_content())[:-9], "JSON"),
    "not UTF-8": ("\udcff", "UTF-8"),
    "nested garbage": ('{"garbage": [' + "[],{}," * 10_500_000 + "[]]}", "20000000"),
    "deep": ("[" * 200_000, "JSON"),
    "list": ("[]", "categories or images or annotations"),
    "captions": (_changed(lambda c: c.pop("categories")), "categories"),
    "number": (_changed(lambda c: c["images"].append(3)), r"images\[10\]: .*file_name"),
    "id is text": (_changed(lambda c: c["categories"][1].update(id="3")), r"categories\[1\]: .*id"),
    "no category": (_changed(lambda c: c["annotations"][2].pop("category_id")), r"annotations\[2\]: .*category_id"),
    "unknown picture": (_changed(lambda c: c["annotations"][2].update(image_id=5)), r"annotations\[2\]: image_id 5"),
    "unknown category": (_changed(lambda c: c["annotations"][2].update(category_id=5)), "category_id 5"),
    "category twice": (_changed(lambda c: c["categories"].append({"id": 3, "name": "x"})), "categories: "),
    "picture twice": (_changed(lambda c: c["images"].append({"id": 9, "file_name": "x.jpg"})), "images: "),
    "label twice": (_changed(lambda c: c["categories"][0].update(name="car")), "'car' repeats"),
    "way up": (_changed(lambda c: c["images"][3].update(file_name="../x.jpg")), r"image 34: '\.\./x\.jpg'"),
    "absolute": (_changed(lambda c: c["images"][3].update(file_name="/etc/x.jpg")), "image 34: '/etc/x.jpg'"),
    "empty": (_changed(lambda c: c.update(images=[], annotations=[])), "no picture"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "fact"), BAD_COCO.values(), ids=BAD_COCO)
def test_a_damaged_coco_file_is_refused(coco: Path, text: str, fact: str) -> None:
    path = coco / "annotations" / "instances_val2014.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    message = refusal(DatasetError, lambda: read_coco(coco, "test"))
    assert str(coco) in message
    assert re.search(fact, message)


NAMES = [f"2008_{i:06}" for i in (2, 3, 7, 8, 9, 15, 16, 19, 21, 23)]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Ten pictures: aeroplane in the first, third, ...; bicycle in the others; bird difficult in all; a person in none."""
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for official in ("train", "val"):
        for label in CLASSES:
            # As the owners write it: values right-aligned in two columns.
            values = {"aeroplane": (1, -1), "bicycle": (-1, 1), "bird": (0, 0)}.get(label, (-1, -1))
            lines = [f"{name} {values[i % 2]:2}" for i, name in enumerate(NAMES)]
            write(base / "ImageSets" / "Main" / f"{label}_{official}.txt", "\n".join(lines) + "\n")
    picture(base / "JPEGImages" / f"{NAMES[0]}.jpg")
    return base


def test_voc_splits_follow_the_single_positive_protocol(voc: Path) -> None:
    rest = [-1] * 17
    expected = {f"{name}.jpg": [(1, -1, 0), (-1, 1, 0)][i % 2] for i, name in enumerate(NAMES)}
    expected_rows = {name: [*row, *rest] for name, row in expected.items()}
    test, train, val = (read_voc(voc, split) for split in ("test", "train", "val"))
    assert test.labels == CLASSES
    assert len(CLASSES) == 20
    assert list(targets(test).items()) == list(expected_rows.items())
    held_out = [f"{NAMES[i]}.jpg" for i in hold_out(np.ones((10, 1), np.int8), "val")]
    assert list(targets(val)) == held_out
    assert list(targets(train)) == [name for name in expected if name not in held_out]
    assert test.image(0).size == (8, 8)


def test_voc_is_found_from_its_folder_and_from_the_two_above(voc: Path) -> None:
    assert {read_voc(root, "test").name(0) for root in (voc, voc.parent, voc.parent.parent)} == {
        str(voc / "JPEGImages" / f"{NAMES[0]}.jpg")
    }


def test_missing_voc_files_are_named_at_once(voc: Path, tmp_path: Path) -> None:
    message = refusal(DatasetError, lambda: read_voc(tmp_path / "ImageSets", "train"))
    assert f"{tmp_path / 'ImageSets' / 'VOCdevkit' / 'VOC2012'}" in message
    for label in ("cat", "dog"):
        (voc / "ImageSets" / "Main" / f"{label}_val.txt").unlink()
    (voc / "JPEGImages").rename(voc / "Pictures")
    message = refusal(DatasetError, lambda: read_voc(tmp_path, "test"))
    assert "missing: ImageSets/Main/cat_val.txt, ImageSets/Main/dog_val.txt, JPEGImages/;" in message


BAD_VOC = {
    "word": ("2008_000002 yes\n", r"dog_val.txt, line 1: '2008_000002 yes'"),
    "name alone": ("2008_000002\n", "line 1: "),
    "twice": ("2008_000002 1\n\n2008_000002 1\n", "line 3: "),
    "fewer": ("2008_000002 1\n", r"dog_val.txt: picture '2008_000003' .*aeroplane_val.txt"),
    "way out": ("../2008_000002 1\n", r"line 1: '\.\./2008_000002'"),
    "not UTF-8": ("\udcff", "dog_val.txt: .*UTF-8"),
}


@pytest.mark.parametrize(("text", "fact"), BAD_VOC.values(), ids=BAD_VOC)
def test_a_damaged_voc_file_is_refused(voc: Path, text: str, fact: str) -> None:
    (voc / "ImageSets" / "Main" / "dog_val.txt").write_bytes(text.encode(errors="surrogateescape"))
    assert re.search(fact, refusal(DatasetError, lambda: read_voc(voc, "test")))
