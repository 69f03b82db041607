"""NUS-WIDE from HDF5 files of one array a picture."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from sigrl_deploy.datasets.nus_wide import read_nus_wide
from sigrl_deploy.errors import DatasetError, LabelError, UsageError
from tests.support.dataset_files import picture, refusal, refused, targets, write

UNSEEN = [f"concept {i}" for i in range(81)]
SEEN = [f"tag{i}" for i in range(925)]
NAMES = ["actor_0001_2124494179.jpg", "st_bernard_dog_0007_12.jpg", "zoo_0002_3.jpg"]
Arrays = Mapping[str, NDArray[np.generic]]


def _hdf5(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip")


def _rows(length: int, low: int = -1, seed: int = 0) -> dict[str, NDArray[np.int8]]:
    """Random values from `low` to 1 for each picture, with at least one 1 among the seen columns."""
    rng = np.random.default_rng(seed)
    rows = {name: rng.integers(low, 2, length).astype(np.int8) for name in NAMES}
    for row in rows.values():
        row[3] = 1
    return rows


def _labels(rows: Arrays, suffix: str = "-labels") -> Arrays:
    return {f"{name}{suffix}": row for name, row in rows.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The published lists: 75 of the 81 concepts are among the 1000 tags, anywhere in their order."""
    tags = list(SEEN)
    for i, concept in enumerate(UNSEEN[6:]):
        tags.insert(13 * i, concept)
    assert len(tags) == 1000
    write(tmp_path / "NUS_WID_Tags" / "TagList1k.txt", "\r\n".join(tags) + "\r\n")
    write(tmp_path / "ConceptsList" / "Concepts81.txt", "\n".join(UNSEEN) + "\n")
    picture(tmp_path / "Flickr" / "actor" / "0001_2124494179.jpg")
    picture(tmp_path / "Flickr" / "st_bernard_dog" / "0007_12.jpg")
    return tmp_path


@pytest.mark.parametrize("length", [925, 1006])
def test_training_knows_the_seen_labels_alone(root: Path, length: int) -> None:
    rows = _rows(length)
    features = {f"{name}-features": np.zeros((7, 3), np.float32) for name in NAMES}
    _hdf5(root / "features" / "nus_wide_train.h5", {**features, **_labels(rows)})
    train = read_nus_wide(root, "train")
    assert train.label_sets == {"seen": (*SEEN,), "unseen": (*UNSEEN,), "all": (*SEEN, *UNSEEN)}
    assert train.labels == (*SEEN, *UNSEEN)
    assert list(targets(train).values()) == [[*row[:925].tolist(), *[0] * 81] for row in rows.values()]
    assert train.name(1) == str(root / "Flickr" / "st_bernard_dog" / "0007_12.jpg")
    assert (train.image(0).size, train.image(1).size) == ((8, 8), (8, 8))


def test_training_leaves_out_pictures_without_a_seen_positive(root: Path) -> None:
    rows = _rows(1006)
    rows[NAMES[1]][:925] = np.minimum(rows[NAMES[1]][:925], 0)
    rows[NAMES[1]][930] = 1
    _hdf5(root / "features" / "nus_wide_train.h5", _labels(rows))
    assert [Path(name).name for name in targets(read_nus_wide(root, "train"))] == ["0001_2124494179.jpg", "0002_3.jpg"]
    _hdf5(root / "features" / "nus_wide_test.h5", _labels(rows))
    assert len(read_nus_wide(root, "test")) == 3


@pytest.mark.parametrize("apart", [False, True])
def test_the_test_set_knows_all_labels(root: Path, apart: bool) -> None:
    rows = _rows(1006)
    unseen = _labels({name: row[925:] for name, row in rows.items()}, "-labels_81")
    seen = _labels({name: row[:925] if apart else row for name, row in rows.items()})
    _hdf5(root / "features" / "nus_wide_test.h5", {**unseen, **seen})
    assert list(targets(read_nus_wide(root, "test")).values()) == [row.tolist() for row in rows.values()]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.float32, bool])
def test_zero_is_negative_where_no_label_is_negative(root: Path, dtype: type) -> None:
    rows = _rows(1006, low=0)
    _hdf5(root / "features" / "nus_wide_test.h5", _labels({name: row.astype(dtype) for name, row in rows.items()}))
    assert list(targets(read_nus_wide(root, "test")).values()) == [(2 * row - 1).tolist() for row in rows.values()]
    # A -1 among the seen labels says nothing about the convention of the unseen ones.
    rows[NAMES[0]][0] = -1
    _hdf5(root / "features" / "nus_wide_test.h5", _labels(rows))
    expected = [[*row[:925].tolist(), *(2 * row[925:] - 1).tolist()] for row in rows.values()]
    assert list(targets(read_nus_wide(root, "test")).values()) == expected


def test_all_missing_files_are_named_at_once(tmp_path: Path) -> None:
    write(tmp_path / "ConceptsList" / "Concepts81.txt", "dog\n")
    message = refusal(DatasetError, lambda: read_nus_wide(tmp_path, "train"))
    assert message.startswith(f"{tmp_path}: NUS-WIDE is incomplete")
    assert "missing: features/nus_wide_train.h5, NUS_WID_Tags/TagList1k.txt, Flickr/;" in message


def test_there_is_no_validation_split(root: Path) -> None:
    assert refused(UsageError, lambda: read_nus_wide(root, "val")).argument == "split"


