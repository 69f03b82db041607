"""The first visible GPU, as NVIDIA's driver describes it, without torch or a CUDA context."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from typing import Any

OLDEST_FUSED = (8, 0)  # compute capability that the fused kernels need


@dataclass(frozen=True)
class Gpu:
    """`compute_capability` as "8.9", `driver` as "580.65.06", `cuda` the newest CUDA that the driver runs, memory in bytes."""

    name: str
    compute_capability: str
    driver: str
    cuda: str
    memory: int


class NoGpuError(Exception):
    """There is no GPU; the message says why not."""


def has_driver() -> bool:
    """Whether NVIDIA's driver is installed. Everything else that could tell, even pynvml, takes long to import."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        return True
    except OSError:
        return False


def gpu_at_hand() -> Gpu:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves visible. Raises NoGpuError.

    Numbers in CUDA_VISIBLE_DEVICES are taken in nvidia-smi's order. CUDA's is the same where all GPUs of a machine are alike,
    or CUDA_DEVICE_ORDER is PCI_BUS_ID.
    """
    if not has_driver():
        raise NoGpuError("NVIDIA's driver is not there")
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoGpuError(f"NVIDIA's driver is not there ({error})") from None
    try:
        return _describe(pynvml, _first_visible(pynvml))
    except pynvml.NVMLError as error:
        raise NoGpuError(f"NVIDIA's driver finds no GPU ({error})") from None
    finally:
        pynvml.nvmlShutdown()


def gpus_at_hand() -> int:
    """How many GPUs CUDA_VISIBLE_DEVICES leaves visible."""
    try:
        gpu_at_hand()
    except NoGpuError:
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len(visible.split(","))
    import pynvml

    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetCount())
    finally:
        pynvml.nvmlShutdown()


def _first_visible(pynvml: Any) -> Any:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.split(",")[0].strip()
    if first.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    if not first.startswith(("GPU-", "MIG-")):
        raise NoGpuError(f"CUDA_VISIBLE_DEVICES is {visible!r}, which hides every GPU")
    return pynvml.nvmlDeviceGetHandleByUUID(first)


def _describe(pynvml: Any, handle: Any) -> Gpu:
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    return Gpu(
        name=pynvml.nvmlDeviceGetName(handle),
        compute_capability=f"{major}.{minor}",
        driver=pynvml.nvmlSystemGetDriverVersion(),
        cuda=f"{cuda // 1000}.{cuda % 1000 // 10}",
        memory=pynvml.nvmlDeviceGetMemoryInfo(handle).total,
    )
