"""An engine whose two graphs are models of the same Triton server."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.engines.onnx_graphs import OnnxEngine
from sigrl_deploy.triton_server.names import TEXT, VISUAL, text_inputs, text_outputs, visual_inputs, visual_outputs

# A model's name, its inputs, and the names of its outputs → the outputs. Raises ModelError.
Call = Callable[[str, Mapping[str, NDArray[Any]], Sequence[str]], dict[str, FloatArray]]


class ModelError(Exception):
    """A model of the server failed: the request may be right, and the server is at fault."""


@dataclass(frozen=True)
class ServedGraph:
    """See `OpenGraph`."""

    model: str
    inputs: Mapping[str, Sequence[int | str]]
    outputs: Sequence[str]
    call: Call

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, FloatArray]:
        return self.call(self.model, {name: np.ascontiguousarray(value) for name, value in feeds.items()}, self.outputs)


class ServedEngine(OnnxEngine):
    """See `Engine`. `bundle` has one precision, and its graphs run elsewhere: `call` asks the server for them.

    Raises ModelError, besides what `Engine` does, where the server fails.
    """

    device = "cpu"  # of what it is given and gives back; the server's models may run on GPUs

    def __init__(self, bundle: Bundle, call: Call) -> None:
        self._call = call
        (precision,) = bundle.manifest.variants
        super().__init__(bundle, precision, threads=None)
        self.description = f"{VISUAL} and {TEXT} of this server, {precision.value}"

    def _open(self, path: Path) -> ServedGraph:
        manifest = self._bundle.manifest
        if path.name == self._variant.visual:
            return ServedGraph(VISUAL, visual_inputs(manifest), tuple(visual_outputs(manifest)), self._call)
        return ServedGraph(TEXT, text_inputs(manifest), tuple(text_outputs(manifest)), self._call)

    def encode_labels(self, token_ids: NDArray[np.int64]) -> FloatArray:
        """See `Engine.encode_labels`."""
        # Engines of TensorRT take no empty list of cached rows; the row of zeros is dropped from the result.
        one = np.zeros((1, self._bundle.manifest.embed_dim), np.float32)
        return self._run_text(one, token_ids)["label_embedding"][-len(token_ids) :]
