"""The native library: where it is, and which of its instruction sets runs here."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from importlib.util import find_spec

from sigrl_deploy.errors import UsageError

VARIABLE = "SIGRL_DEPLOY_CPU_KERNEL"  # names an instruction set, or `off`
OFF = "off"
_INTERFACE = 1  # as in native/api.cpp
_MODULE = "sigrl_deploy.kernels.cpu.native_library"
_REBUILD = "install the package again where there is a C++ compiler"


class InstructionSet(str, Enum):
    """What the kernel can be run with, on x86-64 and on ARM, of each the best last.

    All but AVX2 multiply eight bits without overflow. The order is that of `InstructionSet` in native/kernels.h.
    """

    AVX2 = "avx2"
    AVX_VNNI = "avx-vnni"
    AVX512 = "avx512"
    AMX = "amx"
    NEON = "neon"
    I8MM = "i8mm"

    @property
    def full_name(self) -> str:
        """Its name in a sentence."""
        return {"avx512": "AVX-512 VNNI"}.get(self.value, self.value.upper())


# Has run with this project's own stand-in for the instructions only, so that nobody gets it who does not ask.
ON_REQUEST = (InstructionSet.AMX,)


@dataclass(frozen=True)
class Found:
    """Which instruction set SVFR's kernel runs with, or None where it does not run, and why."""

    chosen: InstructionSet | None
    reason: str


class Library:
    """A shared library made of the files in `native/`. Raises OSError where it cannot be loaded."""

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL(path)
        array, size = ctypes.c_void_p, ctypes.c_int
        try:
            interface = _function(library, "sigrl_interface", size)()
        except AttributeError:
            interface = 0
        if interface != _INTERFACE:
            raise OSError(f"{path} is of another version of sigrl-deploy; {_REBUILD}")
        self._has = _function(library, "sigrl_has", size, size)
        self._has_bf16 = _function(library, "sigrl_has_bf16", size, size)
        self._largest_weight = _function(library, "sigrl_largest_weight", size, size)
        self.svfr_open = _function(library, "sigrl_svfr_open", ctypes.c_void_p, *[array] * 3, *[size] * 5)
        self.svfr_close = _function(library, "sigrl_svfr_close", None, ctypes.c_void_p)
        self.svfr_run = _function(
            library, "sigrl_svfr_run", size, ctypes.c_void_p, array, size, size, size, array, array, size, array
        )

    @cached_property
    def instruction_sets(self) -> tuple[InstructionSet, ...]:
        """Those that the CPU and the library have, the best last."""
        return tuple(each for each in InstructionSet if self._has(number(each)))

    def has_bf16(self, chosen: InstructionSet) -> bool:
        """Whether an instruction set of `instruction_sets` has products in bf16 here."""
        return bool(self._has_bf16(number(chosen)))

    def largest_weight(self, chosen: InstructionSet) -> int:
        """The largest weight in 8 bits that an instruction set of `instruction_sets` multiplies without overflow."""
        return int(self._largest_weight(number(chosen)))


def number(chosen: InstructionSet) -> int:
    """An instruction set as the library knows it."""
    return list(InstructionSet).index(chosen)


def _function(library: ctypes.CDLL, name: str, result: type | None, *arguments: type) -> ctypes._NamedFuncPointer:
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


_opened: list[Library] = []


def is_built() -> bool:
    """Whether the package was installed where it could be built."""
    return find_spec(_MODULE) is not None


def installed_library() -> Library:
    """The library that was built with the package. Raises OSError where there is none, or where it cannot be loaded."""
    if not _opened:
        spec = find_spec(_MODULE)
        if spec is None or spec.origin is None:
            raise OSError(f"it was not built; {_REBUILD}")
        _opened.append(Library(spec.origin))
    return _opened[0]


def find() -> Found:
    """The best instruction set that runs here, without those ON_REQUEST, or the one that $SIGRL_DEPLOY_CPU_KERNEL names.

    Raises UsageError where that names none that runs here.
    """
    asked = os.environ.get(VARIABLE, "")
    if asked == OFF:
        return Found(None, f"{VARIABLE} is {OFF}")
    try:
        here = installed_library().instruction_sets
    except OSError as error:
        here, reason = (), str(error)
    else:
        reason = (
            "it needs AVX2, or on ARM the dot product of Armv8.2, which this CPU, or the compiler that built it, does not have"
        )
    if asked:
        if asked not in [each.value for each in here]:
            expected = ", ".join([*(each.value for each in here), OFF])
            missing = "" if here else f" ({reason})"
            raise UsageError(f"the environment variable {VARIABLE} is {asked!r}, expected one of {expected}{missing}")
        return Found(InstructionSet(asked), f"{VARIABLE} asks for it")
    if not here:
        return Found(None, reason)
    chosen = [each for each in here if each not in ON_REQUEST][-1]
    others = ", ".join(each.full_name for each in here if each is not chosen)
    return Found(chosen, f"this CPU also has {others}" if others else "the best that this CPU has")
