"""NUS-WIDE with its zero-shot protocol: 925 tags to train on, and 81 concepts that no training picture is labelled with.

The labels are HDF5 files with one array per picture, as published with BiAM (Narayan et al., ICCV 2021) and used since. Below
the root: `features/nus_wide_{train,test}.h5`, `NUS_WID_Tags/TagList1k.txt`, `ConceptsList/Concepts81.txt`, and the pictures in
`Flickr/<folder>/<number>_<id>.jpg`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.datasets.dataset import NEGATIVE, POSITIVE, UNKNOWN
from sigrl_deploy.datasets.picture_files import PictureFiles
from sigrl_deploy.datasets.reading import check_size, find_files, picture_path, shown
from sigrl_deploy.errors import DatasetError, UsageError
from sigrl_deploy.extras import require
from sigrl_deploy.labels.names import read_labels
from sigrl_deploy.progress import Progress

SEEN, UNSEEN = 925, 81
_LARGEST_CHUNK = 1 << 16  # numbers that are decompressed at once
_LABELS, _LABELS_81 = "-labels", "-labels_81"


def read_nus_wide(root: Path, split: str) -> PictureFiles:
    """The split "train" or "test": targets of the 925 seen labels, then of the 81 unseen ones. Pictures are ordered by name.

    Seen labels are the names in TagList1k.txt that are not in Concepts81.txt. In "train" the unseen columns are UNKNOWN,
    whatever the file says, and pictures without a seen positive are left out. In "test" the unseen columns are the last 81 of
    `-labels`, or `-labels_81` where `-labels` has the seen ones only. The files contain -1, 0 and 1. A 0 means NEGATIVE where
    the seen (or the unseen) columns have no -1 at all, and UNKNOWN otherwise.

    Raises DatasetError where files are missing or damaged, or name other labels; UsageError for "val", and without h5py.
    """
    if split not in ("train", "test"):
        raise UsageError("NUS-WIDE has the splits train and test only", argument="split", value=split)
    require("h5py", extra="train", argument="data", value=f"nus-wide:{root}")
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
            f"{tags}: has {len(seen)} names besides the {len(unseen)} in {concepts}, expected {SEEN} and {UNSEEN}; unpack both "
            "lists of NUS-WIDE again"
        )
    return seen, unseen


def _read_targets(path: Path, with_unseen: bool) -> tuple[list[str], NDArray[np.int8]]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = sorted(key.removesuffix(_LABELS) for key in file if key.endswith(_LABELS))
            check_size(path, len(names), SEEN + UNSEEN)
            targets = np.full((len(names), SEEN + UNSEEN), UNKNOWN, np.int8)
            with Progress(len(names), "row") as progress:
                for row, name in zip(targets, names, strict=True):
                    _read_row(file, name, row if with_unseen else row[:SEEN])
                    progress.advance()
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:  # h5py raises all of these for damaged files
        raise DatasetError(f"{path}: cannot be read ({error}); download it again") from None
    return names, targets


def _read_row(file: Any, name: str, row: NDArray[np.int8]) -> None:
    """Fill a row, [925] or [1006], from the arrays of one picture."""
    values = _read_array(file, name + _LABELS, (SEEN, SEEN + UNSEEN))
    if len(values) < len(row):
        values = np.concatenate([values, _read_array(file, name + _LABELS_81, (UNSEEN,))])
    row[:] = values[: len(row)]


def _read_array(file: Any, key: str, lengths: tuple[int, ...]) -> NDArray[Any]:
    place = f"{file.filename}, {key}"
    expected = f"{place}: expected an array of {' or '.join(map(str, lengths))} numbers; download the file again"
    elsewhere = f"{place}: is a link to another file, expected the array itself"
    # Links are refused before they are opened, since one may name a pipe. Sizes are checked before anything is read, since a
    # file of a few bytes can declare an array, or compressed chunks of one, of any size.
    if not _is_there(file, key, elsewhere):
        raise DatasetError(expected)
    array = file[key]
    if getattr(array, "shape", None) not in [(length,) for length in lengths] or array.dtype.kind not in "biuf":
        raise DatasetError(expected)
    if array.external or array.is_virtual:
        raise DatasetError(elsewhere)
    if array.chunks and array.chunks[0] > _LARGEST_CHUNK:
        raise DatasetError(f"{place}: has {len(array)} numbers in chunks of {array.chunks[0]}; download the file again")
    values: NDArray[Any] = array[()]
    if not np.isin(values, (NEGATIVE, UNKNOWN, POSITIVE)).all():
        raise DatasetError(f"{place}: expected the values -1, 0 and 1 only; download the file again")
    return values


def _is_there(file: Any, key: str, elsewhere: str) -> bool:
    """Whether the file has an object of that name. Raises DatasetError where it is a link to another file."""
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
    """`actor_0001_2124494179.jpg` → `actor/0001_2124494179.jpg`. The name of the folder may contain underscores too."""
    folder, *rest = name.rsplit("_", 2)
    if len(rest) != 2 or not folder:
        raise DatasetError(
            f"{source}: {shown(name)} does not name a picture; expected a name such as actor_0001_2124494179.jpg"
        )
    return picture_path(f"{folder}/{'_'.join(rest)}", str(source))
