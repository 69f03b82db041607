"""Clocks: latency as a caller sees it, and time on the GPU alone. On a CPU both are the host's clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

Call = Callable[[], object]
IN_A_GRAPH = 0.008  # seconds of calls in one graph
REPLAYS = 5


def captured(call: Call, device: str) -> Call:
    """Capture a call as a CUDA graph, and return its replay. On a CPU return the call itself."""
    if device == "cpu":
        return call
    call()
    call()  # the first compiles, the second has all workspaces
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        kept = call()

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def latencies(call: Call, device: str, passes: int, seconds: float, least: int = 3) -> list[float]:
    """Milliseconds of each pass by the host's clock, from its call until the GPU is done.

    `passes` of them, fewer where `seconds` are over, but `least` all the same.
    """
    for _ in range(2 if device == "cuda" else 0):
        call()
    wait(device)
    times: list[float] = []
    while len(times) < passes and (len(times) < least or sum(times) < 1000 * seconds):
        begun = time.perf_counter()
        call()
        wait(device)
        times.append(1000 * (time.perf_counter() - begun))
    return times


def microseconds(calls: Sequence[Call], device: str) -> float:
    """Median time of one of these calls on the GPU, in turn and many in one CUDA graph, so that no launch is in it."""
    if device == "cpu":
        return 1000 * latencies(calls[0], device, 1, 0, least=1)[0]
    for call in calls:
        call()
    once = _elapsed(calls[0])
    count = max(len(calls), min(100, int(IN_A_GRAPH / max(once, 1e-6))))

    def in_turn() -> object:
        for i in range(count):
            last = calls[i % len(calls)]()
        return last

    replay = captured(in_turn, device)
    replay()
    return float(np.median([_elapsed(replay) for _ in range(REPLAYS)])) * 1e6 / count


def _elapsed(call: Call) -> float:
    """Seconds between two events of the GPU around a call."""
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    call()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1000
