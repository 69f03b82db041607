"""What the compiler makes of the kernels, for GPUs that are not here: their machine code is read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sigrl_deploy.kernels import svfr
from sigrl_deploy.kernels.compile import SHARED_LIMIT, Compiled, Variant
from sigrl_deploy.kernels.sass import Code, Loop
from tests.support.paths import ROOT


def compiled_by(triton: str | None, show: Callable[[str], None], *arguments: str) -> None:
    """By the installed Triton or by the one in a folder; prints what each kernel takes."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (triton, str(ROOT), environment.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "sigrl_deploy.kernels.compile", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    show(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("capability", sorted(SHARED_LIMIT))
def test_what_runs_untuned_compiles(capability: int, show: Callable[[str], None]) -> None:
    """Registers, shared memory, and loops that keep the tensor cores at work. Where nothing else compiles, this runs: tuning
    skips what does not. All that tuning tries takes minutes: `python -m sigrl_deploy.kernels.compile 90`.
    """
    compiled_by(None, show, "--untuned", str(capability))


@pytest.mark.skipif("SIGRL_TRITON" not in os.environ, reason="SIGRL_TRITON names no folder with another Triton")
def test_what_runs_untuned_compiles_for_hopper_with_the_triton_of_torch_2_11(show: Callable[[str], None]) -> None:
    compiled_by(os.environ["SIGRL_TRITON"], show, "--untuned", "90")


GOOD = Loop(instructions=250, warpgroup_products=8, pending=(3, 3))


@pytest.mark.parametrize(
    ("loops", "spilled", "shared_bytes", "fault"),
    [
        ((GOOD,), 0, 0, ""),
        ((GOOD,), 4, 0, "spills"),
        ((GOOD,), 0, SHARED_LIMIT[90] + 1, "more shared memory than there is"),
        ((), 0, 0, "no warpgroup product in a loop"),
        ((GOOD, replace(GOOD, warpgroup_products=0)), 0, 0, "no warpgroup product in a loop"),
        ((replace(GOOD, pending=(0, 0)),), 0, 0, "waits for every product"),
    ],
)
def test_what_is_wrong_with_a_kernel_is_said(loops: tuple[Loop, ...], spilled: int, shared_bytes: int, fault: str) -> None:
    how = svfr.launch(196, 512, torch.bfloat16, 1, (9, 0))
    variant = Variant("svfr stage 1", "P = 196, bf16", svfr.decouple_kernel, {}, how)
    assert Compiled(variant, 90, Code(200, spilled, loops), shared_bytes).fault == fault
