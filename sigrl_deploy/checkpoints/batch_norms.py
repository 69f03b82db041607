"""Batch norms of a checkpoint, folded into the convolutions before them: the same function, without a tensor that must be fp32.

With running statistics a batch norm is y = (x − mean) / √(variance + 1e-5) · weight + bias for each channel, so that a
convolution before it absorbs the factor in its weight and the rest in its bias. Towers are built without norms
(`model/resnet.py`), and the folded tensors take the place of the file's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sigrl_deploy.checkpoints.weights import Stored
from sigrl_deploy.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_EPSILON = 1e-5
_PARTS = ("weight", "bias", "running_mean", "running_var")
_VARIANCE = ".running_var"


def folded(path: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors of a file, with each batch norm folded into the convolution before it; a norm without one stays.

    Raises CheckpointError for a norm that does not fit its convolution, and, when a folded tensor is read, for a negative
    variance.
    """
    found = dict(tensors)
    for norm, conv in _pairs(tensors):
        parts = {part: tensors.get(f"{norm}.{part}") for part in _PARTS}
        weight, bias = tensors[f"{conv}.weight"], tensors.get(f"{conv}.bias")
        channels = weight.shape[:1]
        for part, tensor in parts.items():
            if tensor is None or tensor.shape != channels or not tensor.is_float:
                held = "is missing" if tensor is None else f"is {tensor.dtype} of shape {list(tensor.shape)}"
                raise CheckpointError(
                    f"{path}: tensor {norm}.{part} {held}, expected floats of shape {list(channels)}, as {conv}.weight has "
                    "channels"
                )
        statistics = {part: tensor for part, tensor in parts.items() if tensor is not None}
        make = partial(_fold, f"{path}: tensor {norm}", statistics)
        found[f"{conv}.weight"] = replace(weight, read=partial(_read, make, weight, bias, 0))
        found[f"{conv}.bias"] = Stored(channels, weight.dtype, partial(_read, make, weight, bias, 1))
        for name in [name for name in found if name.startswith(f"{norm}.")]:
            del found[name]
    return found


def _pairs(tensors: Mapping[str, Stored]) -> Iterator[tuple[str, str]]:
    """Names of each batch norm and of the convolution before it: bn1 and conv1, bn and conv, or numbers in a row."""
    for name in tensors:
        if not name.endswith(_VARIANCE):
            continue
        norm = name.removesuffix(_VARIANCE)
        conv = re.sub(r"\bbn(\d*)$", r"conv\1", norm)
        if conv == norm:
            conv = re.sub(r"\b(\d+)$", lambda number: str(int(number[1]) - 1), norm)
        stored = tensors.get(f"{conv}.weight")
        if conv != norm and stored is not None and len(stored.shape) == 4:
            yield norm, conv


_Fold = Callable[["Stored", "Stored | None"], "tuple[Tensor, Tensor]"]


def _read(make: _Fold, weight: Stored, bias: Stored | None, which: int) -> Tensor:
    return make(weight, bias)[which]


def _fold(where: str, norm: Mapping[str, Stored], weight: Stored, bias: Stored | None) -> tuple[Tensor, Tensor]:
    """The folded weight and bias, in fp32, computed in fp64."""
    scale, shift, mean, variance = (norm[part].read().double() for part in _PARTS)
    if not (variance >= 0).all():
        raise CheckpointError(f"{where}.running_var holds NaN or negative values; the training run diverged")
    factor = scale / (variance + _EPSILON).sqrt()
    offset = -mean if bias is None else bias.read().double() - mean
    return (weight.read().double() * factor[:, None, None, None]).float(), (shift + factor * offset).float()
