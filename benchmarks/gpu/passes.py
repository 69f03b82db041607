"""Whole passes, from pixels to scores: latency, pictures a second, memory, and the scores against eager in fp32.

torch              our engine's forward pass in one CUDA graph, pixels and scores on the GPU: its replay, until it is done
torch-from-host    the same engine as its users call it, pixels and scores in the host's memory
eager-as-written   the materialised model with GMC in every forward; `eager` with GMC's result kept
compile            `eager` under torch.compile, called as it is; `compile-graph` the same in a CUDA graph of its own
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench import drift_of
from benchmarks.contenders import Cell
from benchmarks.gpu.cases import REHEARSED
from benchmarks.gpu.run import Run
from benchmarks.gpu.timing import captured, latencies, wait
from benchmarks.records import timing
from sigrl_deploy.arrays import Pixels
from sigrl_deploy.config import Precision
from sigrl_deploy.engines.cuda_graphs import GpuVocabulary
from sigrl_deploy.engines.torch import TorchEngine
from sigrl_deploy.model import materialised
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

PASSES = 500
BATCHES = 40  # of several pictures, from the host
FILLING = 1  # of them that waits for a capture, and for the second batch too
SECONDS = 2.0  # of one cell, at most
COMPILES = 60.0  # seconds that torch.compile takes at most
RESERVED = 100.0  # seconds that rarer sizes leave for the tests behind them
BF16, FP16, FP32 = Precision.BF16, Precision.FP16, Precision.FP32
Forward = Callable[[Tensor], Tensor]
Record = dict[str, Any]
Measure = Callable[[Run, Cell], Record]


def passes(run: Run) -> None:
    """The sizes with targets: one picture, this project in every precision, and its peers in bf16."""
    counts = (REHEARSED[1],) if run.small else (81, 1006, 20, 256)
    for precision in (BF16, FP16, FP32):
        for labels in counts if run.small else (*counts, 7586):
            attempt(run, ours, "torch", precision, labels, 1)
    for labels in counts[:2]:
        attempt(run, from_host, "torch-from-host", BF16, labels, 1)
    for labels in counts:
        attempt(run, eager, "eager", BF16, labels, 1)
        attempt(run, as_written, "eager-as-written", BF16, labels, 1)
    for labels in counts[:2]:
        attempt(run, compiled, "compile", BF16, labels, 1)
    for batch in (2,) if run.small else (8, 64):
        for labels in counts:
            attempt(run, ours, "torch", BF16, labels, batch)


def more_passes(run: Run) -> None:
    """The rest of the table, the least important last."""
    if run.small:
        attempt(run, as_written, "eager-as-written", FP32, REHEARSED[1], 1)
        attempt(run, from_host, "torch-from-host", BF16, REHEARSED[1], 2)
        return
    rarer = partial(attempt, run, reserved=RESERVED)
    for labels in (20, 256):
        rarer(compiled, "compile", BF16, labels, 1)
    for labels in (81, 1006):
        rarer(eager, "eager", FP32, labels, 1)
        rarer(as_written, "eager-as-written", FP32, labels, 1)
    for batch, labels in ((8, 81), (64, 81), (8, 20), (64, 20), (8, 1006), (8, 256)):
        rarer(eager, "eager", BF16, labels, batch)
    for precision in (FP16, FP32):
        for batch, labels in ((8, 81), (64, 81), (8, 1006)):
            rarer(ours, "torch", precision, labels, batch)
    for batch, labels in ((8, 81), (64, 81)):
        rarer(from_host, "torch-from-host", BF16, labels, batch)
    rarer(ours, "torch", BF16, 7586, 8)
    rarer(eager, "eager", BF16, 7586, 1)
    rarer(as_written, "eager-as-written", BF16, 7586, 1)
    rarer(compiled, "compile", BF16, 7586, 1)


def attempt(run: Run, measure: Measure, name: str, precision: Precision, labels: int, batch: int, reserved: float = 0) -> None:
    """One cell's record, or one that says why it was not measured."""
    cell = Cell(name, precision.value, run.device, labels, batch)
    needs = reserved + (COMPILES if measure is compiled and not run.small else SECONDS + 2)
    record = run.attempt(" ".join(map(str, cell.to_dict().values())), lambda: measure(run, cell), needs)
    run.add("records", cell.to_dict() | {"status": run.reason()} if record is None else record)


def ours(run: Run, cell: Cell) -> Record:
    setup, precision = run.setup, Precision(cell.precision)
    engine, vocabulary = setup.engine(precision), setup.vocabulary(cell.labels)
    pixels, on_device = torch.from_numpy(setup.pixels(cell.batch)).to(run.device), tuned(run, engine, cell.batch, cell.labels)
    held = model_bytes(engine.model) + sum(x.nbytes for x in vars(on_device).values() if isinstance(x, Tensor)) + pixels.nbytes
    with Peak(run.device) as peak:
        call = captured(lambda: engine.forward(pixels, on_device), run.device)
        times = _timed(run, call)
    drift = _drift(run, cell, lambda picture: engine.score(picture, vocabulary), 12) if cell.batch == 1 else {}
    return _record(run, cell, times, peak.bytes + held, drift)


