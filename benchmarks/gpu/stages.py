"""Where a pass's time goes: each stage as a CUDA graph of its own, in bf16, and their sum beside the whole pass."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.gpu.cases import REHEARSED
from benchmarks.gpu.passes import tuned
from benchmarks.gpu.run import Run
from benchmarks.gpu.timing import microseconds
from sigrl_deploy.config import Precision
from sigrl_deploy.engines.torch import TorchEngine

SIZES = ((1, 81), (1, 1006), (1, 20), (1, 256), (8, 81), (64, 81), (8, 1006))


def stages(run: Run) -> None:
    """Into `stages` a record for every part and size, in microseconds on the GPU. SVFR's own parts are among `kernels`."""
    engine = run.setup.engine(Precision.BF16)
    for batch, labels in (REHEARSED,) if run.small else SIZES:
        run.attempt(f"{labels} labels, batch {batch}", partial(measure, run, engine, batch, labels))
    run.attempt("pixels to the GPU", lambda: copies(run))


def measure(run: Run, engine: TorchEngine, batch: int, labels: int) -> None:
    pixels, on_device = torch.from_numpy(run.setup.pixels(batch)).to(run.device), tuned(run, engine, batch, labels)
    found = {name: microseconds([part], run.device) for name, part in engine.stages(pixels, on_device).items()}
    found["sum"] = sum(found.values())
    found["whole"] = microseconds([lambda: engine.forward(pixels, on_device)], run.device)
    for name, us in found.items():
        run.add("stages", {"stage": name, "precision": "bf16", "batch": batch, "labels": labels, "us": round(us, 2)})


def copies(run: Run) -> None:
    """Pictures in uint8 from pinned memory, in a graph of their own."""
    for batch in (1,) if run.small else (1, 64):
        pixels = torch.from_numpy(run.setup.pixels(batch))
        place = torch.empty_like(pixels, device=run.device)
        host = pixels.pin_memory() if run.device == "cuda" else pixels
        us = microseconds([partial(place.copy_, host, non_blocking=True)], run.device)
        run.add("stages", {"stage": "pixels to the GPU", "precision": "uint8", "batch": batch, "labels": 0, "us": round(us, 2)})
