"""The same pictures without a service: `python -m benchmarks.serving.in_process BUNDLE SECONDS`.

Prints, as JSON, ms of one picture alone and pictures a second of a run over many, as `infer` does it.
"""

from __future__ import annotations

import itertools
import json
import sys
import time

import numpy as np

from benchmarks.workload import real_files
from sigrl_deploy import Recognizer


def alone_ms(recognizer: Recognizer, seconds: float) -> dict[str, float]:
    """p50 and p99 of one picture, from the bytes of its file to its tags."""
    vocabulary, times = recognizer.vocabulary(), list[float]()
    pictures = itertools.cycle([file.read_bytes() for file in real_files()])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        recognizer.recognize([next(pictures)], vocabulary)
        times.append(1000 * (time.perf_counter() - start))
    return {"p50": round(float(np.median(times)), 2), "p99": round(float(np.percentile(times, 99)), 2)}


def per_second(recognizer: Recognizer, seconds: float) -> float:
    """Pictures a second of `Recognizer.stream`, which `infer` writes out."""
    start = time.perf_counter()
    records = recognizer.stream(itertools.cycle(real_files()), recognizer.vocabulary())
    for count, _ in enumerate(records, start=1):
        if (took := time.perf_counter() - start) > seconds:
            return round(count / took, 2)
    raise AssertionError


def main() -> None:
    bundle, seconds = sys.argv[1], float(sys.argv[2])
    with Recognizer(bundle) as recognizer:
        per_second(recognizer, 1)  # the first pictures are slower
        print(json.dumps({"alone_ms": alone_ms(recognizer, seconds), "per_second": per_second(recognizer, seconds)}))


if __name__ == "__main__":
    main()
