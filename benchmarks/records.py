"""One cell's record in a results file: latency, throughput, and how far it is from the least time."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.contenders import Cell
from benchmarks.machine import floor_ms
from benchmarks.workload import CLIP
from sigrl_deploy.config import ModelConfig, Precision


def timing(
    config: ModelConfig, cell: Cell, rounds: list[list[float]], machine: dict[str, Any], digits: int = 2
) -> dict[str, Any]:
    """A cell's record from its milliseconds by round, with `digits` decimals. The median is that of the rounds' medians."""
    times = [milliseconds for times in rounds for milliseconds in times]
    p50 = float(np.median([np.median(times) for times in rounds]))
    p90, p99 = (max(p50, float(value)) for value in np.percentile(times, (90, 99)))
    found = cell.to_dict() | {
        "runs": len(times),
        "p50_ms": round(p50, digits),
        "p90_ms": round(p90, digits),
        "p99_ms": round(p99, digits),
        "images_per_s": round(1000 * cell.batch / p50, 3),
    }
    if cell.backend == CLIP:  # the floor is SigRL's
        return found
    floor = floor_ms(config, cell.labels, cell.batch, Precision(cell.precision), machine)
    return found | {"floor_ms": round(floor, digits), "times_floor": round(p50 / floor, 2)}
