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

from benchmarks.contenders import Cell, open_pass, saved_vocabulary
from benchmarks.workload import OURS, batch_of, bundle_of, load, real_pictures, vocabulary_file
from sigrl_deploy.arrays import FloatArray

OUT_OF_MEMORY = 71
TURNS = 7
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
    """Cold start, then passes until `runs` are done and `seconds` are over; memory; scores of real pictures."""
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
    if task["stages"] and cell.backend in ("onnxruntime", "torch"):
        result["stages_ms"] = stages(cell, folder, opened, pixels, float(np.median(times)))
    return result


def import_runtime(backend: str) -> None:
    if backend == "openvino":
        import openvino

        assert openvino
    elif backend in ("onnxruntime", "naive-onnx"):
        import onnxruntime

        assert onnxruntime
    else:
        import torch

        assert torch
    if backend in OURS:
        import sigrl_deploy.recognizer

        assert sigrl_deploy.recognizer


def timed(run: Callable[[], Any], runs: int, seconds: float) -> list[float]:
    """Milliseconds of each pass: at least `runs` passes, and more until `seconds` are over."""
    times: list[float] = []
    while len(times) < runs or sum(times) < 1000 * seconds:
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return times


def peak_bytes() -> int:
    """Largest resident set of this process since it began.

    `ru_maxrss` would not do: on Linux it survives exec, and so holds the size of the process that started this one.
    """
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def device_bytes(device: str) -> int:
    """What is in use of the GPU, by all runtimes: their allocators keep what they had at most."""
    if device == "cpu":
        return 0
    import torch

    free, whole = torch.cuda.mem_get_info()
    return whole - free


def scores_of(cell: Cell, folder: Path, run: Callable[[FloatArray], FloatArray], size: int) -> FloatArray:
    """Scores [n, C] of real pictures one by one: of several for what is ours, of one for its peers, whose passes are long."""
    count = pictures_compared(cell.labels, size) if cell.backend in OURS else 1
    return np.concatenate([run(picture[None]) for picture in real_pictures(size)[:count]])


def pictures_compared(labels: int, size: int) -> int:
    """All of them, but fewer where labels are many and a pass is long."""
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


def stages(cell: Cell, folder: Path, recognizer: Any, pixels: FloatArray, whole: float) -> dict[str, float]:
    """Medians of the stages of a batch: decoding and resizing a photograph, the tower, SVFR, match.

    Of ONNX Runtime the tower is the graph cut at SVFR, and SVFR what is left of `whole`.
    """
    import sigrl_deploy
    from sigrl_deploy.model import matching
    from sigrl_deploy.pictures.reading import read_image

    photo = Path(sigrl_deploy.__file__).parent / "data" / "photos" / "cat.jpg"
    picture = read_image(photo)
    vocabulary, manifest = saved_vocabulary(folder, cell.labels), recognizer.bundle.manifest
    found = {
        "decode": cell.batch * median_ms(lambda: read_image(photo).load()),
        "preprocess": cell.batch * median_ms(lambda: manifest.preprocess(picture)),
    }
    if cell.backend == "torch":
        found |= engine_stages(recognizer.engine, pixels, vocabulary)
    else:
        local, global_feature = recognizer.engine.encode(pixels[:1], vocabulary)
        rows = vocabulary.label_embedding
        found["match"] = cell.batch * median_ms(
            lambda: matching.score(manifest.arch, local[0], global_feature[0], rows, manifest.topk)
        )
        run = lambda: recognizer.score_pixels(pixels, vocabulary)  # noqa: E731
        found["tower"] = whole * share(tower_pass(cell, folder, pixels), run)
        found["svfr"] = whole - found["tower"] - found["match"]
    return {name: round(ms, 3 if cell.device == "cuda" else 2) for name, ms in found.items()}


def median_ms(run: Callable[[], Any]) -> float:
    run()
    return float(np.median(timed(run, 5, 0.5)))


def share(part: Callable[[], Any], whole: Callable[[], Any]) -> float:
    """What a part takes of the whole, measured in turn: a slow moment of the machine then falls on both."""
    part()
    return float(np.median([timed(part, 1, 0)[0] / timed(whole, 1, 0)[0] for _ in range(TURNS)]))


def engine_stages(engine: Any, pixels: FloatArray, vocabulary: Any) -> dict[str, float]:
    """Milliseconds of the PyTorch engine's own stages: on a GPU there alone, each as a CUDA graph."""
    import torch

    from benchmarks.gpu.timing import microseconds

    with engine.running():
        resident = engine.resident(vocabulary)
        if engine.device == "cuda":
            torch.cuda.synchronize()
        # The engine's stream is for its own graphs.
        with torch.cuda.stream(torch.cuda.Stream() if engine.device == "cuda" else None):
            parts = engine.stages(torch.from_numpy(pixels).to(engine.place), resident)
            return {name: microseconds([part], engine.device) / 1000 for name, part in parts.items()}


def tower_pass(cell: Cell, folder: Path, pixels: FloatArray) -> Callable[[], Any]:
    """The visual graph as far as SVFR's patches and the global feature, in ONNX Runtime."""
    import onnx
    import onnxruntime as ort

    from benchmarks.machine import cores
    from sigrl_deploy.config import Precision
    from sigrl_deploy.graphs.cutting import tower

    model = tower(onnx.load(bundle_of(folder, cell.precision) / "visual.onnx"))
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    provider = "CPUExecutionProvider" if cell.device == "cpu" else "CUDAExecutionProvider"
    session = ort.InferenceSession(model.SerializeToString(), options, providers=[provider])
    single = Precision(cell.precision).takes_one_picture
    return lambda: [session.run(None, {"pixels": part}) for part in (np.split(pixels, len(pixels)) if single else [pixels])]


if __name__ == "__main__":
    main()
