"""ONNX Runtime on a CPU (the default) or through its CUDA provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from sigrl_deploy.bundle import Bundle
from sigrl_deploy.config import Precision
from sigrl_deploy.engines import Array
from sigrl_deploy.engines.graphs import GraphEngine, threads
from sigrl_deploy.errors import BundleError, UsageError

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_CPU_PRECISIONS = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8_ALL)  # the CPU provider has no bf16 products


class _NoCudaError(UsageError):
    """CUDA cannot be used; `reason` is what a fallback states."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"--device cuda: {reason}; {advice}, or use --device cpu")
        self.reason = reason


class OnnxRuntimeEngine(GraphEngine):
    """The bundle's graphs in ONNX Runtime.

    `device` is "auto" (CUDA where it starts, else the CPU), "cpu" or "cuda". Without a `precision` the bundle's first variant
    that the device can run is taken. Raises UsageError where the device is not there or the precision cannot be had on it,
    BundleError where no variant can run.
    """

    def __init__(self, bundle: Bundle, device: str = "auto", precision: Precision | None = None) -> None:
        if device not in ("auto", "cpu", "cuda"):
            raise UsageError(f"device {device!r}: expected auto, cpu or cuda")
        self._asked = precision
        reason = "as asked" if device != "auto" else ""
        if device != "cpu":
            try:
                self._start(bundle, "cuda")
            except _NoCudaError as error:
                if device == "cuda":
                    raise
                reason = error.reason
                device = "cpu"
        if device == "cpu":
            self._start(bundle, "cpu")
        because = f" ({reason})" if reason else ""
        self.description = f"ONNX Runtime {ort.__version__} on {self.device}{because}, {self.precision.value}"

    def _start(self, bundle: Bundle, device: str) -> None:
        if device == "cuda" and _CUDA not in ort.get_available_providers():
            raise _NoCudaError(
                "this onnxruntime has no CUDA provider", "put onnxruntime-gpu in its place (the README says how)"
            )
        self.device = device
        super().__init__(bundle, _choose_precision(bundle, device, self._asked))

    def _open(self, path: Path) -> _Session:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads()
        providers = [_CUDA, _CPU] if self.device == "cuda" else [_CPU]
        try:
            session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's exceptions have no common base
            reason = str(error).strip().splitlines()[0]
            raise BundleError(f"{path}: ONNX Runtime {ort.__version__} cannot open it ({reason}); export it again") from None
        # ONNX Runtime goes on without a provider that it cannot start.
        if session.get_providers()[0] != providers[0]:
            raise _NoCudaError("the CUDA provider did not start", "check the GPU, its driver and the CUDA libraries")
        return _Session(session)


class _Session:
    """See `OpenGraph`."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.inputs: dict[str, list[int | str]] = {node.name: node.shape[1:] for node in session.get_inputs()}
        self._outputs = [node.name for node in session.get_outputs()]

    def __call__(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Array]:
        return dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))


def _choose_precision(bundle: Bundle, device: str, asked: Precision | None) -> Precision:
    variants = bundle.precisions(asked)
    for precision in variants:
        if not precision.is_int8 if device == "cuda" else precision in _CPU_PRECISIONS:
            return precision
    if asked:
        other = "--device cpu" if device == "cuda" else "--backend openvino for bf16"
        raise UsageError(f"--precision {asked.value}: ONNX Runtime does not run it on {device}; take another one, or {other}")
    if device == "cuda":
        raise BundleError(f"{bundle.path}: int8 is for CPUs; export with --precision fp16, or use --device cpu")
    raise BundleError(
        f"{bundle.path}: ONNX Runtime cannot run {', '.join(v.value for v in variants)} on a CPU; "
        "export with --precision fp32, use --backend openvino, or run on a GPU"
    )
