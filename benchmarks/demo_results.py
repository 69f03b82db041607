"""What the demo checkpoints reach: every model on every label set, what each part of SigRL adds, and the exported engines."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.ablations import PARTS, Ablated
from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.checkpoints.eager import load_eager
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import Precision
from sigrl_deploy.datasets.scenes import LABELS, Scenes
from sigrl_deploy.evaluation.metrics import evaluate_scores
from sigrl_deploy.evaluation.scoring import Model, score_pictures
from sigrl_deploy.training.data import KeptPictures

ROOT = Path(__file__).resolve().parent.parent
ENGINES = {"onnxruntime": ("fp32", "fp16", "int8", "int8x3", "int8-all"), "openvino": ("bf16",)}


def measured(scores: FloatArray, targets: NDArray[np.int8]) -> dict[str, float]:
    metrics = evaluate_scores(scores, targets)
    return {"map": metrics.map, "f1_3": metrics.top_k[3].f1, "f1_5": metrics.top_k[5].f1}


def evaluate_models(checkpoints: dict[str, Path], seed: int, pictures: int) -> list[dict[str, Any]]:
    """Checkpoints by name, and the one named "sigrl" without each of its parts, on every label set of the test pictures.

    On one core, since several seeds run side by side.
    """
    torch.set_num_threads(1)
    test = KeptPictures(Scenes("test"))
    scorers = {name: load_eager(CheckpointOptions(path)) for name, path in checkpoints.items()}
    scorers |= {f"sigrl without {part}": Ablated(**vars(scorers["sigrl"]), without=part) for part in PARTS}
    records = []
    for name, scorer in scorers.items():
        model = Model(Path(name), scorer.description, scorer.arch, Precision.FP32, scorer.device, scorer)
        for label_set, labels in test.label_sets.items():
            scored = score_pictures(test, range(pictures), labels, [model], 64)
            records.append({"seed": seed, "model": name, "label_set": label_set, **measured(scored.scores[0], scored.targets)})
    return records


def baselines(pictures: int) -> list[dict[str, Any]]:
    """Random scores, and the mean targets of the ten nearest of 1000 labelled pictures with every label, unseen ones too."""
    test, gallery = Scenes("test"), Scenes("val")
    known = np.stack([gallery.targets(i) for i in range(len(gallery))])
    targets = np.stack([test.targets(i) for i in range(pictures)])
    a, b = ([thumbnail(scenes, i) for i in range(count)] for scenes, count in ((test, pictures), (gallery, len(gallery))))
    near = np.stack(b)
    order = np.stack([np.argsort(((near - row) ** 2).sum(1), kind="stable")[:10] for row in a])
    scores = {
        "chance": np.random.default_rng(0).random(targets.shape, np.float32),
        "nearest": (known[order] == 1).mean(1, dtype=np.float32),
    }
    records = []
    for label_set, labels in test.label_sets.items():
        columns = [LABELS.index(label) for label in labels]
        for name, values in scores.items():
            result = measured(values[:, columns], targets[:, columns])
            records.append({"seed": 0, "model": name, "label_set": label_set, **result})
    return records


def thumbnail(scenes: Scenes, index: int) -> NDArray[np.float64]:
    return np.asarray(scenes.image(index).resize((24, 24)), np.float64).ravel() / 255


def evaluate_engines(checkpoint: Path, pictures: int) -> list[dict[str, Any]]:
    """A checkpoint's exports against itself, by the commands that a user has, each backend with the precisions of ENGINES."""
    records = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bundle, out = folder / "bundle", folder / "results.json"
        every = [word for names in ENGINES.values() for name in names for word in ("--precision", name)]
        command("export", "onnx", str(checkpoint), *every, "--out", str(bundle))
        for backend, names in ENGINES.items():
            precisions = [word for name in names for word in ("--precision", name)]
            models = [
                "--checkpoint",
                str(checkpoint),
                "--bundle",
                str(bundle),
                *precisions,
                "--backend",
                backend,
                "--device",
                "cpu",
            ]
            command(
                "evaluate", "scenes", *models, "--device", "cpu", "--limit", str(pictures), "--out", str(out), "--overwrite"
            )
            records += engine_records(json.loads(out.read_text(encoding="utf-8")), backend, names)
    return records


def engine_records(results: dict[str, Any], backend: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """What `evaluate --out` says of a checkpoint and then its engines, without the checkpoint."""
    return [
        {
            "backend": backend,
            "engine": name,
            "label_set": found["name"],
            "map": result["map"],
            "difference": result["difference"],
        }
        for found in results["label_sets"]
        for name, result in zip(names, found["results"][1:], strict=True)
    ]


def command(*arguments: str, **how: Any) -> None:
    """`sigrl-deploy` with these arguments, in a process of its own. Raises CalledProcessError where it fails."""
    print("$ sigrl-deploy", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "sigrl_deploy", *arguments], check=True, cwd=ROOT, **how)
