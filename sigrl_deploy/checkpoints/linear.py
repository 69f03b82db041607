"""A linear classifier's rows, with the scaling of its features folded in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.checkpoints.building import collect
from sigrl_deploy.checkpoints.layouts import Checkpoint
from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import DamagedFileError, read_arrays

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST = 65504.0  # of the rows, which are in fp16 on a GPU
_NAMES = (("minimum", "maximum"), ("data_min_", "data_max_"))  # our own, and scikit-learn's


def label_count(checkpoint: Checkpoint) -> int:
    """C, the number of labels that a classifier has."""
    return checkpoint.shape("labels.weight", 2)[0]


def label_rows(checkpoint: Checkpoint, scaling: Path | None) -> Tensor:
    """(W', b') [C, F + 1] fp32: what a feature (f, 1) is multiplied with, for W x + b with x = (f − minimum) / range.

    A feature whose range is 0 but for rounding has the range 1, as in scikit-learn's MinMaxScaler.

    Raises UsageError where the scaling is missing, does not fit or gives rows that are too large, CheckpointError for tensors
    that do not fit.
    """
    import torch

    count, width = checkpoint.shape("labels.weight", 2)
    expected = {"labels.weight": torch.empty(count, width, device="meta"), "labels.bias": torch.empty(count, device="meta")}
    tensors = collect(checkpoint, expected)
    minimum, span = _scaling(scaling, width)
    weight = tensors["labels.weight"].double().numpy() / span
    shift = weight * minimum
    largest = np.maximum(np.abs(weight), np.abs(shift)).max(axis=0)
    if largest.max() > _LARGEST:
        problem = (
            f"gives feature {largest.argmax()} the range {span[largest.argmax()]:.2g}, by which the classifier grows beyond"
        )
        raise UsageError(f"{problem} {_LARGEST:g}; expected that of training", argument="scaling", value=scaling)
    bias = tensors["labels.bias"].double().numpy() - shift.sum(axis=1)
    return torch.from_numpy(np.concatenate([weight, bias[:, None]], axis=1).astype(np.float32))


def _scaling(path: Path | None, width: int) -> tuple[FloatArray, FloatArray]:
    """Minimum and range [F] of the training features."""
    if path is None:
        problem = "is not in a classifier's checkpoint; give an .npz file of the training features' minimum and maximum"
        raise UsageError(problem, argument="scaling")
    problem = f"expected an uncompressed .npz file with minimum and maximum (or data_min_ and data_max_) of {width} features"
    arrays = None
    for names in _NAMES:
        try:
            arrays = arrays or tuple(read_arrays(path, names).values())
        except OSError as error:
            raise UsageError(f"cannot be read ({error.strerror or error}); {problem}", argument="scaling", value=path) from None
        except DamagedFileError:
            continue
    if arrays is None or any(a.shape != (width,) or a.dtype.kind != "f" or not np.isfinite(a).all() for a in arrays):
        raise UsageError(problem, argument="scaling", value=path)
    minimum, maximum = arrays
    if (maximum < minimum).any():
        raise UsageError("has a maximum below its minimum; give both of the same features", argument="scaling", value=path)
    span = maximum.astype(np.float64) - minimum
    # scikit-learn takes as constant what varies by less.
    return minimum.astype(np.float64), np.where(span < 10 * np.finfo(maximum.dtype).eps, 1, span)
