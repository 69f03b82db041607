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

    Raises CheckpointError for a norm that does not fit its convolution, and, when a folded tensor is read, for a variance below
    0.
    """
    found = dict(tensors)
    for norm, conv in _pairs(tensors):
        weight, bias = tensors[f"{conv}.weight"], tensors.get(f"{conv}.bias")
        channels = weight.shape[:1]
        statistics = _statistics(path, tensors, norm, channels, f"{conv}.weight")
        scale = partial(_scale_and_shift, f"{path}: tensor {norm}", statistics, _EPSILON)
        found[f"{conv}.weight"] = replace(weight, read=partial(_folded_weight, scale, weight))
        found[f"{conv}.bias"] = Stored(channels, weight.dtype, partial(_folded_bias, scale, bias))
        for name in [name for name in found if name.startswith(f"{norm}.")]:
            del found[name]
    return found


def scales(path: str, tensors: Mapping[str, Stored], epsilon: float) -> dict[str, Stored]:
    """The tensors of a file, with each norm that is left as the `weight` and `bias` of y = x · weight + bias.

    Raises CheckpointError as `folded` does.
    """
    found = dict(tensors)
    for name in [name for name in tensors if name.endswith(_VARIANCE)]:
        norm = name.removesuffix(_VARIANCE)
        statistics = _statistics(path, tensors, norm, tensors[name].shape[:1], name)
        make = partial(_scale_and_shift, f"{path}: tensor {norm}", statistics, epsilon)
        for which, part in enumerate(_PARTS[:2]):
            found[f"{norm}.{part}"] = replace(statistics[part], read=partial(_part, make, which))
        for part in (*_PARTS[2:], "num_batches_tracked"):
            found.pop(f"{norm}.{part}", None)
    return found


def _pairs(tensors: Mapping[str, Stored]) -> Iterator[tuple[str, str]]:
    """Names of each batch norm and of the convolution before it: bn1 and conv1, bn and conv, or numbers in a row."""
    statistics = [name for name in tensors if name.endswith((".running_mean", _VARIANCE))]
    for norm in dict.fromkeys(name.rpartition(".")[0] for name in statistics):
        conv = re.sub(r"\bbn(\d*)$", r"conv\1", norm)
        if conv == norm:
            conv = re.sub(r"\b(\d+)$", lambda number: str(int(number[1]) - 1), norm)
        stored = tensors.get(f"{conv}.weight")
        if conv != norm and stored is not None and len(stored.shape) == 4:
            yield norm, conv


def _statistics(path: str, tensors: Mapping[str, Stored], norm: str, shape: tuple[int, ...], like: str) -> dict[str, Stored]:
    """The four tensors of a norm. Raises CheckpointError unless they are floats of that shape, which `like` has."""
    found = {}
    for part in _PARTS:
        tensor = tensors.get(f"{norm}.{part}")
        if tensor is None or tensor.shape != shape or not tensor.is_float:
            held = "is missing" if tensor is None else f"is {tensor.dtype} of shape {list(tensor.shape)}"
            raise CheckpointError(f"{path}: tensor {norm}.{part} {held}, expected floats of shape {list(shape)}, as {like} has")
        found[part] = tensor
    return found


_Scale = Callable[[], "tuple[Tensor, Tensor]"]


def _scale_and_shift(where: str, norm: Mapping[str, Stored], epsilon: float) -> tuple[Tensor, Tensor]:
    """The factor and the summand of each channel, in fp64."""
    weight, bias, mean, variance = (norm[part].read().double() for part in _PARTS)
    if not (variance >= 0).all():
        raise CheckpointError(f"{where}.running_var holds NaN or negative values; the training run diverged")
    factor = weight / (variance + epsilon).sqrt()
    return factor, bias - factor * mean


def _part(scale: _Scale, which: int) -> Tensor:
    return scale()[which].float()


def _folded_weight(scale: _Scale, weight: Stored) -> Tensor:
    return (weight.read().double() * scale()[0][:, None, None, None]).float()


def _folded_bias(scale: _Scale, bias: Stored | None) -> Tensor:
    factor, shift = scale()
    return (shift if bias is None else shift + factor * bias.read().double()).float()
