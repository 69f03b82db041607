"""Sizes and speed of the pretrained CLIPs that docs/pretrained.md lists, into benchmarks/results/pretrained.json.

    python -m benchmarks.pretrained                  # the sizes, and keeps the times
    python -m benchmarks.pretrained --measure runs   # both: some ten minutes; 7 GB of files in runs/, which are used again
    python -m benchmarks.report                      # the table

No weights are downloaded: sizes come from open_clip's configs, and times from random weights of these sizes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.machine import identity
from benchmarks.pretrained_table import LISTED, REFERENCE, RESULT
from benchmarks.random_weights import Variant, save, tensors, vision_shapes
from benchmarks.tables import read
from benchmarks.workload import batch_of
from sigrl_deploy.checkpoints.open_clip_configs import ClipConfig, clip_config
from sigrl_deploy.config import Arch, ModelConfig, Precision
from sigrl_deploy.files import replacing

if TYPE_CHECKING:
    import onnxruntime as ort

    from sigrl_deploy.model.sigrl import SigRL

TIMED = ("ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336")  # larger ones would take too much memory beside these
ROUNDS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help="Measure the times too, with graphs in this folder.")
    args = parser.parse_args()
    results = {"sizes": {listed.name: sizes(listed.name) for listed in LISTED}}
    if args.measure:
        args.measure.mkdir(parents=True, exist_ok=True)
        results |= measured(args.measure)
    else:
        results |= {name: kept for name, kept in read(RESULT).items() if name != "sizes"}
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def sizes(name: str) -> dict[str, int]:
    """What a model's config says, without any weights."""
    import torch

    from sigrl_deploy.model.sigrl import SigRL

    clip = config_of(name)
    config = ModelConfig(Arch.CLIP, clip.embed_dim, Arch.CLIP.default_topk, clip.vision, clip.text, ()).checked()
    with torch.device("meta"):
        model = SigRL(config)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    return {"image_size": clip.vision.image_size, "patches": clip.vision.grid**2, "parameters": parameters}


def config_of(name: str) -> ClipConfig:
    found = clip_config(name)
    assert found is not None
    return found


def measured(folder: Path) -> dict[str, Any]:
    """Milliseconds of CPU time of one picture by config, on one thread, and the ratio to REFERENCE.

    CPU time, since other work on the machine takes less from a short pass than from a long one. All take turns in rounds.
    """
    sessions = {name: _session(name, folder) for name in TIMED}
    passes = {name: _pass(session, config_of(name).vision.image_size) for name, session in sessions.items()}
    rounds: dict[str, list[float]] = {name: [] for name in TIMED}
    for run in passes.values():
        run()  # the first pass sets up memory
    for _ in range(ROUNDS):
        for name, run in passes.items():
            start = time.process_time()
            run()
            rounds[name].append(1000 * (time.process_time() - start))
    times = {
        name: {
            "ratio": round(float(np.median(np.divide(own, rounds[REFERENCE]))), 3),
            "cpu_ms": [round(ms, 2) for ms in own],
        }
        for name, own in rounds.items()
    }
    machine = identity("cpu")
    shown = {key: machine[key] for key in ("cpu", "cores", "python", "date")}
    return {
        "times": times,
        "machine": shown | {key: machine["versions"][key] for key in ("onnxruntime", "torch", "open_clip_torch")},
    }


def _pass(session: ort.InferenceSession, size: int) -> Any:
    pixels = batch_of(1, size)
    return lambda: session.run(None, {"pixels": pixels})


def _session(name: str, folder: Path) -> ort.InferenceSession:
    """The picture graph of random weights, as `sigrl-deploy export onnx` writes it, on one thread."""
    from sigrl_deploy.engines.onnxruntime import open_session, providers_of
    from sigrl_deploy.export.onnx import export_visual

    graph = folder / f"{name}.onnx"
    if not graph.exists():
        with replacing(graph) as temporary:
            export_visual(_random_model(name, folder), temporary, Precision.FP32)
    return open_session(graph, providers_of("cpu"), threads=1)


def _random_model(name: str, folder: Path) -> SigRL:
    from sigrl_deploy.checkpoints.building import build_model
    from sigrl_deploy.checkpoints.layouts import load_checkpoint
    from sigrl_deploy.checkpoints.model_config import model_config

    clip = config_of(name)
    vision, text = clip.vit, clip.text
    variant = Variant(
        vision.layers, vision.width, vision.image_size, text.layers, text.width, vision.patch_size, embed=clip.embed_dim
    )
    path = folder / f"{name}.pth"
    save(path, tensors(vision_shapes(variant)))
    checkpoint = load_checkpoint(path)
    return build_model(checkpoint, model_config(checkpoint, Arch.CLIP, clip=clip))


if __name__ == "__main__":
    main()
