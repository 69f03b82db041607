"""COCO 2014: `annotations/instances_{train,val}2014.json` beside the picture folders `train2014` and `val2014`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sigrl_deploy.datasets.dataset import NEGATIVE, POSITIVE
from sigrl_deploy.datasets.picture_files import PictureFiles
from sigrl_deploy.datasets.reading import check_size, find_files, open_text, picture_path, unique_labels
from sigrl_deploy.datasets.single_positive import hold_out
from sigrl_deploy.errors import DatasetError

_SECTIONS: dict[str, dict[str, type]] = {
    "categories": {"id": int, "name": str},
    "images": {"id": int, "file_name": str},
    "annotations": {"image_id": int, "category_id": int},
}
_LARGEST = 1 << 30  # bytes of a file; twice the size of COCO's own
_MOST_PARTS = 20_000_000  # JSON objects and lists; six times as many as in COCO's own
_KEPT = {*_SECTIONS, *(name for fields in _SECTIONS.values() for name in fields)}


def read_coco(root: Path, split: str) -> PictureFiles:
    """The splits of the single-positive protocol: "train" and "val" from train2014 (see `hold_out`), "test" is val2014.

    A label is positive where the picture has an instance of it, crowds included, and negative elsewhere. Labels are ordered
    by id, pictures by id as text. Pictures without an instance are kept, with all labels negative; the published protocol drops
    them from the test set.

    Raises DatasetError where files are missing or damaged, or a picture's path leads outside its folder.
    """
    official = {"train": "train2014", "val": "train2014", "test": "val2014"}[split]
    path, _ = find_files(root, "COCO 2014", f"annotations/instances_{official}.json", f"{official}/")
    content = _read(path)
    categories = sorted(_entries(path, content, "categories"))
    images = sorted(_entries(path, content, "images"), key=lambda image: str(image[0]))
    row = {id_: i for i, (id_, _) in enumerate(images)}
    column = {id_: i for i, (id_, _) in enumerate(categories)}
    for section, entries, known in (("categories", categories, column), ("images", images, row)):
        if len(known) < len(entries):
            raise DatasetError(f"{path}, {section}: an id occurs twice; download the file again")
    check_size(path, len(images), len(categories))
    targets = np.full((len(images), len(categories)), NEGATIVE, np.int8)
    for number, (image_id, category_id) in enumerate(_entries(path, content, "annotations")):
        if image_id not in row or category_id not in column:
            raise DatasetError(
                f"{path}, annotations[{number}]: image_id {image_id} or category_id {category_id} is not in the file; "
                "download it again"
            )
        targets[row[image_id], column[category_id]] = POSITIVE
    paths = [picture_path(name, f"{path}, image {id_}") for id_, name in images]
    rows = np.arange(len(images)) if split == "test" else hold_out(targets, split)
    labels = unique_labels([name for _, name in categories], path)
    return PictureFiles(root / official, [paths[i] for i in rows], targets[rows], labels)


def _read(path: Path) -> dict[str, Any]:
    with open_text(path, _LARGEST) as file:
        text = file.read()
    # An empty object takes twenty times as many bytes in Python as in the file.
    if text.count("{") + text.count("[") > _MOST_PARTS:
        raise DatasetError(f"{path}: has more than {_MOST_PARTS} objects and lists; expected COCO's instances file")
    try:
        # Object outlines are most of the file, and would take gigabytes as Python objects.
        content = json.loads(text, object_hook=lambda entry: {key: entry[key] for key in entry.keys() & _KEPT})
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is not JSON ({error}); download it again") from None
    missing = [name for name in _SECTIONS if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise DatasetError(f"{path}: has no list of {' or '.join(missing)}; expected COCO's instances file")
    return dict(content)


def _entries(path: Path, content: dict[str, Any], section: str) -> Iterator[tuple[Any, ...]]:
    fields = _SECTIONS[section]
    for number, entry in enumerate(content[section]):
        values = tuple(entry.get(name) for name in fields) if isinstance(entry, dict) else ()
        if [type(value) for value in values] != list(fields.values()):
            expected = " and ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
            raise DatasetError(f"{path}, {section}[{number}]: expected {expected}; download the file again")
        yield values
