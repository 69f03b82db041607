"""Building the CPU's kernel for tests: every instruction set emulated on AVX2, with sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SOURCES = sorted((ROOT / "sigrl_deploy/kernels/cpu/native").glob("*.cpp"))
OWN = ROOT / "tests/kernels/native"
# Calls in place of checks in line halve the time to compile.
SANITIZED = (
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "--param",
    "asan-instrumentation-with-call-threshold=0",
)
# Without optimisation SIMDe is ten times as slow. Buffers are filled with NaN, so that what was never written shows.
FLAGS = ("-std=c++17", "-O1", "-mavx2", "-mfma", "-fno-math-errno", "-w", "-pthread", "-DSIGRL_POISON", *SANITIZED)
EMULATED = ("-DSIGRL_EMULATED", "-include", str(OWN / "emulated.h"))


def require_tools() -> str:
    """The C++ compiler's name. Skips the test where it, SIMDe or AVX2 is missing."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++")
    probe = subprocess.run(
        [compiler, "-E", "-x", "c++", "-"], input="#include <simde/x86/avx512.h>", text=True, capture_output=True, check=False
    )
    if probe.returncode:
        pytest.skip("there is no SIMDe, which Debian's libsimde-dev brings")
    return compiler


def build_fuzz(folder: Path) -> None:
    """`fuzz`, of `tests/kernels/native/fuzz.cpp`, in a folder."""
    compiler = require_tools()

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}.o"
        _run(compiler, *FLAGS, *EMULATED, "-c", str(source), "-o", str(target))
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, [*SOURCES, OWN / "fuzz.cpp"]))
    _run(compiler, *FLAGS, *map(str, objects), "-o", str(folder / "fuzz"))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
