"""A bundle's engine, opened."""

from __future__ import annotations

import logging
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.config import Backend, Device
from sigrl_deploy.engines.choosing import Choice, choose
from sigrl_deploy.engines.engine import Engine, UnavailableError
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from sigrl_deploy.machine.gpu import OLDEST_FUSED, NoGpuError, gpu_at_hand, has_driver

if TYPE_CHECKING:
    from sigrl_deploy.tensorrt.library import Library

log = logging.getLogger(__name__)


class ThisMachine:
    """See `Machine`. Imports what it must to answer, and nothing before it is asked."""

    def has_package(self, name: str) -> bool:
        return find_spec(name) is not None

    def no_gpu(self, backend: Backend) -> str:
        if backend in (Backend.ONNXRUNTIME, Backend.ONNXRUNTIME_TENSORRT):
            from sigrl_deploy.engines.onnxruntime import has_provider, provider_of, short

            provider = provider_of(backend)
            if has_provider(provider):
                return ""
            return _no_driver() or f"this onnxruntime has no {short(provider)} provider, which onnxruntime-gpu has"
        if backend is Backend.TENSORRT:
            return _no_driver() or _no_torch_gpu() or _not_torchs()
        # Torch takes long to import, and has no GPU without the driver.
        return _no_torch_gpu() if has_driver() else _no_driver()

    def runs_kernels(self) -> bool:
        import torch

        if torch.cuda.get_device_capability() >= OLDEST_FUSED:
            return True
        log.warning("%s is too old for the fused kernels; none of them runs", torch.cuda.get_device_name())
        return False


def _no_driver() -> str:
    try:
        gpu_at_hand()
    except NoGpuError as error:
        return f"there is no GPU: {error}"
    return ""


def _no_torch_gpu() -> str:
    import torch

    return "" if torch.cuda.is_available() else "torch finds no GPU, though the driver is there"


def _not_torchs() -> str:
    """Why TensorRT, which takes the GPU that the driver names first, cannot share torch's."""
    import torch

    gpu, torchs = gpu_at_hand(), torch.cuda.get_device_name()
    if torchs == gpu.name:
        return ""
    return (
        f"torch runs on {torchs}, and the driver's first GPU is {gpu.name}; set CUDA_DEVICE_ORDER=PCI_BUS_ID, and "
        "CUDA_VISIBLE_DEVICES to one of them"
    )


def open_engine(bundle: Bundle, options: EngineOptions) -> Engine:
    """The engine that `choose` names.

    Where ONNX Runtime's CUDA provider does not start, and where TensorRT has no engine and may build none, the next best is
    opened and the reason logged, unless `cuda` was asked for.

    Raises what `choose` raises, and what the engine raises.
    """
    choice = choose(bundle, options, ThisMachine())
    try:
        return _open(bundle, choice, options)
    except UnavailableError as error:
        if choice.backend is Backend.TENSORRT and not options.build:
            log.warning("%s; falling back, since none may be built", error.reason)
            return open_engine(bundle, replace(options, backend=Backend.AUTO))
        if choice.backend is not Backend.ONNXRUNTIME or options.device is Device.CUDA:
            raise
        on_cpu = choose(bundle, replace(options, device=Device.CPU, unfused=frozenset()), ThisMachine())
        return _open(bundle, replace(on_cpu, reason=error.reason), options)


def _open(bundle: Bundle, choice: Choice, options: EngineOptions) -> Engine:
    folder, precision, kernels = options.cache_folder, choice.precision, choice.kernels
    if choice.backend is Backend.TORCH:
        from sigrl_deploy.engines.torch import TorchEngine

        return TorchEngine(bundle, choice.device, precision, kernels, folder, options.threads)
    if choice.backend is Backend.TENSORRT:
        from sigrl_deploy.engines.tensorrt import TensorRtEngine

        return TensorRtEngine(bundle, _library(bundle), gpu_at_hand(), precision, kernels, folder, options.build)
    if choice.backend is Backend.OPENVINO:
        from sigrl_deploy.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(bundle, precision, options.threads)
    if kernels and choice.device is Device.CUDA:
        from sigrl_deploy.engines.onnxruntime_fused import OnnxRuntimeFusedEngine

        return OnnxRuntimeFusedEngine(bundle, choice.device, precision, kernels, folder)
    if kernels:
        from sigrl_deploy.engines.onnxruntime_cpu import OnnxRuntimeCpuEngine

        return OnnxRuntimeCpuEngine(bundle, choice, options.threads)
    from sigrl_deploy.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, choice, folder, options.threads)


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
