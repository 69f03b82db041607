"""Train the demo checkpoints on `scenes`, evaluate them, and write what they reach into the model card.

python -m benchmarks.demo_checkpoint RUNS                 # goes on where it was interrupted
python -m benchmarks.demo_checkpoint RUNS --seeds 1       # seed 0 alone
python -m benchmarks.demo_checkpoint RUNS --clip FILE     # from that CLIP, such as the kept one
python -m benchmarks.demo_checkpoint RUNS --ship          # and put seed 0's SigRL model into the package

A CLIP is trained from captions (`--recipe contrastive`), then from that CLIP, for each seed, CLIP-FT, MKT and SigRL on the seen
labels (`--recipe zero-shot`). Unseen combinations of attributes are in no training picture, nor in any caption.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from open_clip.tokenizer import SimpleTokenizer

from benchmarks.demo_results import baselines, command, evaluate_engines, evaluate_models
from benchmarks.head_statistics import head_statistics
from benchmarks.model_card import RESULTS, write_card
from sigrl_deploy.checkpoints.native import HEAD, read_record, write_trained
from sigrl_deploy.checkpoints.weights import read_weights
from sigrl_deploy.datasets.scenes import LABELS, Scenes
from sigrl_deploy.files import replacing
from sigrl_deploy.training.contrastive import PROMPTS
from sigrl_deploy.training.recipes import RecipeName, TrainOptions

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "sigrl_deploy" / "data"
KEPT_CLIP = ROOT / "benchmarks" / "checkpoints" / "scenes-clip.safetensors"  # what the heads start from
PICTURES = 8  # the first of the test split, none chosen
LABEL_FILE = DATA / "scenes-labels.txt"
SHIPPED = DATA / "scenes-sigrl.safetensors"
COMMON = ["--precision", "bf16", "--keep-pictures", "--validate", "300"]
CLIP = ["--recipe", "contrastive", "--clip-config", str(DATA / "scenes-clip.json"), "--batch-size", "32", "--lr", "1.2e-3"]
CLIP_STEPS = 15_000
PATIENCE = 5
HEADS = ["--recipe", "zero-shot", "--batch-size", "32", "--augment", "none", "--lr", "1e-3"]
HEADS += ["--save-every", "250", "--patience", str(PATIENCE)]
HEAD_STEPS = 3_000  # at most
RUNS = {
    "clip-ft": ["--arch", "clip-ft"],
    "mkt": ["--arch", "mkt", "--topk", "4"],
    "sigrl": ["--arch", "sigrl", "--topk", "4"],
}


def train(out: Path, threads: int, steps: int, *options: str) -> None:
    """One `sigrl-deploy train`, or the rest of it where it was interrupted. Its messages go to a file beside `out`."""
    state = out / "state.pt"
    if state.exists():
        progress = torch.load(state, weights_only=True)["progress"]
        if progress["step"] == steps or ("--patience" in options and progress["worse"] >= PATIENCE):
            return
    out.parent.mkdir(parents=True, exist_ok=True)
    with (out.parent / f"{out.name}.txt").open("a") as messages:
        resume = ["--resume"] if state.exists() else []
        env = os.environ | {"OMP_NUM_THREADS": str(threads)}
        arguments = ["train", "scenes", *COMMON, *options, "--steps", str(steps), "--out", str(out), *resume]
        command(*arguments, env=env, stdout=messages, stderr=subprocess.STDOUT)


def train_heads(folders: list[Path], clip: Path, steps: int) -> None:
    """Every head of every seed, as many at a time as there are cores, the longest first."""
    cores = os.cpu_count() or 1
    jobs = [(seed, folder, name) for name in ("sigrl", "mkt", "clip-ft") for seed, folder in enumerate(folders)]
    # Models this small gain little from several threads, so heads share the cores instead.
    threads = max(1, cores // len(jobs))

    def train_one(job: tuple[int, Path, str]) -> None:
        seed, folder, name = job
        train(folder / name, threads, steps, *HEADS, *RUNS[name], "--init", str(clip), "--seed", str(seed))

    with ThreadPoolExecutor(cores) as pool:
        list(pool.map(train_one, jobs))


def write_small(source: Path, target: Path) -> None:
    """A trained model in fp16, without the scale of its loss, and with zeros for the tokens that no caption has.

    Nothing was learned of those, and zeros compress: nine tenths of a model this small are token embeddings.
    """
    record = read_record(source)
    assert record is not None
    tensors = {name: tensor.read().half() for name, tensor in read_weights(source).items() if not name.startswith(HEAD)}
    embedding = tensors["text.token_embedding.weight"]
    known = SimpleTokenizer()([prompt.format(words) for prompt in PROMPTS for words in (*LABELS, "shape")]).unique()
    tensors["text.token_embedding.weight"] = torch.zeros_like(embedding).index_copy(0, known, embedding[known])
    target.parent.mkdir(exist_ok=True)
    write_trained(target, record, tensors)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")


def ship(trained: Path) -> None:
    """Put a SigRL model and what the demo shows into the package."""
    write_small(trained, SHIPPED)
    LABEL_FILE.write_text("\n".join(LABELS) + "\n", encoding="utf-8")
    for i in range(PICTURES):
        Scenes("test").image(i).save(DATA / "scenes" / f"scene-{i}.jpg", quality=95, subsampling=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--clip", type=Path, help="start the heads from this CLIP; without it, one is trained")
    parser.add_argument("--clip-steps", type=int, default=CLIP_STEPS)
    parser.add_argument("--head-steps", type=int, default=HEAD_STEPS)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--ship", action="store_true")
    args = parser.parse_args()
    runs, cores = args.runs.resolve(), os.cpu_count() or 1
    clip = args.clip
    if clip is None:
        train(runs / "clip", cores, args.clip_steps, *CLIP, "--save-every", str(max(1, args.clip_steps // 15)))
        clip = KEPT_CLIP
        write_small(runs / "clip" / "model.safetensors", clip)
    records = baselines(args.pictures)
    folders = [runs / f"seed{seed}" for seed in range(args.seeds)]
    train_heads(folders, clip, args.head_steps)
    with ProcessPoolExecutor(cores, get_context("spawn")) as processes:
        every = [{"clip": clip} | {name: folder / name / "model.safetensors" for name in RUNS} for folder in folders]
        for found in processes.map(evaluate_models, every, range(args.seeds), [args.pictures] * args.seeds):
            records += found
    trained = folders[0] / "sigrl" / "model.safetensors"
    if args.ship:
        ship(trained)
    results = {
        "date": date.today().isoformat(),
        "pictures": args.pictures,
        "shipped": args.ship,
        "clip_steps": steps_of(clip),
        "best_steps": {str(seed): best_steps(folder) for seed, folder in enumerate(folders)},
        "machine": {"processor": platform.machine(), "cores": cores, "torch": version("torch")},
        "records": records,
        "heads": head_statistics(trained, TrainOptions("scenes", trained.parent, RecipeName.ZERO_SHOT, init=str(clip), topk=4)),
        "engines": evaluate_engines(SHIPPED if args.ship else trained, args.pictures),
    }
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_card(results)


def steps_of(clip: Path) -> Any:
    record = read_record(clip)
    assert record is not None
    return record.training["settings"]["steps"]


def best_steps(folder: Path) -> dict[str, Any]:
    """By head, the update whose model was the best by validation, and is evaluated."""
    states = {name: torch.load(folder / name / "state.pt", weights_only=True)["progress"] for name in RUNS}
    return {name: progress["best_step"] for name, progress in states.items()}


if __name__ == "__main__":
    main()
