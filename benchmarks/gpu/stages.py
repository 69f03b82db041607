"""Where a pass's time goes: its parts as graphs of their own, in bf16, and their sum beside the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from gpu.run import Run
from gpu.timing import microseconds
from torch import Tensor

from sigrl_deploy.config import Precision
from sigrl_deploy.engines.captured import Resident
from sigrl_deploy.engines.torch import TorchEngine
from sigrl_deploy.kernels import match, svfr
from sigrl_deploy.model import sigrl

SIZES = ((1, 81), (1, 1006), (1, 20), (1, 256), (64, 81), (8, 1006))
Parts = Iterator[tuple[str, Callable[[], object]]]


def stages(run: Run) -> None:
    """Into `stages` a record for every part and size, in microseconds on the GPU."""
    engine = run.setup.engine(Precision.BF16)
    for batch, labels in ((1, 2),) if run.small else SIZES:
        run.attempt(f"{labels} labels, batch {batch}", lambda b=batch, c=labels: measure(run, engine, b, c))  # type: ignore[misc]
    run.attempt("pixels to the GPU", lambda: copies(run))


def measure(run: Run, engine: TorchEngine, batch: int, labels: int) -> None:
    pixels = torch.from_numpy(run.setup.pixels(batch)).to(run.device)
    resident = engine.resident(run.setup.vocabulary(labels))
    whole = microseconds([lambda: engine.forward(pixels, resident)], run.device)
    found = {name: microseconds([call], run.device) for name, call in parts(engine, pixels, resident)}
    for name, us in {**found, "sum": sum(found.values()), "whole": whole}.items():
        run.add("stages", {"stage": name, "precision": "bf16", "batch": batch, "labels": labels, "us": round(us, 2)})


def parts(engine: TorchEngine, pixels: Tensor, resident: Resident) -> Parts:
    """What `TorchEngine.forward` runs, one after the other, each on what the one before gave."""
    model, how = engine.model, engine._launches
    own, t, projection = model.svfr, resident.label_embedding, resident.graph_projection
    assert own is not None
    assert projection is not None
    encode, between = fused("vit", "encode_image") or sigrl.encode_image, fused("between", "between") or sigrl.SVFR.between
    pixels = pixels.to(engine.dtype)
    x, g = encode(model.visual, pixels)
    yield "tower", lambda: encode(model.visual, pixels)
    first, second = (how.get(f"svfr.{name}") for name in ("decouple", "reconstruct"))
    s = svfr.decouple(x, t, own.decouple.weight, resident.count, first)
    yield "svfr, stage 1", lambda: svfr.decouple(x, t, own.decouple.weight, resident.count, first)
    v = between(own, s, t, projection).to(x.dtype)
    yield "svfr, between", lambda: between(own, s, t, projection).to(x.dtype)
    y = svfr.reconstruct(x, v, own.reconstruct.weight, resident.count, second)
    yield "svfr, stage 2", lambda: svfr.reconstruct(x, v, own.reconstruct.weight, resident.count, second)
    yield "match", lambda: match.match(y, g, t, model.config.topk, how=how.get("match"))


def fused(module: str, name: str) -> Any:
    """A kernel's function, None where there is none of that name."""
    found = f"sigrl_deploy.kernels.{module}"
    return getattr(import_module(found), name, None) if find_spec(found) else None


def copies(run: Run) -> None:
    """One picture in fp32 from pinned memory, in a graph of its own."""
    pixels = torch.from_numpy(run.setup.pixels(1))
    place = torch.empty_like(pixels, device=run.device)
    host = pixels.pin_memory() if run.device == "cuda" else pixels
    us = microseconds([lambda: place.copy_(host, non_blocking=True)], run.device)
    run.add("stages", {"stage": "pixels to the GPU", "precision": "fp32", "batch": 1, "labels": 0, "us": round(us, 2)})
