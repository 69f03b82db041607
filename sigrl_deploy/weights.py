"""A file of weights → its named tensors. No code from the file is ever run."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigrl_deploy.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_STORAGES = {
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict saved by `torch.save`, of a TorchScript archive or of a `.safetensors` file, by name.

    Raises CheckpointError where the file is none of these, is damaged, or holds objects that only its own code can rebuild.
    """
    import torch

    if not os.path.isfile(path):
        problem = "is a folder" if os.path.isdir(path) else "no such file"
        raise CheckpointError(f"{path}: {problem}; expected a .pth, .pt or .safetensors checkpoint")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to the author of a file is no help to its reader
            loaded = _read(path)
    except Exception as error:  # each reader has its own ways to fail on a damaged file
        raise CheckpointError(f"{path}: {_explained(error)}") from None
    for key in _WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: holds a {type(loaded).__name__}, expected a state dict of named tensors")
    return {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


def _read(path: Path) -> Any:
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return _read_torchscript(archive)
    return torch.load(path, map_location="cpu", weights_only=True)


def _explained(error: Exception) -> str:
    """What is wrong with the file and what to do, from a reader's error."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            return (
                f"holds {found[1]} beside tensors, and loading that would run code from the file; "
                "save its state dict alone: torch.save(model.state_dict(), path)"
            )
        return "is no checkpoint, or damaged; expected a file written by torch.save, torch.jit.save or safetensors"
    lines = str(error).strip().splitlines()
    reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"cannot be read as a checkpoint ({reason}); it may be cut short: copy or save it again"


def _read_torchscript(archive: zipfile.ZipFile) -> dict[str, Tensor]:
    """Tensors of a TorchScript archive. `torch.jit.load` would run the `__setstate__` of every module in it; this does not."""
    (data,) = (name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl"))
    with archive.open(data) as file:
        root = _TorchScriptUnpickler(file, archive, data.removesuffix("data.pkl")).load()
    return dict(_tensors(root, ""))


class _Module:
    """Stands for an object of any class that an archive defines: its attributes and nothing else."""


def _tensors(module: _Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    import torch

    for name, value in vars(module).items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")
        # CLIP's blocks may keep their causal mask as a plain attribute, which a state dict leaves out.
        elif isinstance(value, torch.Tensor) and name != "attn_mask":
            yield prefix + name, value


class _TorchScriptUnpickler(pickle.Unpickler):
    """Rebuilds modules as plain `_Module`s and tensors from the archive's own storages; refuses everything else."""

    def __init__(self, file: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive = archive
        self._folder = folder

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if module.partition(".")[0] == "__torch__":
            return _Module
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGES:
            return getattr(torch, _STORAGES[name])
        if module == "torch.jit._pickle" and name.startswith(("build_", "restore_")):
            return _first  # typed lists and dicts: no weights
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed")

    def persistent_load(self, pid: Any) -> Tensor:
        import torch

        _, dtype, key, _, count = pid
        if not count:  # frombuffer refuses an empty buffer
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(self._archive.read(f"{self._folder}data/{key}")), dtype=dtype)


def _rebuild_tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _first(value: Any, *_: Any) -> Any:
    return value
