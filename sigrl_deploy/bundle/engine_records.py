"""What an engine was built from and for, and whether it fits a machine. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from sigrl_deploy.config import Precision
from sigrl_deploy.errors import UsageError
from sigrl_deploy.machine.gpu import Gpu

LARGEST = 1_000_000  # pictures or labels
OLDEST_PORTABLE = (8, 0)  # Ampere: hardware-compatible engines run on it and on everything newer


class Ops(str, Enum):
    """How SVFR runs: as standard ops inside the engine, by our kernels as a plugin inside it, or by our kernels behind the
    engine, which then ends with the tower.
    """

    FUSED = "fused"
    INLINED = "inlined"
    PLUGIN = "plugin"


@dataclass(frozen=True)
class Range:
    """Sizes that an engine takes: the least, the best (which it is tuned for) and the most."""

    least: int
    best: int
    most: int

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.least <= size <= self.most

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"

    @classmethod
    def of(cls, option: str, values: Sequence[int]) -> Range:
        """Raises UsageError naming `option` where the values are not ordered whole numbers above 0."""
        whole = len(values) == 3 and all(type(value) is int for value in values)
        if not whole or not 0 < values[0] <= values[1] <= values[2] <= LARGEST:
            shown = " ".join(map(str, values))
            raise UsageError(f"{option} {shown}: expected the least, the best and the most, in order, from 1 to {LARGEST}")
        return cls(*values)


DEFAULT_BATCH = Range(1, 1, 32)
MOST_LABELS = 4096


@dataclass(frozen=True)
class Profile:
    """The batches and label counts that an engine takes."""

    batch: Range
    labels: Range


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine holds for. `onnx` is the sha256 of the bundle's file, `library` a name with its version.

    `gpu` and `driver` are None for an engine that was built ahead of time, for `compute_capabilities` alone.
    `hardware_compatible` engines run on Ampere and newer, `version_compatible` ones in later releases of a major version.
    """

    graph: str  # "visual" or "text"
    onnx: str
    library: str
    precision: Precision
    ops: Ops
    profile: Profile
    compute_capabilities: tuple[str, ...]
    gpu: str | None = None
    driver: str | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False

    @property
    def file_name(self) -> str:
        """Of the engine in its bundle: no two keys share one."""
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.graph}-{self.precision.value}-{self.ops.value}-{digest}.engine"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"precision": self.precision.value, "ops": self.ops.value}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EngineKey:
        """Raises KeyError, TypeError or ValueError for what is no key."""
        ranges = {name: Range(**values["profile"][name]) for name in ("batch", "labels")}
        parsed = {
            "precision": Precision(values["precision"]),
            "ops": Ops(values["ops"]),
            "profile": Profile(**ranges),
            "compute_capabilities": tuple(map(str, values["compute_capabilities"])),
        }
        key = cls(**(values | parsed))
        texts = [key.onnx, key.library, *(text for text in (key.gpu, key.driver) if text is not None)]
        if key.graph not in ("visual", "text") or not all(isinstance(text, str) for text in texts) or " " not in key.library:
            raise ValueError(f"engines: {values} is no key of an engine")
        return key

    def unfit(self, onnx: str, library: str, gpu: Gpu) -> list[str]:
        """Why the engine does not run the bundle's present file here, a line for each field that differs."""
        found = []
        if self.onnx != onnx:
            found.append(f"it was built from another {self.graph} graph (sha256 {self.onnx[:12]}, now {onnx[:12]})")
        if not _runs(self.library, library, self.version_compatible):
            found.append(f"it was built by {self.library}, and this is {library}")
        if not self._runs_on(gpu.compute_capability):
            built_for = " ".join(self.compute_capabilities)
            found.append(f"it was built for compute capability {built_for}, and {gpu.name} has {gpu.compute_capability}")
        elif self.gpu not in (None, gpu.name) and not self.hardware_compatible:
            found.append(f"it was built on {self.gpu}, and this is {gpu.name}")
        if self.driver not in (None, gpu.driver) and not self.hardware_compatible:
            found.append(f"it was built with driver {self.driver}, and this is {gpu.driver}")
        return found

    def _runs_on(self, capability: str) -> bool:
        if capability in self.compute_capabilities:
            return True
        return self.hardware_compatible and version_tuple(capability) >= OLDEST_PORTABLE


def _runs(built: str, here: str, version_compatible: bool) -> bool:
    if built == here:
        return True
    (old_name, old), (name, new) = (text.rsplit(" ", 1) for text in (built, here))
    same_major = old_name == name and version_tuple(old)[:1] == version_tuple(new)[:1]
    return version_compatible and same_major and version_tuple(old) <= version_tuple(new)


def version_tuple(text: str) -> tuple[int, ...]:
    """ "10.13.2.6" → (10, 13, 2, 6); what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))


@dataclass(frozen=True)
class EngineRecord:
    """An engine's entry in the manifest: its key, file, sha256, size in bytes, and the seconds that building it took."""

    key: EngineKey
    file: str
    sha256: str
    size: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"key": self.key.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EngineRecord:
        """Raises KeyError, TypeError or ValueError for what is no record."""
        record = cls(**(values | {"key": EngineKey.from_dict(values["key"])}))
        numbers = type(record.size) is int and isinstance(record.seconds, (int, float))
        if not isinstance(record.file, str) or not isinstance(record.sha256, str) or not numbers:
            raise ValueError(f"engines: {record.file!r} is no record of an engine")
        return record
