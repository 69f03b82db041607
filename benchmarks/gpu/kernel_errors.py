"""Every kernel, dtype and candidate against float64, its outputs poisoned before and its runs repeated."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.cases import ERRORS, PRECISIONS, REHEARSED, Kernel, kernels
from benchmarks.gpu.compiling import usable
from benchmarks.gpu.run import Run

REPEATS = 6
# Errors that are nothing, whatever plain PyTorch's is: half a rounding of the result; in fp32 what products of three TF32 keep.
FLOORS = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 1e-6}
MANY = 5000  # labels from which on one candidate does


def kernel_errors(run: Run) -> None:
    """Into `errors` a record for every kernel, dtype and size."""
    table = kernels(run.setup.config, run.setup.typed, run.device)
    for batch, labels in (REHEARSED,) if run.small else ERRORS:
        for kernel in table:
            for dtype in kernel.dtypes:
                if kernel.labelled or labels == 1 or run.small:
                    what = f"{kernel.name}, {PRECISIONS[dtype].value}, {labels} labels"
                    run.attempt(what, partial(errors, run, kernel, dtype, batch, labels))


def errors(run: Run, kernel: Kernel, dtype: torch.dtype, batch: int, labels: int) -> None:
    """Errors are norms over all elements, relative to the exact result's, as in tests/support/kernel_rule.py."""
    torch.manual_seed(labels)
    inputs = kernel.inputs(labels, batch, dtype)
    exact = kernel.plain(*(in_float64(value) for value in inputs))
    plain = distance(kernel.plain(*inputs), exact)
    record: dict[str, Any] = {
        "kernel": kernel.name, "precision": PRECISIONS[dtype].value, "batch": batch, "labels": labels, "plain": plain,
        "error": 0.0, "worst": "", "candidates": 0, "differ": [], "failed": {},
    }  # fmt: skip
    hows = usable(run, kernel, dtype)
    for how in hows[:1] if labels > MANY or run.small else hows:
        name = how.name
        found = run.attempt(f"{kernel.name}, {name}", partial(repeated, kernel, inputs, how, 2 if run.small else REPEATS))
        if found is None:
            record["failed"][name] = run.reason()
            continue
        got, same = found
        error = distance(got, exact) if got.isfinite().all() else math.inf
        record["candidates"] += 1
        record |= {"error": error, "worst": name} if error >= record["error"] else {}
        record["differ"] += [] if same else [name]
    limit = max(2 * plain, FLOORS[dtype])
    record["within twice plain"] = bool(record["candidates"] and record["error"] <= limit)
    run.add("errors", record | {key: float(f"{min(record[key], 1e9):.3g}") for key in ("plain", "error")})


def repeated(kernel: Kernel, inputs: tuple[Any, ...], how: Any, repeats: int) -> tuple[Tensor, bool]:
    """A result, and whether all were the same to the bit: a race shows as one that is not."""
    with poisoned():
        first, *others = (kernel.run(*inputs, how) for _ in range(repeats))
    return first, all(torch.equal(first, other) for other in others)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """PyTorch then fills all memory that it hands out unwritten with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def in_float64(value: Any) -> Any:
    if isinstance(value, torch.nn.Module):
        import copy

        return copy.deepcopy(value).double()
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def distance(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())
