"""NUS-WIDE with its zero-shot protocol: 925 tags to train on, 81 concepts that no training picture is labelled with.

The labels come as HDF5 files of one array a picture, as published with BiAM (Narayan et al., ICCV 2021) and used since. Below
the root: `features/nus_wide_{train,test}.h5`, `NUS_WID_Tags/TagList1k.txt`, `ConceptsList/Concepts81.txt`, and the pictures in
`Flickr/<folder>/<number>_<id>.jpg`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sigrl_deploy.datasets.dataset import NEGATIVE, POSITIVE, UNKNOWN
from sigrl_deploy.datasets.picture_files import PictureFiles
from sigrl_deploy.datasets.reading import check_size, find_files, picture_path, shown
from sigrl_deploy.errors import DatasetError, UsageError
from sigrl_deploy.vocabulary.label_files import read_labels

SEEN, UNSEEN = 925, 81
_LARGEST_CHUNK = 1 << 16  # numbers that are unpacked at once
_LABELS, _LABELS_81 = "-labels", "-labels_81"


def read_nus_wide(root: Path, split: str) -> PictureFiles:
    """Targets over 925 seen labels, then 81 unseen ones; pictures in the order of their names; splits "train" and "test".

    Seen labels are the names of TagList1k.txt that are not in Concepts81.txt. In "train" the unseen columns are UNKNOWN,
    whatever the file holds of them, and pictures without a seen positive are left out. In "test" the unseen columns are the
    last 81 of `-labels`, or `-labels_81` where `-labels` holds the seen ones alone. The files hold -1, 0 and 1: where the seen
    (or the unseen) columns hold no -1 at all, their 0 means NEGATIVE; otherwise it means UNKNOWN.

    Raises DatasetError where files are missing or damaged, or name other labels; UsageError for "val", and without h5py.
    """
    if split not in ("train", "test"):
        raise UsageError(f"NUS-WIDE has no split {split!r}; choose train or test")
    annotations, tags, concepts, pictures = find_files(
        root,
        "NUS-WIDE",
        f"features/nus_wide_{split}.h5",
        "NUS_WID_Tags/TagList1k.txt",
        "ConceptsList/Concepts81.txt",
        "Flickr/",
    )
    seen, unseen = _read_names(tags, concepts)
    names, targets = _read_targets(annotations, with_unseen=split == "test")
    _settle_zeros(targets[:, :SEEN])
    if split == "test":
        _settle_zeros(targets[:, SEEN:])
    else:
        kept = np.flatnonzero((targets[:, :SEEN] == POSITIVE).any(axis=1))
        names, targets = [names[i] for i in kept], targets[kept]
    paths = [_picture_path(name, annotations) for name in names]
    return PictureFiles(pictures, paths, targets, seen + unseen, {"seen": seen, "unseen": unseen, "all": seen + unseen})


def _read_names(tags: Path, concepts: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    unseen = read_labels(concepts, argument="data")
    seen = tuple(tag for tag in read_labels(tags, argument="data") if tag not in unseen)
    if (len(seen), len(unseen)) != (SEEN, UNSEEN):
        raise DatasetError(
            f"{tags}: {len(seen)} names that are not among the {len(unseen)} of {concepts}, expected {SEEN} and {UNSEEN}; "
            "unpack both lists of NUS-WIDE again"
        )
    return seen, unseen


def _read_targets(path: Path, with_unseen: bool) -> tuple[list[str], NDArray[np.int8]]:
    try:
        import h5py
    except ImportError:
        raise UsageError("NUS-WIDE needs h5py; install the extra train: pip install '.[train]' in a checkout") from None
    try:
        with h5py.File(path, "r") as file:
            names = sorted(key.removesuffix(_LABELS) for key in file if key.endswith(_LABELS))
            check_size(path, len(names), SEEN + UNSEEN)
            targets = np.full((len(names), SEEN + UNSEEN), UNKNOWN, np.int8)
            for row, name in zip(targets, tqdm(names, desc=path.name, unit="picture", disable=None), strict=True):
                _read_row(file, name, row if with_unseen else row[:SEEN])
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # what h5py makes of a damaged file
        raise DatasetError(f"{path}: cannot be read ({error}); download it again") from None
    return names, targets


def _read_row(file: Any, name: str, row: NDArray[np.int8]) -> None:
    """Fills row [925] or [1006] from the arrays of one picture."""
    values = _read_array(file, name + _LABELS, (SEEN, SEEN + UNSEEN))
    if len(values) < len(row):
        values = np.concatenate([values, _read_array(file, name + _LABELS_81, (UNSEEN,))])
    row[:] = values[: len(row)]


def _read_array(file: Any, key: str, lengths: tuple[int, ...]) -> NDArray[Any]:
    place = f"{file.filename}, {key}"
    expected = f"{place}: expected an array of {' or '.join(map(str, lengths))} numbers; download the file again"
    elsewhere = f"{place}: is a link to another file, which is not followed; store the array in the file itself"
    # Judged before it is opened, since a link may name a pipe, and before it is read, since a file of a few bytes can declare
    # an array of any size, or one that is packed in pieces of any size.
    if not _is_there(file, key, elsewhere):
        raise DatasetError(expected)
    array = file[key]
    if getattr(array, "shape", None) not in [(length,) for length in lengths] or array.dtype.kind not in "biuf":
        raise DatasetError(expected)
    if array.external or array.is_virtual:
        raise DatasetError(elsewhere)
    if array.chunks and array.chunks[0] > _LARGEST_CHUNK:
        raise DatasetError(
            f"{place}: is packed in pieces of {array.chunks[0]} numbers, though it has {len(array)}; download again"
        )
    values: NDArray[Any] = array[()]
    if not np.isin(values, (NEGATIVE, UNKNOWN, POSITIVE)).all():
        raise DatasetError(f"{place}: expected no other values than -1, 0 and 1; download the file again")
    return values


def _is_there(file: Any, key: str, elsewhere: str) -> bool:
    """Whether the file has something of that name. Raises DatasetError where it is not in the file itself."""
    import h5py

    name = key.encode(errors="surrogateescape")
    if not file.id.links.exists(name):
        return False
    if file.id.links.get_info(name).type != h5py.h5l.TYPE_HARD:
        raise DatasetError(elsewhere)
    return True


def _settle_zeros(targets: NDArray[np.int8]) -> None:
    if not (targets == -1).any():
        targets[targets == 0] = NEGATIVE


def _picture_path(name: str, source: Path) -> str:
    """`actor_0001_2124494179.jpg` is `actor/0001_2124494179.jpg`; the folder's name may hold underscores itself."""
    folder, *rest = name.rsplit("_", 2)
    if len(rest) != 2 or not folder:
        raise DatasetError(f"{source}: {shown(name)} names no picture; expected a name such as actor_0001_2124494179.jpg")
    return picture_path(f"{folder}/{'_'.join(rest)}", str(source))
