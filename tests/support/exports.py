"""PyTorch's exporter, which takes seconds, run once a test run for each graph and its weights."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from tests.support.sharing import Shared

Export = Callable[..., onnx.ModelProto]
_LARGEST = 1 << 26  # bytes of weights: what is larger is exported once anyhow


class _Digest(pickle.Pickler):
    """Writes all that a module holds, for tensors a digest of their values."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return NotImplemented
        held = hashlib.sha256(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return str, (f"{type(value)} {value.dtype} {value.shape} {value.stride()} {value.requires_grad} {held.hexdigest()}",)


def once(export: Export, shared: Shared) -> Export:
    """`export.onnx._export`, whose result for the same arguments comes from a file.

    It knows the graph and its weights, not the exporter's code: a test that changes that has to call `export` itself.
    """

    def exported(graph: nn.Module, *arguments: Any) -> onnx.ModelProto:
        if sum(tensor.nbytes for tensor in graph.state_dict().values()) > _LARGEST:
            return export(graph, *arguments)

        def fill(folder: Path) -> None:
            onnx.save(export(graph, *arguments), folder / "graph.onnx")

        return onnx.load(shared.folder(f"graph-{_name(graph, arguments)}", fill) / "graph.onnx")

    return exported


def _name(graph: nn.Module, arguments: tuple[Any, ...]) -> str:
    written = io.BytesIO()
    _Digest(written, pickle.HIGHEST_PROTOCOL).dump(graph)
    inputs, dynamic, *names = arguments
    shapes = [(tuple(given.shape), given.dtype) for given in inputs]
    written.write(repr([shapes, dynamic, names]).encode())
    return hashlib.sha256(written.getbuffer()).hexdigest()
