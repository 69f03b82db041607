"""ONNX Runtime on a CPU (the default) or through its CUDA provider."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from sigrl_deploy.bundle import Bundle
from sigrl_deploy.config import Precision
from sigrl_deploy.engines import Array
from sigrl_deploy.errors import BundleError, UsageError
from sigrl_deploy.vocabulary import Vocabulary

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_CPU_PRECISIONS = (Precision.FP32, Precision.FP16)  # the CPU provider has no bf16 products


class OnnxRuntimeEngine:
    """The bundle's graphs in ONNX Runtime. The text graph is opened when a vocabulary is first built, not before.

    `device` is "auto" (CUDA where this onnxruntime has it), "cpu" or "cuda"; `precision` None takes the bundle's first variant
    that the device can run. Raises UsageError where the device is not there, BundleError where no variant can run on it.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", precision: Precision | None = None) -> None:
        available = ort.get_available_providers()
        if device == "cuda" and _CUDA not in available:
            raise UsageError(
                f"--device cuda: this onnxruntime has only {', '.join(available)}; "
                "install onnxruntime-gpu (pip install 'sigrl-deploy[gpu]') in place of onnxruntime, or use --device cpu"
            )
        self.device = "cuda" if device != "cpu" and _CUDA in available else "cpu"
        self.precision = _choose_precision(bundle, self.device, precision)
        self._bundle = bundle
        self._variant = bundle.manifest.variants[self.precision]
        self._visual = self._open(bundle.file(self._variant.visual))
        self._visual_inputs = {node.name for node in self._visual.get_inputs()}
        reason = "" if device != "auto" or self.device == "cuda" else ", as this onnxruntime has no CUDA provider"
        self.description = f"ONNX Runtime {ort.__version__} on {self.device}, {self.precision.value}{reason}"

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
        if session.get_providers()[0] != providers[0]:
            raise UsageError(
                f"--device cuda: ONNX Runtime could not start {_CUDA}; check the driver and the CUDA libraries it names above, "
                "or use --device cpu"
            )
        return session

    @cached_property
    def _text(self) -> ort.InferenceSession:
        if self._variant.text is None:
            raise BundleError(f"{self._bundle.path}: has no text graph; its vocabulary is complete as it is")
        return self._open(self._bundle.file(self._variant.text))

    def encode(self, pixels: Array, vocabulary: Vocabulary) -> tuple[Array | None, Array]:
        """See `Engine.encode`."""
        feeds = {"pixels": pixels}
        if "label_embedding" in self._visual_inputs:
            assert vocabulary.graph_projection is not None
            feeds |= {"label_embedding": vocabulary.label_embedding, "graph_projection": vocabulary.graph_projection}
        outputs = self._visual.run(None, feeds)
        return (outputs[0], outputs[1]) if len(outputs) == 2 else (None, outputs[0])

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


def _choose_precision(bundle: Bundle, device: str, wanted: Precision | None) -> Precision:
    variants = bundle.manifest.variants
    if wanted is not None and wanted not in variants:
        raise BundleError(
            f"{bundle.path}: holds {', '.join(v.value for v in variants)}, not {wanted.value}; export that precision"
        )
    for precision in [wanted] if wanted else variants:
        if device == "cuda" or precision in _CPU_PRECISIONS:
            return precision
    raise BundleError(
        f"{bundle.path}: holds {', '.join(v.value for v in variants)}, which ONNX Runtime cannot run on a CPU; "
        "export with --precision fp32, or run on a GPU"
    )
