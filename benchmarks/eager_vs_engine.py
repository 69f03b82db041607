"""One picture through the materialised eager model and through the exported engine, at ViT-B/16 size with random weights.

Backends, each in processes of its own, in turn (on a shared machine a slow minute then falls on all of them), on the same
pixels and label embeddings:

    eager-as-written   the materialised PyTorch model with GMC in every forward, as the reference computes it
    eager              the same with GMC cached
    onnxruntime        the exported bundle under `Recognizer`: engine and matching, vocabulary cached

    python benchmarks/eager_vs_engine.py --out benchmarks/results/cpu.json
    python benchmarks/eager_vs_engine.py --labels 81 --variant tiny      # quick look

A record's latency is over warm runs; `peak_bytes` is the process's largest resident set, libraries and weights included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from random_weights import VARIANTS, images, label_embeddings, save, sigrl_shapes, tensors

BACKENDS = ("eager-as-written", "eager", "onnxruntime")
LABELS = (20, 81, 256, 1006)
Record = dict[str, Any]
Pass = Callable[[], np.ndarray]


def eager_pass(folder: Path, labels: int, cached: bool) -> Pass:
    """One forward of the materialised model → scores [1, C]."""
    import torch

    from sigrl_deploy.checkpoint import build_model, load_checkpoint, model_config
    from sigrl_deploy.model import materialised

    torch.set_num_threads(cores())
    checkpoint = load_checkpoint(folder / "sigrl.pth")
    model = build_model(checkpoint, model_config(checkpoint))
    pixels = torch.from_numpy(images(1, model.config.vision.image_size, seed=0))
    embedding = torch.from_numpy(label_embeddings(labels, seed=1))
    assert model.gmc is not None
    with torch.inference_mode():
        graph = model.gmc(embedding) if cached else None

    def run() -> np.ndarray:
        with torch.inference_mode():
            return materialised.forward(model, pixels, embedding, graph).numpy()

    return run


def engine_pass(folder: Path, labels: int) -> Pass:
    """One picture through the bundle, with the vocabulary in the cache → scores [1, C]."""
    from sigrl_deploy.recognizer import Recognizer
    from sigrl_deploy.vocabulary import Vocabulary

    recognizer = Recognizer(folder / "bundle", device="cpu", cache_dir=False)
    saved = np.load(folder / f"vocabulary-{labels}.npz")
    vocabulary = Vocabulary(tuple(map(str, range(labels))), saved["label_embedding"], saved["graph_projection"])
    pixels = images(1, recognizer.bundle.manifest.image_size, seed=0)
    return lambda: recognizer.score_pixels(pixels, vocabulary)


def measure(backend: str, folder: Path, labels: int, runs: int) -> Record:
    """In a child process: one warm-up, then `runs` timed passes, in milliseconds."""
    run = engine_pass(folder, labels) if backend == "onnxruntime" else eager_pass(folder, labels, cached=backend == "eager")
    scores = run()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return {"times": times, "peak_bytes": peak_bytes(), "scores": scores[0].tolist()}


def peak_bytes() -> int:
    """Largest resident set of this process since it began.

    `ru_maxrss` would not do: on Linux it survives exec, and so holds the size of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure_in_child(backend: str, folder: Path, labels: int, runs: int) -> Record:
    """`measure` in a process of its own, so that its peak memory is its own; a failure (out of memory) is a record too."""
    command = [sys.executable, __file__, "--child", backend, str(folder), "--labels", str(labels), "--runs", str(runs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    return {"failure": done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"killed by signal {-done.returncode}"}


def summarise(backend: str, labels: int, children: list[Record]) -> Record:
    """One record from the children of all rounds."""
    record = {"backend": backend, "precision": "fp32", "device": "cpu", "labels": labels, "batch": 1}
    failures = [child["failure"] for child in children if "failure" in child]
    if failures:
        return record | {"status": f"failed: {failures[0]}"}
    times = [time for child in children for time in child["times"]]
    p50, p90, p99 = np.percentile(times, (50, 90, 99))
    return record | {
        "runs": len(times),
        "p50_ms": round(float(p50), 2),
        "p90_ms": round(float(p90), 2),
        "p99_ms": round(float(p99), 2),
        "images_per_s": round(1000 / float(np.mean(times)), 3),
        "peak_bytes": max(child["peak_bytes"] for child in children),
        "status": "ok",
        "scores": children[0]["scores"],
    }


def prepare(variant: str, folder: Path, labels: tuple[int, ...]) -> None:
    """Checkpoint, bundle and vocabularies, as a deployment would have them before the first picture."""
    import torch

    from sigrl_deploy.checkpoint import build_model, load_checkpoint, model_config
    from sigrl_deploy.export.bundle import ExportOptions, export_bundle

    save(folder / "sigrl.pth", tensors(sigrl_shapes(VARIANTS[variant])))
    embedding = torch.from_numpy(label_embeddings(100, seed=1))
    torch.save(embedding, folder / "label_emb.pt")
    names = folder / "labels.txt"
    names.write_text("\n".join(map(str, range(len(embedding)))))
    options = ExportOptions(folder / "sigrl.pth", folder / "bundle", labels=names, label_embeddings=folder / "label_emb.pt")
    export_bundle(options)
    checkpoint = load_checkpoint(folder / "sigrl.pth")
    model = build_model(checkpoint, model_config(checkpoint))
    for count in labels:
        embedding = torch.from_numpy(label_embeddings(count, seed=1))
        with torch.inference_mode():
            projection = model.graph_projection(embedding)
        assert projection is not None
        np.savez(folder / f"vocabulary-{count}.npz", label_embedding=embedding.numpy(), graph_projection=projection.numpy())


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    path = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in path.read_text().splitlines() if line.startswith("model name")]
        if path.exists()
        else []
    )
    return names[0] if names else platform.processor()


