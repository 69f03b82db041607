"""From a file of weights to its named tensors. No code from the file is run, and every size is known before it is read."""

from __future__ import annotations

import math
import os
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigrl_deploy.checkpoints.pickles import MAX_TENSORS, Global, Module, PickleError, UnsafeError, View
from sigrl_deploy.checkpoints.torch_files import STORAGES, TorchFile, open_torch_file
from sigrl_deploy.errors import CheckpointError, printable
from sigrl_deploy.files import open_regular

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_SAFETENSORS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_FLOATS = ("float16", "bfloat16", "float32", "float64")
_MAX_NAME = 1 << 10
_MAX_DIMS = 16
# Bytes of a safetensors header, which holds our own labels too; the largest of open_clip's models needs a tenth of it.
MAX_HEADER = 1 << 22
_MAX_SHARING = 4  # tied weights are in the file once, and in memory once for each name
_OF_LESA = b"attention_layer/w_att_1"  # a name in its TensorFlow checkpoint, and in an archive of its tensors
_LOOKED_AT = 1 << 20  # bytes at either end of a file
_DAMAGED = "expected a whole file by torch.save, torch.jit.save or safetensors: copy or save it again"


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; `read` reads its values. `dtype` is torch's name, or says what it is instead of a dense tensor."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]

    @property
    def is_float(self) -> bool:
        """Whether it is a dense tensor of fp16, bf16, fp32 or fp64."""
        return self.dtype in _FLOATS

    @classmethod
    def of(cls, tensor: Tensor) -> Stored:
        """A tensor that is in memory already."""
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), lambda: tensor)


def check_file(path: Path, expected: str) -> None:
    """Raise CheckpointError where `path` is not a regular file that can be opened."""
    try:
        with open_regular(path, sys.maxsize):
            return
    except FileNotFoundError:
        reason: object = "no such file"
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
    raise CheckpointError(f"{path}: {reason}; expected {expected}")


def read_weights(path: Path) -> dict[str, Stored]:
    """The tensors, by name, of a state dict saved by `torch.save`, a TorchScript archive or a `.safetensors` file.

    Raises CheckpointError where the file is none of these, is damaged, holds objects that could be rebuilt only by running
    code, or claims tensors that are larger than itself.
    """
    check_file(path, "a .pth, .pt or .safetensors checkpoint")
    _refuse_tensorflow(path)
    with _explained(path):
        tensors = _safetensors(path) if path.suffix == ".safetensors" else _state_dict(path)
        _check_total(path, tensors.values())
        return tensors


def _refuse_tensorflow(path: Path) -> None:
    """Raise CheckpointError for LESA's weights, and for any TensorFlow checkpoint: reading them as another file says little."""
    if path.suffix not in (".npz", ".index", ".meta") and ".data-" not in path.name:
        return
    with path.open("rb") as file:
        head = file.read(_LOOKED_AT)
        file.seek(max(0, os.path.getsize(path) - _LOOKED_AT))
        ends = head, file.read(_LOOKED_AT)
    if any(_OF_LESA in end for end in ends):
        raise CheckpointError(f"{path}: holds LESA's weights, and this project does not run LESA; export another system's")
    if path.suffix != ".npz":
        raise CheckpointError(f"{path}: is part of a TensorFlow checkpoint; expected one of PyTorch's, or .safetensors")


def read_tensor(path: Path) -> Stored:
    """The single tensor that `torch.save` wrote into a file. Raises CheckpointError as `read_weights` does."""
    check_file(path, "a tensor saved by torch.save")
    with _explained(path):
        file = open_torch_file(path)
        if not isinstance(file.root, (View, Global)):
            raise CheckpointError(f"{path}: holds {_kind(file.root)}, expected a tensor saved by torch.save")
        (tensor,) = _tensors(path, file, {"the tensor": file.root}).values()
        _check_total(path, [tensor])
        return tensor


def open_safetensors(path: Path) -> Any:
    """An open file of the safetensors library. Raises CheckpointError for a header that is larger than any of weights."""
    from safetensors import safe_open

    with path.open("rb") as file:
        start = file.read(8)
    if len(start) == 8 and struct.unpack("<Q", start)[0] > MAX_HEADER:
        raise CheckpointError(f"{path}: its header claims more than {MAX_HEADER >> 20} MB; {_DAMAGED}")
    return safe_open(path, framework="pt")


def _safetensors(path: Path) -> dict[str, Stored]:
    file = open_safetensors(path)
    names = _checked_names(path, file.keys())
    slices = {name: file.get_slice(name) for name in names}
    dtypes = {name: _SAFETENSORS.get(part.get_dtype(), part.get_dtype()) for name, part in slices.items()}
    return {
        name: Stored(tuple(part.get_shape()), dtypes[name], partial(_read_safetensor, path, file, name))
        for name, part in slices.items()
    }


def _read_safetensor(path: Path, file: Any, name: str) -> Tensor:
    with _explained(path):
        tensor: Tensor = file.get_tensor(name)
        return tensor


def _state_dict(path: Path) -> dict[str, Stored]:
    file = open_torch_file(path)
    loaded = file.root
    if isinstance(loaded, Module):
        return _tensors(path, file, dict(_of_modules(loaded)))
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds {_kind(loaded)}, expected a state dict of named tensors")
    return _tensors(path, file, {name: value for name, value in loaded.items() if isinstance(value, (View, Global))})


