"""Which backend runs a bundle."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.config import Backend, Precision
from sigrl_deploy.engines.engine import Engine
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from sigrl_deploy.machine.gpu import NoGpuError, gpu_at_hand, has_driver

if TYPE_CHECKING:
    from sigrl_deploy.machine.gpu import Gpu
    from sigrl_deploy.tensorrt.library import Library

log = logging.getLogger(__name__)

_NOT_FUSED = "--unfused {}: nothing is fused here; leave it out, or use --backend torch on a GPU"


def open_engine(bundle: Bundle, options: EngineOptions) -> Engine:
    """The engine of a bundle, in one of its precisions or in its first that can run.

    "auto" takes PyTorch where it has a GPU and the bundle its weights, else ONNX Runtime. ONNX Runtime has SVFR and the match
    run as kernels where it and PyTorch have a GPU.

    Raises UsageError for a backend that is not installed or that the bundle was not exported for, for an op that the backend
    does not fuse, and what the engine raises.
    """
    backend, device, precision = options.backend, options.device.value, options.precision
    unfused, cache_folder, threads = options.unfused, options.cache_folder, options.threads
    if backend == "torch" or (backend == "auto" and device != "cpu" and _torch_has_gpu(bundle, precision)):
        for package in ("torch", "triton"):
            if find_spec(package) is None:
                raise UsageError(f"--backend torch: {package} is not installed; pip install '.[export]' in a checkout on Linux")
        from sigrl_deploy.engines.gpu_engine import fused_on
        from sigrl_deploy.engines.torch import TorchEngine

        fused = fused_on(device, ())
        if unfused and not fused and device != "cuda":
            raise UsageError(_NOT_FUSED.format(next(iter(unfused))))
        return TorchEngine(bundle, device, precision, fused - set(unfused), cache_folder, threads)
    if backend == "tensorrt":
        engine = _tensorrt(bundle, device, precision, unfused, cache_folder, options.build)
        return engine or open_engine(bundle, replace(options, backend=Backend.AUTO))
    if backend in ("auto", "onnxruntime") and _can_fuse(bundle, device):
        engine = _onnxruntime_fused(bundle, device, precision, unfused, cache_folder)
        if engine:
            return engine
    elif unfused:
        raise UsageError(_NOT_FUSED.format(next(iter(unfused))))
    if backend == "openvino":
        for package in ("openvino", "onnx"):
            if find_spec(package) is None:
                raise UsageError(f"--backend openvino: {package} is not installed; pip install '.[openvino]' in a checkout")
        from sigrl_deploy.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(bundle, device, precision, threads)
    from sigrl_deploy.engines.onnxruntime import OnnxRuntimeEngine

    folder = cache_folder / "onnxruntime-tensorrt" if cache_folder else None
    return OnnxRuntimeEngine(bundle, device, precision, backend == "onnxruntime-tensorrt", folder, threads)


def _can_fuse(bundle: Bundle, device: str) -> bool:
    """Whether kernels may run behind ONNX Runtime's tower: SVFR is in the model, ONNX Runtime and torch have a GPU."""
    if device not in ("auto", "cuda") or not bundle.manifest.arch.has_graph or not has_driver():
        return False
    from sigrl_deploy.engines.onnxruntime import CUDA, has_provider

    if not has_provider(CUDA) or any(find_spec(package) is None for package in ("torch", "triton", "onnx")):
        return False
    from sigrl_deploy.engines.gpu_engine import fused_on

    return bool(fused_on("cuda", ()))


def _onnxruntime_fused(
    bundle: Bundle, device: str, precision: Precision | None, unfused: Collection[str], cache_folder: Path | None
) -> Engine | None:
    """ONNX Runtime's CUDA provider with the fused SVFR behind it; None where the whole graph is to run in ONNX Runtime."""
    for op, what in (("gmc", "the label graph"), ("tower", "the tower")):
        if op in unfused:
            raise UsageError(f"--unfused {op}: ONNX Runtime runs {what} in standard ops; leave it out")
    if "svfr" in unfused:
        return None
    from sigrl_deploy.engines.gpu_engine import fused_on
    from sigrl_deploy.engines.onnxruntime import NoCudaError
    from sigrl_deploy.engines.onnxruntime_fused import OnnxRuntimeFusedEngine

    try:
        return OnnxRuntimeFusedEngine(bundle, "cuda", precision, fused_on("cuda", unfused), cache_folder)
    except NoCudaError:
        if device == "cuda":
            raise
        return None


def _tensorrt(
    bundle: Bundle, device: str, precision: Precision | None, unfused: Collection[str], cache_folder: Path | None, build: bool
) -> Engine | None:
    """The TensorRT engine; None, with the reason in the log, where there is none and none may be built."""
    if device == "cpu":
        raise UsageError("--device cpu: TensorRT runs on GPUs; leave it out, or use another --backend")
    if "tower" in unfused:
        raise UsageError("--unfused tower: TensorRT runs the tower itself; leave it out")
    library = _library(bundle)
    try:
        gpu = gpu_at_hand()
    except NoGpuError as error:
        raise UsageError(f"--backend tensorrt: there is no GPU: {error}; use another --backend") from None
    for package in ("torch", "triton"):
        if find_spec(package) is None:
            raise UsageError(
                f"--backend tensorrt: {package} is not installed; pip install '.[tensorrt]' in a checkout on Linux"
            )
    _check_torch(gpu)
    from sigrl_deploy.engines.gpu_engine import fused_on
    from sigrl_deploy.engines.tensorrt import NoEngineError, TensorRtEngine

    try:
        return TensorRtEngine(bundle, library, gpu, precision, fused_on("cuda", unfused), cache_folder, build)
    except NoEngineError as error:
        log.warning("%s; falling back, since --no-build was given", error.reason)
        return None


def _library(bundle: Bundle) -> Library:
    """The library that built the bundle's newest engines, where it loads here, else the first that does."""
    from sigrl_deploy.tensorrt.library import installed, open_library

    built = [record.key.library.split()[0] for record in reversed(bundle.manifest.engines)]
    for name in dict.fromkeys([*(name for name in built if name in installed()), *installed()]):
        try:
            return open_library(name)
        except UsageError as error:
            log.warning("%s", error)
    return open_library()


def _check_torch(gpu: Gpu) -> None:
    """Raise UsageError where torch does not run on the GPU that the driver names first."""
    import torch

    if not torch.cuda.is_available():
        raise UsageError("--backend tensorrt: torch finds no GPU, though the driver does; `sigrl-deploy doctor` says why")
    if torch.cuda.get_device_name() != gpu.name:
        raise UsageError(
            f"--backend tensorrt: torch runs on {torch.cuda.get_device_name()}, and the driver's first GPU is {gpu.name}; "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID, and CUDA_VISIBLE_DEVICES to one of them"
        )


def _torch_has_gpu(bundle: Bundle, precision: Precision | None) -> bool:
    variants = bundle.manifest.variants
    weights = [held for held, variant in variants.items() if variant.weights and precision in (held, None) and not held.is_int8]
    if not weights or find_spec("torch") is None or not has_driver():
        return False
    import torch

    return torch.cuda.is_available()