def gemm_gflops(size: int = 2048) -> float:
    """The machine's own fp32 GEMM rate by numpy, in GFLOP/s: what a latency elsewhere can be scaled by."""
    a = np.random.default_rng(0).standard_normal((size, size), np.float32)
    a @ a
    start = time.perf_counter()
    for _ in range(5):
        a @ a
    return round(5 * 2 * size**3 / (time.perf_counter() - start) / 1e9, 1)


def machine() -> dict[str, Any]:
    """Hardware, versions and date of a record."""
    from importlib.metadata import version

    packages = ("torch", "onnx", "onnxruntime", "open_clip_torch", "numpy")
    return {
        "cpu": processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "gemm_fp32_gflops": gemm_gflops(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    } | {name: version(name) for name in packages}


def ratios(records: list[Record]) -> list[dict[str, Any]]:
    """Per label count: how many times faster the engine is than either eager form, and how far its scores are from theirs."""
    rows = []
    for labels in sorted({record["labels"] for record in records}):
        found = {record["backend"]: record for record in records if record["labels"] == labels and record["status"] == "ok"}
        engine = found.get("onnxruntime")
        if engine is None:
            continue
        row: dict[str, Any] = {"labels": labels}
        for backend in ("eager-as-written", "eager"):
            if backend in found:
                row[f"times_faster_than_{backend}"] = round(found[backend]["p50_ms"] / engine["p50_ms"], 2)
                error = np.abs(np.subtract(found[backend]["scores"], engine["scores"])).max()
                row[f"score_error_to_{backend}"] = float(f"{error:.2g}")
        rows.append(row)
    return rows


def table(records: list[Record], rows: list[dict[str, Any]]) -> str:
    """Markdown, for people and for the README."""
    lines = [
        "| labels | backend | p50 ms | p90 ms | peak memory | engine is faster by |",
        "| ---: | --- | ---: | ---: | ---: | ---: |",
    ]
    by_labels = {row["labels"]: row for row in rows}
    for record in records:
        if record["status"] != "ok":
            lines.append(f"| {record['labels']} | {record['backend']} | {record['status']} | | | |")
            continue
        ratio = by_labels.get(record["labels"], {}).get(f"times_faster_than_{record['backend']}")
        lines.append(
            f"| {record['labels']} | {record['backend']} | {record['p50_ms']:.0f} | {record['p90_ms']:.0f} | "
            f"{record['peak_bytes'] / 1e9:.2f} GB | {f'{ratio:.1f}×' if ratio else ''} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=VARIANTS, default="vit-b16")
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS))
    parser.add_argument("--runs", type=int, default=3, help="timed passes a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes a backend, in turn with the other backends")
    parser.add_argument("--out", type=Path, help="write machine, records and ratios as JSON")
    parser.add_argument("--child", nargs=2, metavar=("BACKEND", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child[0], Path(args.child[1]), args.labels[0], args.runs)))
        return
    records = []
    with tempfile.TemporaryDirectory() as name:
        prepare(args.variant, Path(name), tuple(args.labels))
        for labels in args.labels:
            rounds = [[measure_in_child(b, Path(name), labels, args.runs) for b in BACKENDS] for _ in range(args.rounds)]
            for backend, children in zip(BACKENDS, zip(*rounds, strict=True), strict=True):
                records.append(summarise(backend, labels, list(children)))
                print(f"{labels} labels, {backend}: {records[-1].get('p50_ms', records[-1]['status'])} ms", file=sys.stderr)
    rows = ratios(records)
    print(table(records, rows))
    result = {"machine": machine(), "variant": args.variant, "records": records, "ratios": rows}
    for record in records:
        record.pop("scores", None)
    text = json.dumps(result, indent=2)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
