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
_COUNTER = "num_batches_tracked"


def folded(path: str, tensors: Mapping[str, Stored], normed: re.Pattern[str] | None = None) -> dict[str, Stored]:
    """The tensors of a file, with each batch norm folded into the convolution before it; a norm without one stays.

    Convolutions whose names `normed` matches must have a norm.

    Raises CheckpointError for a norm that is missing or does not fit its convolution, and, when a folded tensor is read, for a
    variance below 0.
    """
    found = dict(tensors)
    for norm, conv in _pairs(tensors, normed):
        weight, bias = tensors[f"{conv}.weight"], tensors.get(f"{conv}.bias")
        channels = weight.shape[:1]
        statistics = _statistics(path, tensors, norm, channels, f"{conv}.weight")
        if bias is not None:
            _check(path, f"{conv}.bias", bias, channels, f"{conv}.weight")
        scale = partial(_scale_and_shift, f"{path}: tensor {norm}", statistics, _EPSILON)
        found[f"{conv}.weight"] = replace(weight, read=partial(_folded_weight, scale, weight))
        found[f"{conv}.bias"] = Stored(channels, weight.dtype, partial(_folded_bias, scale, bias))
        for part in (*_PARTS, _COUNTER):
            found.pop(f"{norm}.{part}", None)
    return found


def scales(path: str, tensors: Mapping[str, Stored], norms: Mapping[str, str], epsilon: float) -> dict[str, Stored]:
    """The tensors of a file, with these norms as the `weight` and `bias` of y = x · weight + bias.

    `norms` are by name, each with the convolution whose channels it has. Raises CheckpointError as `folded` does.
    """
    found = dict(tensors)
    for norm, conv in norms.items():
        weight = tensors.get(f"{conv}.weight")
        if weight is None:  # which is an error of its own
            continue
        statistics = _statistics(path, tensors, norm, weight.shape[:1], f"{conv}.weight")
        make = partial(_scale_and_shift, f"{path}: tensor {norm}", statistics, epsilon)
        for which, part in enumerate(_PARTS[:2]):
            found[f"{norm}.{part}"] = replace(statistics[part], read=partial(_part, make, which))
        for part in (*_PARTS[2:], _COUNTER):
            found.pop(f"{norm}.{part}", None)
    return found


def _pairs(tensors: Mapping[str, Stored], normed: re.Pattern[str] | None) -> Iterator[tuple[str, str]]:
    """Names of each batch norm and of the convolution before it: bn1 and conv1, bn and conv, or numbers in a row."""
    for weight in [name for name, tensor in tensors.items() if name.endswith(".weight") and len(tensor.shape) == 4]:
        conv = weight.removesuffix(".weight")
        norm = re.sub(r"\bconv(\d*)$", r"bn\1", conv)
        if norm == conv:
            norm = re.sub(r"\b(\d+)$", lambda number: str(int(number[1]) + 1), conv)
        has_statistics = any(f"{norm}.{part}" in tensors for part in _PARTS[2:])
        if norm != conv and (has_statistics or (normed is not None and normed.fullmatch(conv))):
            yield norm, conv


def _statistics(path: str, tensors: Mapping[str, Stored], norm: str, shape: tuple[int, ...], like: str) -> dict[str, Stored]:
    """The four tensors of a norm. Raises CheckpointError unless they are floats of that shape, which `like` has."""
    return {part: _check(path, f"{norm}.{part}", tensors.get(f"{norm}.{part}"), shape, like) for part in _PARTS}


def _check(path: str, name: str, tensor: Stored | None, shape: tuple[int, ...], like: str) -> Stored:
    if tensor is None or tensor.shape != shape or not tensor.is_float:
        held = "is missing" if tensor is None else f"is {tensor.dtype} of shape {list(tensor.shape)}"
        raise CheckpointError(f"{path}: tensor {name} {held}, expected floats of shape {list(shape)}, as {like} has")
    return tensor


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
