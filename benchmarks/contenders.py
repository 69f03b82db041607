"""The contenders, by name. Each gives a pass: pixels [B, 3, H, W] in memory → scores [B, C] in memory.

clip               its CLIP alone, the tower and a cosine of the whole picture, as a bundle of ours in ONNX Runtime
eager-as-written   the materialised PyTorch model with GMC in every forward, as the reference computes it
eager              the same with GMC cached
compile            `eager` under torch.compile
naive-onnx         the materialised graph exported as it stands, in ONNX Runtime, GMC cached
compile-tiled      our tiled PyTorch model, what it does with one tile of labels under torch.compile
onnxruntime        our exported bundle in ONNX Runtime under `Recognizer`, vocabulary cached
onnx-function      the same without the native kernel: SVFR as the graph's own function
openvino           the same bundle in OpenVINO
torch              our PyTorch engine: fused kernels in one CUDA graph on a GPU, the tiled model on a CPU
tensorrt           our TensorRT engine of the tower with the fused kernels behind it; its first start builds it
onnxruntime-tensorrt   the bundle in ONNX Runtime's TensorRT provider
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.workload import CLIP, FUNCTION, IN_BUNDLES, NAIVE, bundle_of, load, vocabulary_file
from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels.cpu.library import OFF, VARIABLE

if TYPE_CHECKING:
    from torch import Tensor

    from sigrl_deploy.recognizer import Recognizer
    from sigrl_deploy.vocabulary.vocabulary import Vocabulary

Pass = Callable[[FloatArray], FloatArray]
ON_CPU = (
    ("clip", "fp32"),
    ("eager-as-written", "fp32"), ("eager", "fp32"), ("compile", "fp32"), ("compile", "bf16"), ("naive-onnx", "fp32"),
    ("onnxruntime", "fp32"), ("onnxruntime", "int8"), ("onnxruntime", "int8x3"), ("onnxruntime", "int8-all"),
    ("onnx-function", "fp32"), ("onnx-function", "int8"), ("onnx-function", "int8x3"),
    ("openvino", "fp32"), ("openvino", "bf16"),
)  # fmt: skip
ON_GPU = (
    ("eager-as-written", "bf16"), ("eager", "bf16"), ("eager", "fp32"), ("compile", "bf16"), ("compile-tiled", "bf16"),
    ("naive-onnx", "fp32"), ("onnxruntime", "fp16"), ("torch", "bf16"), ("torch", "fp16"), ("torch", "fp32"),
    ("onnxruntime-tensorrt", "fp16"), ("tensorrt", "bf16"), ("tensorrt", "fp16"),
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One measurement: contender, precision, device, and how many labels and pictures at once."""

    backend: str
    precision: str
    device: str
    labels: int
    batch: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def chosen(device: str, names: list[str] | None) -> list[tuple[str, str]]:
    """The contenders for a device that are installed here, or those in `names`: backend and precision.

    Raises UsageError for a name that no contender of the device has.
    """
    every = [pair for pair in (ON_CPU if device == "cpu" else ON_GPU) if _installed(pair[0], device)]
    known = dict.fromkeys(backend for backend, _ in every)
    for name in names or ():
        if name not in known:
            raise UsageError(f"--backends {name}: expected some of {', '.join(known)}, which can run here")
    return [pair for pair in every if not names or pair[0] in names]


def _installed(backend: str, device: str) -> bool:
    if backend in ("naive-onnx", "onnxruntime") and device == "cuda":
        from sigrl_deploy.engines.onnxruntime import CUDA, has_provider

        return has_provider(CUDA)
    if backend == "onnxruntime-tensorrt":
        import onnxruntime

        return "TensorrtExecutionProvider" in onnxruntime.get_available_providers()
    if backend == "tensorrt":
        from sigrl_deploy.tensorrt.library import installed

        return bool(installed())
    return backend != "openvino" or find_spec("openvino") is not None