def _of_modules(root: Module) -> Iterator[tuple[str, View | Global]]:
    """The tensors of a tree of modules. Modules can share others, so that a small file can name very many: all are counted."""
    waiting = [("", root)]
    seen = 0
    while waiting:
        prefix, module = waiting.pop()
        for name, value in module.attributes.items():
            seen += 1
            if seen > 8 * MAX_TENSORS or len(prefix) > _MAX_NAME:
                raise PickleError("has more modules, or more deeply nested ones, than a model has")
            if isinstance(value, Module):
                waiting.append((f"{prefix}{name}.", value))
            # CLIP's blocks may hold their causal mask as a plain attribute, which state dicts leave out.
            elif isinstance(value, View) and name != "attn_mask":
                yield f"{prefix}{name}", value


def _checked_names(path: Path, names: Any) -> list[str]:
    found = [name for name in names if isinstance(name, str)]
    if len(found) > MAX_TENSORS:
        raise CheckpointError(f"{path}: holds {len(found)} tensors, expected at most {MAX_TENSORS}")
    if not all(len(name) <= _MAX_NAME and name.isprintable() for name in found):
        raise CheckpointError(f"{path}: a tensor has a name that is too long or not printable; {_DAMAGED}")
    return found


def _tensors(path: Path, file: TorchFile, values: dict[Any, View | Global]) -> dict[str, Stored]:
    uses = Counter(value.storage.key for value in values.values() if isinstance(value, View))
    reader = _Reader(path, file, {key for key, count in uses.items() if count > 1})
    return {name: reader.stored(name, values[name]) for name in _checked_names(path, values)}


class _Reader:
    """Reads tensors from the storages of a file. A storage that several of them share is read once."""

    def __init__(self, path: Path, file: TorchFile, shared: set[str]) -> None:
        self._path, self._file, self._shared = path, file, shared
        self._kept: dict[str, Tensor] = {}

    def stored(self, name: str, value: View | Global) -> Stored:
        """A tensor whose shape and strides stay within its storage, and the storage within the file.

        One that cannot be used is an error only once it is needed: its dtype is not a float's, and reading it raises.
        """
        if isinstance(value, Global):  # sparse, quantised, or of a class of its own
            return self._unusable(name, (), value.name.rpartition(".")[2].removeprefix("_rebuild_"))
        dtype, itemsize = STORAGES.get(value.storage.kind, (value.storage.kind, 0))
        numbers = (value.offset, *value.shape, *value.stride)
        if len(value.shape) > _MAX_DIMS or len(value.shape) != len(value.stride):
            raise CheckpointError(f"{self._path}: tensor {name} has {len(value.shape)} dimensions, more than any weights have")
        if any(type(number) is not int or not 0 <= number < 1 << 48 for number in numbers):
            raise CheckpointError(f"{self._path}: tensor {name} has an impossible shape; {_DAMAGED}")
        count = math.prod(value.shape)
        last = value.offset + sum((side - 1) * step for side, step in zip(value.shape, value.stride, strict=True))
        held = self._file.size(value.storage.key) if count else 0
        if count and (last >= value.storage.count or value.storage.count * itemsize > held):
            raise CheckpointError(
                f"{self._path}: tensor {name} of shape {list(value.shape)} claims more numbers than the file holds; "
                "copy or save it again"
            )
        if count > value.storage.count:
            return self._unusable(name, value.shape, f"{dtype}, expanded (save tensor.clone() instead)")
        if value.storage.kind not in STORAGES:
            return self._unusable(name, value.shape, dtype)
        return Stored(value.shape, dtype, partial(self._read, value))

    def _unusable(self, name: str, shape: tuple[int, ...], kind: str) -> Stored:
        return Stored(shape, kind, partial(self._refuse, f"tensor {name} is {kind}"))

    def _refuse(self, what: str) -> Tensor:
        raise CheckpointError(f"{self._path}: {what}; expected a dense tensor")

    def _read(self, view: View) -> Tensor:
        import torch

        dtype = getattr(torch, STORAGES[view.storage.kind][0])
        if 0 in view.shape:
            return torch.empty(view.shape, dtype=dtype)
        key = view.storage.key
        storage = self._kept.get(key)
        if storage is None:
            with _explained(self._path):
                storage = torch.frombuffer(self._file.read(key), dtype=torch.uint8)
        if key in self._shared:
            self._kept[key] = storage
        whole = storage[: view.storage.count * dtype.itemsize].view(dtype)
        return whole.as_strided(view.shape, view.stride, view.offset)


def _check_total(path: Path, tensors: Any) -> None:
    sizes = dict(STORAGES.values())
    total = sum(math.prod(tensor.shape) * sizes.get(tensor.dtype, 0) for tensor in tensors)
    if total > _MAX_SHARING * os.path.getsize(path) + (1 << 20):
        raise CheckpointError(f"{path}: its tensors claim {total / 1e6:.0f} MB, far more than the file holds; save them again")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns a reader's error into a CheckpointError that says what is wrong with the file and what to do."""
    try:
        yield
    except CheckpointError:
        raise
    except UnsafeError as error:
        raise CheckpointError(
            f"{path}: holds {printable(str(error)[:100])} besides tensors, and loading that would run code from the file; "
            "save the state dict alone: torch.save(model.state_dict(), path)"
        ) from None
    except Exception as error:  # readers fail on damaged files in many ways
        reason = f" ({printable(str(error)[:200])})" if isinstance(error, PickleError) else ""  # others speak of parsers
        raise CheckpointError(f"{path}: is damaged, or not a checkpoint{reason}; {_DAMAGED}") from None


def _kind(value: Any) -> str:
    return "a tensor" if isinstance(value, (View, Global)) else f"a {type(value).__name__}"
