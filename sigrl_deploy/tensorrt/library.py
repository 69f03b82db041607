"""TensorRT, or TensorRT for RTX, behind the API that both have: the only module that imports either."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from sigrl_deploy.errors import UsageError

LIBRARIES = ("tensorrt", "tensorrt_rtx")
_TURING = "7.5"  # is on its list, and has none of the fp32 products that every bundle's graphs hold
_INSTALL = {"tensorrt": "pip install '.[tensorrt]'", "tensorrt_rtx": "pip install '.[tensorrt-rtx]'"}


@dataclass(frozen=True)
class Library:
    """An imported TensorRT: `trt` is the module."""

    name: str
    version: str
    trt: Any

    @property
    def full_name(self) -> str:
        """What engines are keyed by."""
        return f"{self.name} {self.version}"

    @property
    def is_rtx(self) -> bool:
        """TensorRT for RTX builds without a GPU, but has neither plugins nor the lean runtime of version-compatible engines."""
        return self.name == "tensorrt_rtx"

    @property
    def capabilities(self) -> list[str]:
        """Compute capabilities that it builds for ahead of time, where it does."""
        names = (name for name in vars(self.trt.ComputeCapability) if name.startswith("SM"))
        return sorted({f"{name[2:-1]}.{name[-1]}" for name in names} - {_TURING}, key=float)

    def logger(self, log: Any) -> Any:
        """An `ILogger` that gives each message, with its severity's name, to `log(severity, text)`."""
        trt = self.trt

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                log(severity.name, text)

        return Logger()


def installed() -> list[str]:
    """The libraries that can be imported here, TensorRT first."""
    return [name for name in LIBRARIES if find_spec(name) is not None]


def open_library(name: str | None = None) -> Library:
    """The library of this name, or the first that is installed. Raises UsageError where there is none, or it does not load."""
    if name is None:
        found = installed()
        if not found:
            raise UsageError(f"TensorRT is not installed; {_INSTALL['tensorrt']} in a checkout (or '.[tensorrt-rtx]')")
        name = found[0]
    elif name not in installed():
        raise UsageError(f"{name} is not installed; {_INSTALL[name]} in a checkout")
    try:
        trt = importlib.import_module(name)
        version = trt.__version__
    except (
        ImportError,
        OSError,
        RuntimeError,
        AttributeError,
    ) as error:  # a shared library that is missing shows in each of these ways
        reason = str(error).strip().splitlines()[-1]
        raise UsageError(f"{name} is installed and does not load ({reason}); `sigrl-deploy doctor` says what to do") from None
    return Library(name, version, trt)