def open_pass(cell: Cell, folder: Path) -> tuple[Pass, Any]:
    """A contender, ready for its first picture, and its recognizer or model. Called in a process of its own."""
    if cell.backend in IN_BUNDLES:
        return _engine(cell, folder)
    if cell.backend == "naive-onnx":
        return _naive(cell, folder), None
    return _eager(cell, folder)


def _engine(cell: Cell, folder: Path) -> tuple[Pass, Recognizer]:
    from sigrl_deploy.recognizer import Recognizer

    bundle, backend = bundle_of(folder, cell.precision), cell.backend
    if backend == CLIP:
        bundle, backend = bundle_of(folder, CLIP), "onnxruntime"
    if backend == FUNCTION:
        backend, os.environ[VARIABLE] = "onnxruntime", OFF
    recognizer = Recognizer(bundle, device=cell.device, backend=backend, cache_dir=folder / "cache")
    vocabulary = saved_vocabulary(folder, cell.labels)
    return lambda pixels: recognizer.score_pixels(pixels, vocabulary), recognizer


def saved_vocabulary(folder: Path, labels: int) -> Vocabulary:
    """T and G Wbᵀ as a cached vocabulary."""
    from sigrl_deploy.vocabulary.vocabulary import Vocabulary

    saved = np.load(vocabulary_file(folder, labels))
    return Vocabulary(tuple(map(str, range(labels))), saved["label_embedding"], saved["graph_projection"])


def _naive(cell: Cell, folder: Path) -> Pass:
    import onnxruntime as ort

    from benchmarks.machine import cores

    options = ort.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    provider = "CPUExecutionProvider" if cell.device == "cpu" else "CUDAExecutionProvider"
    session = ort.InferenceSession(folder / NAIVE, options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"this onnxruntime has no {provider}")
    saved = np.load(vocabulary_file(folder, cell.labels))
    feeds = {"label_embedding": saved["label_embedding"], "graph": saved["graph"]}
    return lambda pixels: session.run(None, feeds | {"pixels": pixels})[0]


def _eager(cell: Cell, folder: Path) -> tuple[Pass, Any]:
    """The materialised or the tiled model. In low precision its weights are cast, and autocast handles mixed dtypes."""
    import torch

    from benchmarks.machine import cores
    from sigrl_deploy.config import Precision
    from sigrl_deploy.model.towers import typed

    torch.set_num_threads(cores())
    model = typed(load(folder), Precision(cell.precision)).to(cell.device).requires_grad_(False)
    saved = {
        name: torch.from_numpy(rows).to(cell.device) for name, rows in np.load(vocabulary_file(folder, cell.labels)).items()
    }
    forward = eager_forward(cell.backend, model, saved)
    dtype = model.dtype

    @torch.inference_mode()
    def run(pixels: FloatArray) -> FloatArray:
        with torch.autocast(cell.device, dtype=dtype, enabled=dtype is not torch.float32):
            scores: FloatArray = forward(torch.from_numpy(pixels).to(cell.device)).float().cpu().numpy()
            return scores

    return run, model


def eager_forward(backend: str, model: Any, saved: dict[str, Tensor]) -> Callable[[Tensor], Tensor]:
    """pixels → scores in PyTorch, by the backend's name."""
    import torch

    from sigrl_deploy.model import materialised

    embedding, graph, projection = (saved[name] for name in ("label_embedding", "graph", "graph_projection"))
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "eager-as-written": lambda pixels: materialised.forward(model, pixels, embedding),
        "eager": lambda pixels: materialised.forward(model, pixels, embedding, graph),
        "tiled": lambda pixels: model(pixels, embedding, projection),
    }
    if backend == "compile":
        compiled: Callable[[Tensor], Tensor] = torch.compile(forms["eager"])
        return compiled
    if backend == "compile-tiled":
        # The bodies of a tile: all tiles in one graph would be hundreds of them, and take longer to compile than they save.
        for name in ("decoupled", "reconstructed"):
            setattr(model.svfr, name, torch.compile(getattr(model.svfr, name), dynamic=False))
        return forms["tiled"]
    return forms[backend]
