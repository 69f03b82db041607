"""ONNX Runtime on a CPU (the default) or through its CUDA provider."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sigrl_deploy import matching
from sigrl_deploy.bundle import Bundle
from sigrl_deploy.config import Precision
from sigrl_deploy.engines import Array
from sigrl_deploy.errors import BundleError, UsageError
from sigrl_deploy.vocabulary import Vocabulary

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_CPU_PRECISIONS = (Precision.FP32, Precision.FP16, Precision.INT8)  # the CPU provider has no bf16 products


class _NoCudaError(UsageError):
    """CUDA cannot be used; `reason` is what a fallback states."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"--device cuda: {reason}; {advice}, or use --device cpu")
        self.reason = reason


class OnnxRuntimeEngine:
    """The bundle's graphs in ONNX Runtime. The text graph is opened when a vocabulary is first built, not before.

    `device` is "auto" (CUDA where it starts, else the CPU), "cpu" or "cuda"; the bundle's first variant that it can run is
    taken. Raises UsageError where the device is not there, BundleError where no variant can run on it.
    """

    def __init__(self, bundle: Bundle, device: str = "auto") -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device {device!r}: expected auto, cpu or cuda")
        self._bundle = bundle
        reason = "as asked" if device != "auto" else ""
        if device != "cpu":
            try:
                self._start("cuda")
            except _NoCudaError as error:
                if device == "cuda":
                    raise
                reason = error.reason
                device = "cpu"
        if device == "cpu":
            self._start("cpu")
        because = f" ({reason})" if reason else ""
        self.description = f"ONNX Runtime {ort.__version__} on {self.device}{because}, {self.precision.value}"

    def _start(self, device: str) -> None:
        available = ort.get_available_providers()
        if device == "cuda" and _CUDA not in available:
            raise _NoCudaError(
                "this onnxruntime has no CUDA provider", "put onnxruntime-gpu in its place (the README says how)"
            )
        self.device = device
        self.precision = _choose_precision(self._bundle, device)
        self._variant = self._bundle.manifest.variants[self.precision]
        self._visual = self._open(self._bundle.file(self._variant.visual))
        _check_interface(self._visual, self._bundle, self._variant.visual)

    def _open(self, path: Path) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
        providers = [_CUDA, _CPU] if self.device == "cuda" else [_CPU]
        try:
            session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions have no common base
            reason = str(error).strip().splitlines()[0]
            raise BundleError(f"{path}: ONNX Runtime {ort.__version__} cannot open it ({reason}); export it again") from None
        # ONNX Runtime goes on without a provider that it cannot start.
        if session.get_providers()[0] != providers[0]:
            raise _NoCudaError("the CUDA provider did not start", "check the GPU, its driver and the CUDA libraries")
        return session

    @cached_property
    def _text(self) -> ort.InferenceSession:
        assert self._variant.text is not None
        return self._open(self._bundle.file(self._variant.text))

    def preprocess(self) -> NoReturn:
        """See `Engine.preprocess`; ONNX Runtime runs none."""
        raise UsageError("--device-preprocess: ONNX Runtime does not prepare pictures; use --backend torch, or leave it out")

    def encode(self, pixels: Array, vocabulary: Vocabulary) -> tuple[Array | None, Array]:
        """See `Engine.encode`."""
        feeds = {"pixels": pixels}
        if self._bundle.manifest.arch.has_graph:
            assert vocabulary.graph_projection is not None
            feeds |= {"label_embedding": vocabulary.label_embedding, "graph_projection": vocabulary.graph_projection}
        if self.precision is Precision.INT8:  # a graph of one picture, whose scales are its own
            parts = [self._visual.run(None, feeds | {"pixels": pixels[i : i + 1]}) for i in range(len(pixels))]
            outputs = [np.concatenate(rows) for rows in zip(*parts, strict=True)]
        else:
            outputs = self._visual.run(None, feeds)
        return (outputs[0], outputs[1]) if len(outputs) == 2 else (None, outputs[0])

    def score(self, pixels: Array, vocabulary: Vocabulary) -> Array:
        """See `Engine.score`; matching runs in numpy."""
        local, global_feature = self.encode(pixels, vocabulary)
        manifest, rows = self._bundle.manifest, vocabulary.label_embedding
        pictures = [None] * len(pixels) if local is None else local
        scores = [
            matching.score(manifest.arch, patches, g, rows, manifest.topk)
            for patches, g in zip(pictures, global_feature, strict=True)
        ]
        return np.stack(scores)

    def encode_labels(self, token_ids: NDArray[np.int64]) -> Array:
        """See `Engine.encode_labels`."""
        return self._run_text(np.zeros((0, self._bundle.manifest.embed_dim), np.float32), token_ids)["label_embedding"]

    def project_graph(self, label_embedding: Array) -> Array | None:
        """See `Engine.project_graph`."""
        if self._bundle.manifest.graph_identity is None:
            return None
        no_labels = np.zeros((0, self._bundle.manifest.context_length or 0), np.int64)
        return self._run_text(label_embedding, no_labels)["graph_projection"]

    def _run_text(self, cached_embedding: Array, token_ids: NDArray[np.int64]) -> dict[str, Array]:
        given = {"cached_embedding": cached_embedding, "token_ids": token_ids}
        feeds = {node.name: given[node.name] for node in self._text.get_inputs()}
        names = [node.name for node in self._text.get_outputs()]
        return dict(zip(names, self._text.run(names, feeds), strict=True))


def _choose_precision(bundle: Bundle, device: str) -> Precision:
    variants = bundle.manifest.variants
    for precision in variants:
        if device == "cuda" or precision in _CPU_PRECISIONS:
            return precision
    raise BundleError(
        f"{bundle.path}: holds {', '.join(v.value for v in variants)}, which ONNX Runtime cannot run on a CPU; "
        "export with --precision fp32, or run on a GPU"
    )


def _check_interface(visual: ort.InferenceSession, bundle: Bundle, name: str) -> None:
    """A graph of another architecture or size than the manifest's would fail at the first picture, or score it wrongly."""
    manifest = bundle.manifest
    expected = {"pixels": [3, manifest.image_size, manifest.image_size]}
    if manifest.arch.has_graph:
        expected |= {"label_embedding": [manifest.embed_dim], "graph_projection": [manifest.embed_dim]}
    if {node.name: node.shape[1:] for node in visual.get_inputs()} != expected:
        raise BundleError(
            f"{bundle.path / name}: its inputs are not those that the manifest describes; export the bundle again"
        )
