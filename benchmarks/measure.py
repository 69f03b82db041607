"""Measure one cell in this process: `python -m benchmarks.measure TASK.json`. The last line of its output is the result.

A process of its own gives every contender its own peak memory and cold start, and a contender that runs out of memory takes
nothing with it: the exit status is then OUT_OF_MEMORY.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders import Cell, open_pass
from benchmarks.stages import STAGES, stages, timed
from benchmarks.workload import CLIP, FUNCTION, IN_BUNDLES, OURS, batch_of, load, real_pictures, vocabulary_file
from sigrl_deploy.arrays import FloatArray

OUT_OF_MEMORY = 71
MEMORY_SHARE = 0.9  # of what is free: a contender that wants more gets an error, not the machine's out-of-memory killer
# numpy, PyTorch on CPU and GPU, ONNX Runtime, OpenVINO, and this project's own GPU engine.
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|failed to allocate|bad_alloc|bad allocation|no room for|one picture needs"
)


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    cell, folder = Cell(**task["cell"]), Path(task["folder"])
    if cell.device == "cpu":  # on a GPU's machine the host's memory is not what runs out, and may still grow
        limit_memory()
    try:
        if task["reference"]:
            np.save(task["scores"], reference(folder, cell, task["image_size"]))
        else:
            print(json.dumps(measure(cell, folder, task)))
    except Exception as error:  # each runtime has its own
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error).lower()):
            raise SystemExit(OUT_OF_MEMORY) from None
        raise


def limit_memory() -> None:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_DATA, (int(free * MEMORY_SHARE), -1))


def measure(cell: Cell, folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Measure cold start, then at least `runs` passes for at least `seconds`, memory, and scores of real pictures."""
    import_runtime(cell.backend)
    imported, used = time.time(), device_bytes(cell.device)
    run, opened = open_pass(cell, folder)
    ready = time.time()
    pixels = batch_of(cell.batch, task["image_size"])
    run(pixels)
    first = time.time()
    times = timed(lambda: run(pixels), task["runs"], task["seconds"])
    result: dict[str, Any] = {
        "times": times,
        "cold_start_ms": {
            "start_and_import": round(1000 * (imported - task["started"])),
            "open": round(1000 * (ready - imported)),
            "first_picture": round(1000 * (first - ready)),
        },
        "peak_bytes": peak_bytes() if cell.device == "cpu" else device_bytes(cell.device) - used,
    }
    if task["scores"]:
        np.save(task["scores"], scores_of(cell, folder, run, task["image_size"]))
    if task["stages"] and cell.backend in ("onnxruntime", FUNCTION, "torch"):
        result[STAGES] = stages(cell, folder, opened, pixels)
    return result


def import_runtime(backend: str) -> None:
    if backend == "openvino":
        import openvino

        assert openvino
    elif backend in ("onnxruntime", "naive-onnx", FUNCTION, CLIP):
        import onnxruntime

        assert onnxruntime
    else:
        import torch

        assert torch
    if backend in IN_BUNDLES:
        import sigrl_deploy.recognizer

        assert sigrl_deploy.recognizer


def peak_bytes() -> int:
    """Largest resident set of this process since it began.

    `ru_maxrss` would not do: on Linux it survives exec, and so holds the size of the process that started this one.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def device_bytes(device: str) -> int:
    """GPU memory in use by all runtimes. Their allocators keep their peak."""
    if device == "cpu":
        return 0
    import torch

    free, whole = torch.cuda.mem_get_info()
    return whole - free


def scores_of(cell: Cell, folder: Path, run: Callable[[FloatArray], FloatArray], size: int) -> FloatArray:
    """Scores [n, C] of real pictures, one by one: of several for this project, of one for its peers, whose passes are long."""
    count = pictures_compared(cell.labels, size) if cell.backend in OURS else 1
    return np.concatenate([run(picture[None]) for picture in real_pictures(size)[:count]])


def pictures_compared(labels: int, size: int) -> int:
    """How many pictures are compared: fewer with many labels, where a pass is long."""
    return max(1, min(len(real_pictures(size)), 12000 // labels))


def reference(folder: Path, cell: Cell, size: int) -> FloatArray:
    """Scores [n, C] of real pictures by the eager model in fp32, tiled over labels: what drift is measured against."""
    import torch

    model = load(folder).to(cell.device)
    saved = np.load(vocabulary_file(folder, cell.labels))
    inputs = [torch.from_numpy(saved[name]).to(cell.device) for name in ("label_embedding", "graph_projection")]
    with torch.inference_mode():
        pictures = real_pictures(size)[: pictures_compared(cell.labels, size)]
        rows = [model(torch.from_numpy(picture[None]).to(cell.device), *inputs) for picture in pictures]
    scores: FloatArray = torch.cat(rows).cpu().numpy()
    return scores


if __name__ == "__main__":
    main()