def test_lists_of_other_names_are_refused(root: Path) -> None:
    _hdf5(root / "features" / "nus_wide_test.h5", _labels(_rows(1006)))
    concepts = root / "ConceptsList" / "Concepts81.txt"
    write(concepts, "\n".join(UNSEEN[:-1]))
    message = refusal(DatasetError, lambda: read_nus_wide(root, "test"))
    assert "926 names besides the 80" in message
    write(concepts, "\n".join([*UNSEEN[:-1], UNSEEN[0]]))
    assert "'concept 0' repeats" in refusal(LabelError, lambda: read_nus_wide(root, "test"))


GOOD = np.ones(1006, np.int8)
BAD = {
    "length": ({"a_1_2.jpg-labels": GOOD[:900]}, "a_1_2.jpg-labels: .*925 or 1006"),
    "shape": ({"a_1_2.jpg-labels": GOOD[None]}, "925 or 1006"),
    "group": ({"a_1_2.jpg-labels/x": GOOD}, "925 or 1006"),
    "text": ({"a_1_2.jpg-labels": np.full(1006, b"x")}, "925 or 1006"),
    "no unseen": ({"a_1_2.jpg-labels": GOOD[:925]}, "a_1_2.jpg-labels_81"),
    "two": ({"a_1_2.jpg-labels": 2 * GOOD}, "-1, 0 and 1"),
    "wrapped": ({"a_1_2.jpg-labels": np.full(1006, 257)}, "-1, 0 and 1"),
    "half": ({"a_1_2.jpg-labels": np.full(1006, 0.5)}, "-1, 0 and 1"),
    "nan": ({"a_1_2.jpg-labels": np.full(1006, np.nan)}, "-1, 0 and 1"),
    "no picture": ({"a_1_2.jpg-features": GOOD}, "no picture"),
    "name": ({"12.jpg-labels": GOOD}, "'12.jpg'"),
    "no folder": ({"_1_2.jpg-labels": GOOD}, "'_1_2.jpg'"),
    "way up": ({".._1_2.jpg-labels": GOOD}, r"nus_wide_test.h5: '\.\./1_2\.jpg'"),
}


@pytest.mark.parametrize(("arrays", "fact"), BAD.values(), ids=BAD)
def test_arrays_that_are_no_labels_are_refused(root: Path, arrays: Arrays, fact: str) -> None:
    _hdf5(root / "features" / "nus_wide_test.h5", arrays)
    message = refusal(DatasetError, lambda: read_nus_wide(root, "test"))
    assert str(root) in message
    assert re.search(fact, message)


def test_links_to_other_files_are_not_followed(root: Path) -> None:
    path = root / "features" / "nus_wide_test.h5"
    _hdf5(root / "features" / "other.h5", {"x": GOOD})
    (root / "features" / "raw").write_bytes(GOOD.tobytes())
    layout = h5py.VirtualLayout(1006, np.int8)
    layout[:] = h5py.VirtualSource(str(root / "features" / "other.h5"), "x", 1006)
    with h5py.File(path, "w") as file:
        file["a_1_2.jpg-labels"] = h5py.ExternalLink("other.h5", "x")
    assert "is a link to another file" in refusal(DatasetError, lambda: read_nus_wide(root, "test"))
    with h5py.File(path, "w") as file:
        file.create_dataset("a_1_2.jpg-labels", 1006, np.int8, external=[(str(root / "features" / "raw"), 0, 1006)])
    assert "is a link to another file" in refusal(DatasetError, lambda: read_nus_wide(root, "test"))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("a_1_2.jpg-labels", layout)
    assert "is a link to another file" in refusal(DatasetError, lambda: read_nus_wide(root, "test"))


def test_a_link_to_a_pipe_is_not_waited_for(root: Path) -> None:
    path = root / "features" / "nus_wide_test.h5"
    _hdf5(path, {})
    os.mkfifo(path.with_name("pipe.h5"))
    with h5py.File(path, "w") as file:
        file["a_1_2.jpg-labels"] = h5py.ExternalLink("pipe.h5", "x")
    program = f"from sigrl_deploy.datasets.opening import open_dataset; open_dataset('nus-wide:{root}', 'test')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert "is a link to another file" in done.stderr


def test_an_array_in_huge_compressed_chunks_is_refused(root: Path) -> None:
    """A few kilobytes that would be decompressed into half a gigabyte."""
    path = root / "features" / "nus_wide_test.h5"
    _hdf5(path, {})
    with h5py.File(path, "w") as file:
        array = file.create_dataset("a_1_2.jpg-labels", 1006, np.int8, maxshape=(None,), chunks=(1 << 29,), compression="gzip")
        array.id.write_direct_chunk((0,), zlib.compress(bytes(1 << 16)))
    assert path.stat().st_size < 10_000
    assert "chunks of 536870912" in refusal(DatasetError, lambda: read_nus_wide(root, "test"))


@pytest.mark.parametrize("kept", [0, 100, 3000, 5000])
def test_a_damaged_file_is_refused(root: Path, kept: int) -> None:
    path = root / "features" / "nus_wide_test.h5"
    _hdf5(path, _labels(_rows(1006)))
    assert path.stat().st_size > 5000
    path.write_bytes(path.read_bytes()[:kept])
    assert f"{path}: cannot be read" in refusal(DatasetError, lambda: read_nus_wide(root, "test"))


def test_the_error_without_h5py_names_the_extra_that_brings_it(root: Path) -> None:
    _hdf5(root / "features" / "nus_wide_test.h5", _labels(_rows(1006)))
    program = (
        "import sys; sys.modules['h5py'] = None\n"  # an import of it then fails as if it were not installed
        "from sigrl_deploy.datasets.opening import open_dataset\n"
        "from sigrl_deploy.errors import UsageError\n"
        f"try: open_dataset('nus-wide:{root}', 'test')\n"
        "except UsageError as error: print(error.argument, error.extra)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown == "data train\n"