def from_host(run: Run, cell: Cell) -> Record:
    setup = run.setup
    engine, vocabulary = setup.engine(Precision(cell.precision)), setup.vocabulary(cell.labels)
    pixels = setup.pixels(cell.batch)
    with Peak(run.device) as peak:
        if cell.batch == 1:
            times = _timed(run, lambda: engine.score(pixels, vocabulary))
        else:
            times = between_batches(engine, pixels, vocabulary, FILLING + 2 if run.small else BATCHES)
    return _record(run, cell, times, peak.bytes + model_bytes(engine.model), {})


def between_batches(engine: TorchEngine, pixels: Pixels, vocabulary: Vocabulary, count: int) -> list[float]:
    """Milliseconds from one batch's scores to the next one's, where a batch is copied while the one before it runs."""
    times, begun = [], time.perf_counter()
    for _ in engine.score_batches(repeat(pixels, count), vocabulary):
        ended = time.perf_counter()
        times.append(1000 * (ended - begun))
        begun = ended
    return times[FILLING:-1]  # behind the last one nothing more travels


def eager(run: Run, cell: Cell) -> Record:
    """The materialised form with GMC's result kept."""
    model, inputs = _typed_inputs(run, cell)
    return _peer(run, cell, model, lambda pixels: materialised.forward(model, pixels, *inputs))


def as_written(run: Run, cell: Cell) -> Record:
    """The materialised form with GMC in every forward."""
    model, inputs = _typed_inputs(run, cell)
    return _peer(run, cell, model, lambda pixels: materialised.forward(model, pixels, inputs[0]))


def compiled(run: Run, cell: Cell) -> Record:
    """`eager` under torch.compile, for these sizes alone; then in a CUDA graph too, which needs no compiling."""
    precision = Precision(cell.precision)
    model, inputs = _typed_inputs(run, cell)
    torch._dynamo.reset()  # else it would compile for sizes that vary, after the second one
    backend = "eager" if run.small else "inductor"
    forward = torch.compile(lambda pixels: materialised.forward(model, pixels, *inputs), dynamic=False, backend=backend)
    record = _peer(run, cell, model, forward)
    in_graph = partial(_peer, model=model, forward=forward, in_graph=True)
    attempt(run, in_graph, "compile-graph", precision, cell.labels, cell.batch)
    return record


def _peer(run: Run, cell: Cell, model: SigRL, forward: Forward, in_graph: bool = False) -> Record:
    dtype = model.dtype
    pixels = run.setup.normalised(run.setup.pixels(cell.batch)).to(dtype)
    with Peak(run.device) as peak:
        call = captured(lambda: forward(pixels), run.device) if in_graph else lambda: forward(pixels)
        times = _timed(run, call)
    drift: dict[str, Any] = {}
    if cell.batch == 1 and not in_graph:
        drift = _drift(run, cell, lambda picture: forward(run.setup.normalised(picture).to(dtype)).float().cpu().numpy(), 1)
    return _record(run, cell, times, peak.bytes + model_bytes(model), drift)


def _typed_inputs(run: Run, cell: Cell) -> tuple[SigRL, tuple[Tensor, Tensor]]:
    """The eager model, T and G in the cell's precision."""
    model = run.setup.typed(Precision(cell.precision))
    dtype = model.dtype
    return model, (run.setup.labels(cell.labels).to(dtype), run.setup.graph(cell.labels).to(dtype))


def _timed(run: Run, call: Callable[[], object]) -> list[float]:
    return latencies(call, run.device, 1 if run.small else PASSES, SECONDS)


def _drift(run: Run, cell: Cell, score: Callable[[Any], Any], most: int) -> dict[str, Any]:
    """One by one, since eager forms run out of memory with several pictures and many labels."""
    count = max(1, min(most, 12000 // cell.labels)) if not run.small else 1
    exact = run.setup.exact(cell.labels, count)
    return {"drift": drift_of(exact, np.concatenate([score(picture[None]) for picture in run.setup.pictures[:count]]))}


def _record(run: Run, cell: Cell, times: list[float], peak: int, more: Record) -> Record:
    record = timing(run.setup.config, cell, [times], run.results["machine"], digits=4)
    return record | {"peak_bytes": peak, "status": "ok"} | more


def tuned(run: Run, engine: TorchEngine, batch: int, labels: int) -> GpuVocabulary:
    """A vocabulary on the GPU, the engine's kernels tuned for it as its own passes have them."""
    with engine.running():
        on_device = engine.on_device(run.setup.vocabulary(labels))
        engine.tune(batch, on_device)
    wait(run.device)  # that was another stream
    return on_device


def model_bytes(model: SigRL) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())


class Peak:
    """`bytes`: the most that torch had allocated on the GPU while this was open, above what it had before; 0 on a CPU."""

    def __init__(self, device: str) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> Peak:
        if self.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self._before
