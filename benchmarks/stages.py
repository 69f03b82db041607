"""Where a pass's time goes: each stage run alone, on prepared inputs. None is computed as the rest of another time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.contenders import Cell, saved_vocabulary
from benchmarks.workload import bundle_of
from sigrl_deploy.arrays import FloatArray

if TYPE_CHECKING:
    import onnx

    from sigrl_deploy.vocabulary.vocabulary import Vocabulary

STAGES = "stages_alone_ms"  # the key in a record. Results before it have `stages_ms`, whose SVFR is a difference of two times
Stage = Callable[[], Any]


def stages(cell: Cell, folder: Path, recognizer: Any, pixels: FloatArray) -> dict[str, float]:
    """Median milliseconds of the stages of a batch: decoding and resizing photographs, the tower, SVFR, matching.

    Of ONNX Runtime on a GPU only the first two: there the tower runs on a stream of its own and cannot be timed by itself.
    """
    import sigrl_deploy
    from sigrl_deploy.pictures.reading import read_image

    photo = Path(sigrl_deploy.__file__).parent / "data" / "photos" / "cat.jpg"
    picture, preprocess = read_image(photo), recognizer.bundle.manifest.preprocess
    found = {
        "decode": cell.batch * median_ms(lambda: read_image(photo).load()),
        "preprocess": cell.batch * median_ms(lambda: preprocess(picture)),
    }
    vocabulary = saved_vocabulary(folder, cell.labels)
    if cell.backend == "torch":
        found |= engine_stages(recognizer.engine, pixels, vocabulary)
    elif cell.device == "cpu":
        path = bundle_of(folder, cell.precision) / "visual.onnx"
        parts = cpu_stages(path, recognizer, pixels, vocabulary)
        found |= {name: median_ms(part) for name, part in parts.items()}
    return {name: round(ms, 3 if cell.device == "cuda" else 2) for name, ms in found.items()}


def timed(run: Stage, runs: int, seconds: float) -> list[float]:
    """Milliseconds of each pass: at least `runs` passes, and more until `seconds` are over."""
    times: list[float] = []
    while len(times) < runs or sum(times) < 1000 * seconds:
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return times


def median_ms(run: Stage) -> float:
    run()
    return float(np.median(timed(run, 5, 0.5)))


def engine_stages(engine: Any, pixels: FloatArray, vocabulary: Vocabulary) -> dict[str, float]:
    """Milliseconds of the PyTorch engine's stages; on a GPU each as a CUDA graph, without launches."""
    import torch

    from benchmarks.gpu.timing import microseconds

    with engine.running():
        on_device = engine.on_device(vocabulary)
        if engine.device == "cpu":
            parts = engine.stages(torch.from_numpy(pixels), on_device)
            return {name: median_ms(part) for name, part in parts.items()}
        torch.cuda.synchronize()
        with torch.cuda.stream(torch.cuda.Stream()):  # the engine's own stream is for its own graphs
            parts = engine.stages(torch.from_numpy(pixels).to(engine.place), on_device)
            return {name: microseconds([part], engine.device) / 1000 for name, part in parts.items()}


def cpu_stages(path: Path, recognizer: Any, pixels: FloatArray, vocabulary: Vocabulary) -> dict[str, Stage]:
    """ONNX Runtime's tower, SVFR in the native kernel or as the graph's function, whichever the engine runs, and matching."""
    from sigrl_deploy.engines.onnxruntime_cpu import OnnxRuntimeCpuEngine

    engine = recognizer.engine
    native = engine.stages(pixels, vocabulary) if isinstance(engine, OnnxRuntimeCpuEngine) else None
    return native or onnx_stages(path, recognizer, pixels, vocabulary)


def onnx_stages(path: Path, recognizer: Any, pixels: FloatArray, vocabulary: Vocabulary) -> dict[str, Stage]:
    """The visual graph in two halves, cut where SVFR gets its patches, and matching as the engine does it.

    pixels [B, 3, H, W]. The tower gives the patches and the global feature, SVFR the local features [B, P, D].
    """
    import onnx

    from sigrl_deploy.engines.onnxruntime import open_session, providers_of
    from sigrl_deploy.graphs.cutting import GLOBAL, PATCHES, tower
    from sigrl_deploy.model import matching

    manifest, model = recognizer.bundle.manifest, onnx.load(path)
    front, back = (
        open_session(path, providers_of("cpu"), half.SerializeToString(), recognizer.threads, spins=True)
        for half in (tower(model), svfr(model))
    )
    batches = recognizer.engine.parts(pixels)
    made = [dict(zip((PATCHES, GLOBAL), front.run([PATCHES, GLOBAL], {"pixels": batch}), strict=True)) for batch in batches]
    rows = {"label_embedding": vocabulary.label_embedding, "graph_projection": vocabulary.graph_projection}
    local = np.concatenate([back.run(None, rows | {PATCHES: one[PATCHES]})[0] for one in made])
    features = list(zip(local, np.concatenate([one[GLOBAL] for one in made]), strict=True))

    def match() -> list[FloatArray]:
        return [matching.score(manifest.arch, x, g, vocabulary.label_embedding, manifest.topk) for x, g in features]

    return {
        "tower": lambda: [front.run(None, {"pixels": batch}) for batch in batches],
        "svfr": lambda: [back.run(None, rows | {PATCHES: one[PATCHES]}) for one in made],
        "match": match,
    }


def svfr(model: onnx.ModelProto) -> onnx.ModelProto:
    """What `tower` leaves of a visual graph: `patches` X [B, P, D] in the file's dtype, T and G Wbᵀ → `local_feature`."""
    import onnx

    from sigrl_deploy.graphs.cutting import PATCHES, svfr_node

    graph, node = model.graph, svfr_node(model.graph)
    patches, kept, wanted = node.input[0], [], {"local_feature"}
    for other in reversed(graph.node):  # producers come before consumers
        if wanted & set(other.output) - {patches}:
            kept.append(other)
            wanted.update(other.input)
    dtype = next(tensor.data_type for tensor in graph.initializer if tensor.name == node.input[4])  # Wa has the patches' own
    half = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [PATCHES], [patches]), *kept[::-1]],
        graph.name,
        [
            onnx.helper.make_tensor_value_info(PATCHES, dtype, ["batch", "patches", "dim"]),
            *(value for value in graph.input if value.name in wanted),
        ],
        [value for value in graph.output if value.name == "local_feature"],
        [tensor for tensor in graph.initializer if tensor.name in wanted],
    )
    return onnx.helper.make_model(
        half, opset_imports=model.opset_import, functions=model.functions, ir_version=model.ir_version
    )
