"""How a bundle is to be run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sigrl_deploy.config import FUSED, Backend, Device, Precision
from sigrl_deploy.errors import UsageError, member_of


@dataclass(frozen=True)
class EngineOptions:
    """What a caller asks of an engine.

    Args:
        precision: one of the bundle's, by default its first that the backend runs on the device.
        unfused: ops of FUSED that run in their plain form, not as kernels.
        cache_folder: keeps compiled kernels, and engines of ONNX Runtime's TensorRT provider, between runs.
        build: whether `tensorrt` may build an engine where the bundle has none for this machine; if not, `auto` runs.
        threads: of the CPU; by default those of `cpus.threads()`, and of PyTorch its own.
        device_preprocess: resize pictures on the device instead of in Pillow (PyTorch only). The log says by how much that
            changes scores, as export measured it.

    Raises UsageError for an unknown backend, device, precision or op, and for less than one thread.
    """

    backend: Backend = Backend.AUTO
    device: Device = Device.AUTO
    precision: Precision | None = None
    unfused: frozenset[str] = frozenset()
    cache_folder: Path | None = None
    build: bool = True
    threads: int | None = None
    device_preprocess: bool = False

    def __post_init__(self) -> None:
        for name, kind in (("backend", Backend), ("device", Device), ("precision", Precision)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, member_of(kind, value, name))
        if self.threads is not None and (type(self.threads) is not int or self.threads < 1):
            raise UsageError("expected a whole number, at least 1", argument="threads", value=self.threads)
        for op in self.unfused:
            if op not in FUSED:
                raise UsageError(f"expected some of {', '.join(FUSED)}", argument="unfused", value=op)
