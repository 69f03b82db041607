"""TensorRT or TensorRT for RTX, through the API that they share. No other module imports either."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from sigrl_deploy.errors import UsageError
from sigrl_deploy.extras import missing, require

LIBRARIES = ("tensorrt", "tensorrt_rtx")
_TURING = "7.5"  # TensorRT for RTX lists it, but has no fp32 matrix products for it, which every bundle's graphs need
_EXTRAS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}


@dataclass(frozen=True)
class Library:
    """An imported TensorRT: `trt` is the module."""

    name: str
    version: str
    trt: Any

    @property
    def full_name(self) -> str:
        """Its name and version, as engine keys hold it."""
        return f"{self.name} {self.version}"

    @property
    def is_rtx(self) -> bool:
        """Whether it is TensorRT for RTX, which builds without a GPU, but has no plugins and no version-compatible engines."""
        return self.name == "tensorrt_rtx"

    @property
    def capabilities(self) -> list[str]:
        """The compute capabilities that it can build for ahead of time."""
        names = (name for name in vars(self.trt.ComputeCapability) if name.startswith("SM"))
        return sorted({f"{name[2:-1]}.{name[-1]}" for name in names} - {_TURING}, key=float)

    def logger(self, log: Any) -> Any:
        """An `ILogger` that calls `log(severity, text)` for each message, with the name of its severity."""
        trt = self.trt

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                log(severity.name, text)

        return Logger()


def installed() -> list[str]:
    """The names of the installed libraries, TensorRT first."""
    return [name for name in LIBRARIES if find_spec(name) is not None]


def open_library(name: str | None = None) -> Library:
    """The library of this name, or the first that is installed. Raises UsageError where it is missing or does not load."""
    if name is None:
        name = next(iter(installed()), None)
    if name is None:
        error = missing(LIBRARIES[1], _EXTRAS[LIBRARIES[1]])  # which PyPI has; the other one is in NVIDIA's index
        raise UsageError(f"{error.problem}, or the extra tensorrt where pip finds NVIDIA's index", extra=error.extra)
    require(name, extra=_EXTRAS[name])
    try:
        trt = importlib.import_module(name)
        version = trt.__version__
    except (ImportError, OSError, RuntimeError, AttributeError) as error:  # a missing shared library raises any of these
        reason = str(error).strip().splitlines()[-1]
        raise UsageError(f"{name} is installed but does not load ({reason}); sigrl-deploy doctor says what to do") from None
    return Library(name, version, trt)
