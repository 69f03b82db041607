"""Records of TensorRT engines: what each was built from and for, and whether it runs on a machine. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from enum import Enum
from typing import Annotated, Literal

from msgspec import Meta

from sigrl_deploy.config import Precision
from sigrl_deploy.errors import UsageError
from sigrl_deploy.machine.gpu import Gpu
from sigrl_deploy.structs import Checked

LARGEST = 1_000_000  # pictures or labels
FileName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}\Z")]  # inside the bundle's folder
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
OLDEST_PORTABLE = (8, 0)  # Ampere: hardware-compatible engines run on it and on every newer GPU


class Ops(str, Enum):
    """How SVFR runs.

    `fused`: by this project's kernels, after an engine that ends with the tower. `inlined`: as standard ops inside the engine.
    `plugin`: by this project's kernels, as a plugin inside the engine.
    """

    FUSED = "fused"
    INLINED = "inlined"
    PLUGIN = "plugin"


class Range(Checked, frozen=True):
    """The sizes that an engine accepts: the least, the best (which it is tuned for) and the most.

    Raises ValueError where they are not in order, from 1 to LARGEST.
    """

    least: int
    best: int
    most: int

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.best <= self.most <= LARGEST:
            raise ValueError(
                f"least, best and most are {self.least} {self.best} {self.most}, expected 1 to {LARGEST}, in order"
            )

    def __contains__(self, size: object) -> bool:
        return isinstance(size, int) and self.least <= size <= self.most

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"

    @classmethod
    def of(cls, argument: str, values: Sequence[int]) -> Range:
        """From three numbers. Raises UsageError, which names `argument`, where they are not a range."""
        try:
            return cls.from_plain(dict(zip(("least", "best", "most"), values, strict=True)))
        except ValueError:
            expected = f"expected three whole numbers from 1 to {LARGEST}, in order: the least, the best and the most"
            raise UsageError(expected, argument=argument, value=" ".join(map(str, values))) from None


DEFAULT_BATCH = Range(1, 1, 32)
MOST_LABELS = 4096


class Profile(Checked, frozen=True):
    """The batch sizes and label counts that an engine accepts."""

    batch: Range
    labels: Range


class EngineKey(Checked, frozen=True):
    """Everything that an engine depends on.

    `onnx` is the sha256 of the bundle's graph, `library` the name of the library with its version. `gpu` and `driver` are None
    for an engine that was built ahead of time, for `compute_capabilities` alone. `hardware_compatible` engines run on Ampere
    and newer, `version_compatible` ones in later releases of the same major version.
    """

    graph: Literal["visual", "text"]
    onnx: Sha256
    library: Annotated[str, Meta(pattern=r"^\S+ \S+\Z")]
    precision: Precision
    ops: Ops
    profile: Profile
    compute_capabilities: tuple[Annotated[str, Meta(pattern=r"^\d{1,2}\.\d\Z")], ...]
    gpu: str | None = None
    driver: str | None = None
    hardware_compatible: bool = False
    version_compatible: bool = False

    @property
    def file_name(self) -> str:
        """The engine's file name in its bundle, which is different for every key."""
        digest = hashlib.sha256(json.dumps(self.to_plain(), sort_keys=True).encode()).hexdigest()[:12]
        return f"{self.graph}-{self.precision.value}-{self.ops.value}-{digest}.engine"

    def unfit(self, onnx: str, library: str, gpu: Gpu) -> list[str]:
        """Why the engine cannot run a graph on this machine, one line for each field that differs; empty where it can.

        `onnx` is the sha256 of the bundle's graph now, `library` the installed library with its version.
        """
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
    """ "10.13.2.6" → (10, 13, 2, 6); a part that is not a number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))


class EngineRecord(Checked, frozen=True):
    """An engine's entry in the manifest: its key, file, sha256, size in bytes, and build time in seconds."""

    key: EngineKey
    file: FileName
    sha256: Sha256
    size: Annotated[int, Meta(ge=0)]
    seconds: Annotated[float, Meta(ge=0)]
