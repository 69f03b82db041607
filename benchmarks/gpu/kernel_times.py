"""Times of every kernel and candidate on the GPU, beside the same in PyTorch, tiled, and with a tile's body compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import PRECISIONS, REHEARSED, TIMES, Kernel, decouple, decoupled, kernels, reconstruct, reconstructed
from benchmarks.gpu.compiling import usable
from benchmarks.gpu.run import Run
from benchmarks.gpu.timing import microseconds

ROTATION = 4  # sets of inputs
FIRST = 2  # of the sizes: those that every dtype is timed at
COMPILED = 45  # seconds that torch.compile takes for a body
BODIES = {"svfr.decouple": (decouple, decoupled), "svfr.reconstruct": (reconstruct, reconstructed)}


def kernel_times(run: Run) -> None:
    """Into `kernels` a record for every kernel, dtype and size, then those of plain PyTorch."""
    table = kernels(run.setup.config, run.setup.typed, run.device)
    sizes = (REHEARSED,) if run.small else TIMES
    for dtype, precision in PRECISIONS.items():
        for batch, labels in sizes if dtype is torch.bfloat16 else sizes[:FIRST]:
            wanted = (k for k in table if (k.labelled or labels == sizes[0][1]) and (k.pictured or batch == 1))
            for kernel in (k for k in wanted if dtype in k.dtypes):
                what = f"{kernel.name}, {precision.value}, {labels} labels, batch {batch}"
                run.attempt(what, partial(times, run, kernel, dtype, batch, labels))
    for kernel in (k for k in table if k.name in BODIES):
        for batch, labels in sizes[:FIRST]:
            tiled, body = BODIES[kernel.name]
            forms: dict[str, Callable[..., Tensor]] = {
                "tiled PyTorch": tiled, "tiled PyTorch, a tile's body compiled": partial(tiled, of_tile=compiled(run, body))
            }  # fmt: skip
            for form, call in forms.items():
                needs = 1 if form == "tiled PyTorch" or run.small else COMPILED
                what = f"{kernel.name}, {form}, {labels} labels"
                run.attempt(what, partial(plain, run, kernel, batch, labels, form, call), needs)


def compiled(run: Run, body: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Of one tile: all tiles in one graph are hundreds of bodies, which take longer to compile than they ever save."""
    torch._dynamo.reset()
    found: Callable[..., Tensor] = torch.compile(body, dynamic=False, backend="eager" if run.small else "inductor")
    return found


def times(run: Run, kernel: Kernel, dtype: torch.dtype, batch: int, labels: int) -> None:
    inputs = [kernel.inputs(labels, batch, dtype) for _ in range(1 if run.small else ROTATION)]
    found: dict[str, float] = {}
    hows = usable(run, kernel, dtype)
    for how in hows[:1] if run.small else hows:
        us = run.attempt(
            f"{kernel.name}, {how.name}, {PRECISIONS[dtype].value}, {labels} labels, batch {batch}",
            partial(microseconds, [partial(kernel.run, *values, how) for values in inputs], run.device),
        )
        if us is not None:
            found[how.name] = round(us, 2)
    if found:
        best = min(found, key=found.__getitem__)
        record(run, kernel, dtype, batch, labels, found[best], {"form": "kernel", "launch": best, "candidates": found})


def plain(run: Run, kernel: Kernel, batch: int, labels: int, form: str, call: Callable[..., Tensor]) -> None:
    inputs = kernel.inputs(labels, batch, torch.bfloat16)[:3]
    record(run, kernel, torch.bfloat16, batch, labels, microseconds([lambda: call(*inputs)], run.device), {"form": form})


def record(run: Run, kernel: Kernel, dtype: torch.dtype, batch: int, labels: int, us: float, more: dict[str, Any]) -> None:
    """With TFLOP/s of the matrix products, and times what they take at the measured rate of large ones."""
    precision, flop = PRECISIONS[dtype].value, kernel.flop(labels, batch)
    rates = run.results["machine"]["gemm_gflops"]
    floor = flop / rates.get(precision, rates["fp32"]) / 1e3  # µs
    run.add("kernels", {
        "kernel": kernel.name, "precision": precision, "batch": batch, "labels": labels if kernel.labelled else 0,
        "us": round(us, 2), "tflops": round(flop / us / 1e6, 2), "times_floor": round(us / floor, 2),
    } | more)  # fmt: skip
