"""Measure one cell in this process: `python benchmarks/measure.py CELL.json`. The last line of its output is the result.

A process of its own gives every contender its own peak memory and cold start, and a contender that runs out of memory takes
nothing with it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from contenders import OURS, PEERS, Cell, open_pass, saved_vocabulary
from workload import BUNDLE, Array, batch_of, load, real_pictures, vocabulary_file

MEMORY_SHARE = 0.9  # of what is free: a contender that wants more gets an error, not the machine's out-of-memory killer


def main() -> None:
    task = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    cell, folder = Cell(**task["cell"]), Path(task["folder"])
    limit_memory()
    if task["reference"]:
        np.save(task["scores"], reference(folder, cell.labels))
        return
    print(json.dumps(measure(cell, folder, task)))


def limit_memory() -> None:
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    resource.setrlimit(resource.RLIMIT_DATA, (int(free * MEMORY_SHARE), -1))


def measure(cell: Cell, folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    """Cold start, then passes until `runs` are done and `seconds` are over; memory; scores of real pictures."""
    import_heavy(cell.backend)
    imported = time.time()
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
        "peak_bytes": peak_bytes(cell.device),
    }
    if task["scores"]:
        np.save(task["scores"], scores_of(cell, folder, run))
    if task["stages"] and cell.backend == "onnxruntime":
        result["stages_ms"] = stages(cell, folder, opened, pixels, float(np.median(times)))
    return result


def import_heavy(backend: str) -> None:
    if backend in OURS:
        import sigrl_deploy.recognizer

        assert sigrl_deploy.recognizer
    if backend in (*PEERS, "torch"):
        import torch

        assert torch


def timed(run: Callable[[], Any], runs: int, seconds: float) -> list[float]:
    """Milliseconds of each pass: at least `runs` passes, and more until `seconds` are over."""
    times: list[float] = []
    while len(times) < runs or sum(times) < 1000 * seconds:
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return times


def peak_bytes(device: str) -> int:
    """On a CPU the process's largest resident set, on a GPU what PyTorch held at most.

    `ru_maxrss` would not do: on Linux it survives exec, and so holds the size of the process that started this one.
    """
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_reserved()
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def scores_of(cell: Cell, folder: Path, run: Callable[[Array], Array]) -> Array:
    """Scores [n, C] of real pictures one by one: of several for what is ours, of one for its peers, whose passes are long."""
    pictures = real_pictures(_preprocess(folder))[: pictures_compared(cell.labels) if cell.backend in OURS else 1]
    return np.concatenate([run(picture[None]) for picture in pictures])


def pictures_compared(labels: int) -> int:
    """Fewer where labels are many and a pass is long."""
    return max(1, min(12, 12000 // labels))


def reference(folder: Path, labels: int) -> Array:
    """Scores [n, C] of real pictures by the eager model in fp32, tiled over labels: what drift is measured against."""
    import torch

    model = load(folder)
    saved = np.load(vocabulary_file(folder, labels))
    embedding, projection = (torch.from_numpy(saved[name]) for name in ("label_embedding", "graph_projection"))
    with torch.inference_mode():
        pictures = real_pictures(_preprocess(folder))[: pictures_compared(labels)]
        rows = [model(torch.from_numpy(picture[None]), embedding, projection) for picture in pictures]
    scores: Array = torch.cat(rows).numpy()
    return scores


def _preprocess(folder: Path) -> Any:
    from sigrl_deploy.bundle import Bundle

    return Bundle(folder / BUNDLE).manifest.preprocess


def stages(cell: Cell, folder: Path, recognizer: Any, pixels: Array, whole: float) -> dict[str, float]:
    """Medians of the stages of a batch: decoding and resizing a photograph, the tower (the graph cut at SVFR), SVFR, match."""
    import sigrl_deploy
    from sigrl_deploy import matching
    from sigrl_deploy.images import read_image

    photo = Path(sigrl_deploy.__file__).parent / "data" / "photos" / "cat.jpg"
    picture = read_image(photo)
    vocabulary, manifest = saved_vocabulary(folder, cell.labels), recognizer.bundle.manifest
    local, global_feature = recognizer.engine.encode(pixels[:1], vocabulary)
    parts: dict[str, Callable[[], Any]] = {
        "decode": lambda: read_image(photo).load(),
        "preprocess": lambda: manifest.preprocess(picture),
        "match": lambda: matching.score(manifest.arch, local[0], global_feature[0], vocabulary.label_embedding, manifest.topk),
        "tower": tower_pass(recognizer, cell.precision, pixels),
    }
    found = {}
    for name, run in parts.items():
        run()
        found[name] = float(np.median(timed(run, 5, 0.5)))
    for name in ("decode", "preprocess", "match"):
        found[name] *= cell.batch
    found["svfr"] = whole - found["tower"] - found["match"]
    return {name: round(ms, 2) for name, ms in found.items()}


def tower_pass(recognizer: Any, precision: str, pixels: Array) -> Callable[[], Any]:
    """The visual graph as far as SVFR's patches and the global feature, in ONNX Runtime."""
    import onnx
    import onnxruntime as ort
    from machine import cores

    from sigrl_deploy.config import Precision

    bundle = recognizer.bundle
    model = onnx.load(bundle.file(bundle.variant(Precision(precision)).visual))
    graph = model.graph
    (head,) = (node for node in graph.node if node.domain == "sigrl")
    patches = onnx.helper.make_empty_tensor_value_info(head.input[0])
    keep = [node for node in graph.node if node is not head and not set(node.input) & set(head.output)]
    outputs = [patches, *(output for output in graph.output if output.name == "global_feature")]
    inputs = [node for node in graph.input if node.name == "pixels"]
    for field, values in ((graph.node, keep), (graph.output, outputs), (graph.input, inputs)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    del model.functions[:]
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    single = precision == "int8-all"
    return lambda: [session.run(None, {"pixels": part}) for part in (np.split(pixels, len(pixels)) if single else [pixels])]


if __name__ == "__main__":
    main()
