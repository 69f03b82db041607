"""What the GPU can do at most, measured: matrix products, copies, reads from L2, special functions, launches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.run import Run
from benchmarks.gpu.timing import captured, latencies, microseconds
from benchmarks.gpu.units import read_again, special_function
from benchmarks.machine import describe

CHAIN = 100  # tiny kernels in one graph


def ceilings(run: Run) -> None:
    """Into `machine` what floors are made of, into `ceilings` the rest."""
    found: dict[str, Any] = run.results.setdefault("ceilings", {})
    parts: dict[str, Callable[[Run], dict[str, Any]]] = {
        "clock": clock, "product of one stage": stage_product, "L2": l2, "special functions": functions, "launches": launches
    }  # fmt: skip
    for name, measure in parts.items():
        found |= run.attempt(name, partial(measure, run)) or {}


def machine(run: Run) -> None:
    run.results["machine"] = describe(run.device)


def clock(run: Run) -> dict[str, Any]:
    """Multiprocessors, and the largest clock of theirs, by the driver."""
    if run.small:
        return {}
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    return {
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count,
        "largest clock, MHz": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
    }


def stage_product(run: Run) -> dict[str, Any]:
    """The matrix product of one SVFR stage alone, as one large product in bf16."""
    rows, dim = (196 * 1006, 512) if not run.small else (25, 512)
    a, b = (torch.randn(n, dim, device=run.device).bfloat16() for n in (rows, dim))
    us = microseconds([lambda: a @ b.T], run.device)
    return {f"product {rows} x {dim} x {dim} in bf16, TFLOP/s": round(2 * rows * dim**2 / us / 1e6, 4)}


def l2(run: Run) -> dict[str, Any]:
    """16 MiB, which stay in L2, read by every multiprocessor."""
    size, programs, repeats = (1 << 22, 8 * _multiprocessors(), 2) if not run.small else (1 << 12, 2, 1)
    source, out = torch.zeros(size, device=run.device), torch.empty(programs * 1024, device=run.device)
    us = microseconds([lambda: read_again[(programs,)](source, out, size, repeats, 1024, num_warps=8)], run.device)
    return {"L2 reads, TB/s": round(programs * size * 4 * repeats / us / 1e6, 4)}


def functions(run: Run) -> dict[str, Any]:
    """Calls a second of the special-function units."""
    values, repeats, programs = (512, 4096, 8 * _multiprocessors() if not run.small else 0)
    if run.small:  # the interpreter knows no instructions
        return {}
    out = torch.empty(programs * values, device=run.device)
    found = {}
    for which in ("tanh", "exp2", "tanh of bf16 pairs"):
        call = partial(special_function[(programs,)], out, repeats, which, values, num_warps=4)
        found[f"{which}, 10¹² a second"] = round(programs * values * repeats / microseconds([call], run.device) / 1e6, 4)
    return found


def launches(run: Run) -> dict[str, Any]:
    """A graph of one tiny kernel from its launch until it is known to be done, and a tiny kernel in a long graph."""
    one = torch.zeros(1, device=run.device)
    times = latencies(captured(lambda: one.add_(1), run.device), run.device, 500, 1)
    return {
        "graph of one tiny kernel, launched and waited for, µs": round(1000 * float(np.median(times)), 2),
        "a tiny kernel among many in a graph, µs": round(microseconds([lambda: one.add_(1)] * CHAIN, run.device), 3),
    }


def _multiprocessors() -> int:
    return int(torch.cuda.get_device_properties(0).multi_processor_count)
