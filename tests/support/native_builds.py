"""Building the CPU's kernel for tests, with sanitizers: x86's instruction sets emulated on AVX2, ARM's, and this CPU's own."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SOURCES = sorted((ROOT / "sigrl_deploy/kernels/cpu/native").glob("*.cpp"))
OWN = ROOT / "tests/kernels/native"
SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Without optimisation SIMDe is ten times as slow. Buffers are filled with NaN, so that what was never written shows.
FLAGS = ("-std=c++17", "-O1", "-fno-math-errno", "-w", "-pthread", "-DSIGRL_POISON")
# Calls in place of checks in line halve the time to compile SIMDe.
CALLS = ("--param", "asan-instrumentation-with-call-threshold=0")
EMULATED = (*SANITIZED, "-mavx2", "-mfma", *CALLS, "-DSIGRL_EMULATED", "-include", str(OWN / "emulated.h"))
ARM_LIBRARIES = "/usr/aarch64-linux-gnu"  # which the compiler brings


def require_compiler() -> str:
    """The C++ compiler's name. Skips the test where there is none."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    return compiler


def require_tools() -> str:
    """The same. Skips the test where SIMDe or AVX2 is missing, too."""
    compiler, cpu = require_compiler(), Path("/proc/cpuinfo")
    if platform.machine() != "x86_64" or not cpu.exists() or "avx2" not in cpu.read_text(encoding="utf-8"):
        pytest.skip("this CPU has no AVX2")
    probe = subprocess.run(
        [compiler, "-E", "-x", "c++", "-"], input="#include <simde/x86/avx512.h>", text=True, capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip("there is no SIMDe, which Debian's libsimde-dev brings")
    return compiler


def build_fuzz(folder: Path) -> None:
    """`fuzz`, of `tests/kernels/native/fuzz.cpp`, in a folder."""
    _build(folder, require_tools(), EMULATED)


def build_race_check(folder: Path) -> None:
    """The same for this CPU, with a check of every access to memory that threads share, instead of the other sanitizers."""
    _build(folder, require_compiler(), ("-fsanitize=thread",))


def require_arm_tools() -> tuple[str, str]:
    """A C++ compiler for ARM and an emulator of its CPUs. Skips the test where one is missing."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64-static")
    if compiler is None or emulator is None:
        pytest.skip("there is no compiler or emulator for ARM, which Debian's g++-aarch64-linux-gnu and qemu-user-static bring")
    return compiler, emulator


def build_arm_fuzz(folder: Path) -> None:
    """The same for ARM."""
    _build(folder, require_arm_tools()[0], SANITIZED)


def build_optimised_arm_fuzz(folder: Path) -> None:
    """The same as the package is built, without sanitizers."""
    _build(folder, require_arm_tools()[0], ("-O3",))


def run_on_arm(program: Path, cpu: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program for ARM in an emulator, which ends it at an instruction that the CPU lacks.

    Skips the test where the emulator does not know the CPU.
    """
    _, emulator = require_arm_tools()
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # which needs what the emulator lacks
    command = [emulator, "-cpu", cpu, "-L", ARM_LIBRARIES, str(program), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "unable to find CPU model" in done.stderr:
        pytest.skip(f"this emulator has no {cpu}")
    return done


def _build(folder: Path, compiler: str, flags: tuple[str, ...]) -> None:
    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        _run(compiler, *FLAGS, *flags, "-c", str(source), "-o", str(target))
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*SOURCES, OWN / "fuzz.cpp"]))
    _run(compiler, *FLAGS, *flags, *map(str, objects), "-o", str(folder / "fuzz"))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
