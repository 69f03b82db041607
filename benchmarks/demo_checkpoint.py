"""Train the demo checkpoints on `scenes`, evaluate them, and write what they reach into the model card.

python -m benchmarks.demo_checkpoint RUNS                 # seeds 0, 1, 2, side by side; goes on where it was interrupted
python -m benchmarks.demo_checkpoint RUNS --seeds 1       # seed 0 alone
python -m benchmarks.demo_checkpoint RUNS --ship          # and put seed 0's SigRL model into the package

A CLIP is trained from captions (`--recipe contrastive`), then CLIP-FT, MKT and SigRL from that CLIP on the seen labels
(`--recipe zero-shot`). Unseen combinations of attributes are in no training picture, nor in any caption.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.model_card import RESULTS, write_card
from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.checkpoints.eager import load_eager
from sigrl_deploy.checkpoints.native import HEAD, read_record, write_trained
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.checkpoints.weights import read_weights
from sigrl_deploy.config import Precision
from sigrl_deploy.datasets.scenes import LABELS, Scenes
from sigrl_deploy.evaluation.metrics import evaluate_scores
from sigrl_deploy.evaluation.scoring import Model, score_pictures
from sigrl_deploy.files import replacing
from sigrl_deploy.training.data import KeptPictures

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "sigrl_deploy" / "data"
PICTURES = 8  # the first of the test split, none chosen
LABEL_FILE = DATA / "scenes-labels.txt"
SHIPPED = DATA / "scenes-sigrl.safetensors"
ENGINES = {"onnxruntime": ("fp32", "fp16", "int8", "int8x3", "int8-all"), "openvino": ("bf16",)}
COMMON = ["--precision", "bf16", "--workers", "1", "--keep-pictures", "--validate", "300"]
CLIP = ["--recipe", "contrastive", "--clip-config", str(DATA / "scenes-clip.json"), "--batch-size", "64", "--lr", "1.5e-3"]
HEAD_OPTIONS = ["--recipe", "zero-shot", "--batch-size", "32", "--augment", "none", "--lr", "5e-4"]
RUNS = {
    "clip-ft": ["--arch", "clip-ft"],
    "mkt": ["--arch", "mkt", "--topk", "4"],
    "sigrl": ["--arch", "sigrl", "--topk", "4"],
}
FIRST_SEED_ONLY = {"sigrl-normalised": ["--arch", "sigrl", "--topk", "4", "--loss-input", "normalised"]}


def train(out: Path, threads: int, steps: int, checkpoints: int, *options: str) -> None:
    """One `sigrl-deploy train`, or the rest of it where it was interrupted. Its messages go to a file beside `out`."""
    state = out / "state.pt"
    if state.exists() and torch.load(state, weights_only=True)["progress"]["step"] == steps:
        return
    length = ["--steps", str(steps), "--save-every", str(max(1, steps // checkpoints))]
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f"{out.name}.txt").open("a") as messages:
        resume = ["--resume"] if state.exists() else []
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        arguments = ["train", "scenes", *COMMON, *options, *length, "--out", str(out), *resume]
        command(*arguments, env=env, stdout=messages, stderr=subprocess.STDOUT)


def train_seed(folder: Path, seed: int, clip_steps: int, head_steps: int, threads: int) -> None:
    own = ["--seed", str(seed)]
    train(folder / "clip", threads, clip_steps, 10, *CLIP, *own)
    init = ["--init", str(folder / "clip" / "model.safetensors")]
    for name, options in runs_of(seed).items():
        train(folder / name, threads, head_steps, 4, *HEAD_OPTIONS, *options, *init, *own)


def runs_of(seed: int) -> dict[str, list[str]]:
    """The heads of one seed, by name, and their options."""
    return RUNS | (FIRST_SEED_ONLY if seed == 0 else {})


def measured(scores: FloatArray, targets: NDArray[np.int8]) -> dict[str, float]:
    metrics = evaluate_scores(scores, targets)
    return {"map": metrics.map, "f1_3": metrics.top_k[3].f1, "f1_5": metrics.top_k[5].f1}


def evaluate_seed(folder: Path, seed: int, pictures: int) -> list[dict[str, Any]]:
    """Every model of one seed on every label set of the test pictures, on one core."""
    torch.set_num_threads(1)
    test = KeptPictures(Scenes("test"))
    records = []
    for name in ("clip", *runs_of(seed)):
        scorer = load_eager(CheckpointOptions(folder / name / "model.safetensors"))
        model = Model(folder / name, scorer.description, scorer.arch, Precision.FP32, scorer.device, scorer)
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


def ship(folder: Path) -> None:
    """Put a SigRL model into the package, in fp16, without the scale of its loss."""
    path = folder / "sigrl" / "model.safetensors"
    record = read_record(path)
    assert record is not None
    tensors = {name: tensor.read().half() for name, tensor in read_weights(path).items() if not name.startswith(HEAD)}
    write_trained(SHIPPED, record, tensors)
    LABEL_FILE.write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    for i in range(PICTURES):
        Scenes("test").image(i).save(DATA / "scenes" / f"scene-{i}.jpg", quality=95, subsampling=0)
    print(f"{SHIPPED}: {SHIPPED.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clip-steps", type=int, default=5000)
    parser.add_argument("--head-steps", type=int, default=300)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--ship", action="store_true")
    args = parser.parse_args()
    records = baselines(args.pictures)
    folders = [args.runs.resolve() / f"seed{seed}" for seed in range(args.seeds)]
    # Models this small gain little from several threads, so seeds share the cores instead.
    threads = max(1, (os.cpu_count() or 1) // args.seeds)
    with ThreadPoolExecutor(args.seeds) as pool:
        runs = [pool.submit(train_seed, f, i, args.clip_steps, args.head_steps, threads) for i, f in enumerate(folders)]
        for run in runs:
            run.result()
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
        count = len(folders)
        for found in processes.map(evaluate_seed, folders, range(count), [args.pictures] * count):
            records += found
    shipped = SHIPPED if args.ship else folders[0] / "sigrl" / "model.safetensors"
    if args.ship:
        ship(folders[0])
    results = {
        "date": date.today().isoformat(),
        "pictures": args.pictures,
        "clip_steps": args.clip_steps,
        "head_steps": args.head_steps,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": version("torch")},
        "records": records,
        "engines": evaluate_engines(shipped, args.pictures),
    }
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_card(results)


if __name__ == "__main__":
    main()
