"""Race the reference and what this project makes of it, on this machine, into one JSON file.

    python benchmarks/bench.py --out benchmarks/results/cpu.json           # everything; goes on where it was interrupted
    python benchmarks/bench.py --device cuda --out benchmarks/results/h200.json
    python benchmarks/bench.py --variant tiny --labels 7 20 --batches 1 2  # a quick look

Every cell (contender, labels, batch) runs in processes of its own, in rounds: on a shared machine a slow minute then falls on
all contenders. A cell whose pass would take longer than --longest is not run, and its record says so; so does that of one that
runs out of memory. `report.py` makes table, plots and the README's figures of the file.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from contenders import Cell, chosen
from machine import describe, floor_ms
from random_weights import VARIANTS
from tqdm import tqdm
from workload import load, prepare

from sigrl_deploy.config import ModelConfig, Precision
from sigrl_deploy.files import replacing

LABELS = (20, 81, 256, 1006, 7586)
BATCHES = (1, 4, 16, 64)
PASSES = 3  # at least, in a process
Record = dict[str, Any]


def main() -> None:
    args = parse()
    pairs = chosen(args.device, args.backends)
    results = read_results(args.out)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        precisions = dict.fromkeys(p for b, p in pairs if b in ("onnxruntime", "openvino", "torch"))
        prepare(folder, args.variant, args.labels, list(precisions) or ["fp32"], any(b == "naive-onnx" for b, _ in pairs))
        config = load(folder).config
        results |= {"machine": results.get("machine") or describe(args.device), "variant": args.variant}
        bench = Bench(folder, config, results, args.rounds, args.longest, args.seconds)
        for batch in args.batches:
            for labels in args.labels:
                bench.race([Cell(backend, precision, args.device, labels, batch) for backend, precision in pairs])
                write_results(args.out, results)
    if not args.out:
        print(json.dumps(results, indent=1))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--variant", choices=VARIANTS, default="vit-b16")
    parser.add_argument("--labels", type=int, nargs="+", default=list(LABELS))
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--backends", nargs="+", help="some of the contenders [default: all that are installed]")
    parser.add_argument("--rounds", type=int, default=3, help="processes a contender for batch 1; larger batches have one")
    parser.add_argument("--longest", type=float, default=60, help="seconds of the longest pass that is run")
    parser.add_argument("--seconds", type=float, default=5, help=f"timed in each process, at least {PASSES} passes")
    parser.add_argument("--folder", type=Path, help="where checkpoint and exports are kept [default: a temporary folder]")
    parser.add_argument("--out", type=Path, help="JSON file; cells that it holds are not run again")
    return parser.parse_args()


def read_results(path: Path | None) -> Record:
    results: Record = {"records": []}
    if path and path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
    return results


def write_results(path: Path | None, results: Record) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


class Bench:
    """Runs cells and collects their records."""

    def __init__(self, folder: Path, config: ModelConfig, results: Record, rounds: int, longest: float, seconds: float) -> None:
        self.folder, self.config, self.results = folder, config, results
        self.rounds, self.longest, self.seconds = rounds, longest, seconds

    def race(self, cells: list[Cell]) -> None:
        """All contenders at one size, in turn, round by round."""
        done = {tuple(record[key] for key in Cell.__dataclass_fields__) for record in self.results["records"]}
        cells = [cell for cell in cells if tuple(cell.to_dict().values()) not in done]
        children: dict[Cell, list[Record]] = {cell: [] for cell in cells}
        rounds = self.rounds if cells and cells[0].batch == 1 else 1
        for number in range(rounds):
            for cell in tqdm(cells, desc=f"{cell_size(cells)}, round {number + 1} of {rounds}", disable=None, leave=False):
                if all("status" not in child for child in children[cell]):
                    children[cell].append(self.child(cell, first=number == 0))
        for cell in cells:
            record = self.summarise(cell, children[cell])
            self.results["records"].append(record)
            print(f"{' '.join(map(str, cell.to_dict().values()))}: {record.get('p50_ms', record['status'])}", file=sys.stderr)

    def child(self, cell: Cell, first: bool) -> Record:
        """One process's result, or a status where there is none."""
        predicted = self.predicted_seconds(cell)
        if predicted > self.longest:
            return {"status": f"not run: a pass would take about {predicted:.0f} s"}
        drift = first and cell.batch == 1
        with tempfile.TemporaryDirectory() as temporary:
            scores = Path(temporary) / "scores.npy"
            task: Record = {
                "cell": cell.to_dict(), "folder": str(self.folder), "image_size": self.config.vision.image_size,
                "runs": PASSES if cell.batch == 1 else 1, "seconds": self.seconds,
                "scores": str(scores) if drift else None, "stages": first, "reference": False, "started": time.time(),
            }  # fmt: skip
            done = run_task(task, Path(temporary))
            if done.returncode:
                return {"status": failure(done)}
            result = dict(json.loads(done.stdout.splitlines()[-1]))
            if drift:
                result["drift"] = drift_of(self.reference(cell, task, Path(temporary)), np.load(scores))
            return result

    def reference(self, cell: Cell, task: Record, temporary: Path) -> np.ndarray:
        """Scores by the eager model in fp32, computed once a label count."""
        kept = self.folder / f"reference-{cell.labels}.npy"
        if not kept.exists():
            run_task(task | {"reference": True, "scores": str(kept)}, temporary).check_returncode()
        return np.load(kept)

    def predicted_seconds(self, cell: Cell) -> float:
        """From the same contender at smaller sizes; time grows with the batch and, at most, with labels."""
        known = [
            record["p50_ms"] / 1000 * max(1, cell.labels / record["labels"]) * cell.batch / record["batch"]
            for record in self.results["records"]
            if record["status"] == "ok"
            and all(record[key] == getattr(cell, key) for key in ("backend", "precision", "device"))
            and record["labels"] <= cell.labels and record["batch"] <= cell.batch
        ]  # fmt: skip
        return min(known, default=0.0)

    def summarise(self, cell: Cell, children: list[Record]) -> Record:
        """One record of the processes of all rounds."""
        record = cell.to_dict()
        failed = [child["status"] for child in children if "status" in child]
        if failed:
            return record | {"status": failed[0]}
        times = [milliseconds for child in children for milliseconds in child["times"]]
        p50, p90, p99 = (round(float(value), 2) for value in np.percentile(times, (50, 90, 99)))
        floor = floor_ms(self.config, cell.labels, cell.batch, Precision(cell.precision), self.results["machine"])
        return (
            record
            | {
                "runs": len(times),
                "p50_ms": p50,
                "p90_ms": p90,
                "p99_ms": p99,
                "images_per_s": round(1000 * cell.batch / float(np.mean(times)), 3),
                "peak_bytes": max(child["peak_bytes"] for child in children),
                "floor_ms": round(floor, 2),
                "times_floor": round(p50 / floor, 2),
                "status": "ok",
            }
            | {key: children[0][key] for key in ("cold_start_ms", "stages_ms", "drift") if key in children[0]}
        )


def cell_size(cells: list[Cell]) -> str:
    return f"{cells[0].labels} labels, batch {cells[0].batch}" if cells else "nothing left"


def run_task(task: Record, temporary: Path) -> subprocess.CompletedProcess[str]:
    path = temporary / "task.json"
    path.write_text(json.dumps(task), encoding="utf-8")
    script = Path(__file__).with_name("measure.py")
    return subprocess.run([sys.executable, script, path], capture_output=True, text=True, check=False)


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process gave no result, in a line."""
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else ""
    if done.returncode in (-9, 137) or re.search(r"memory|alloc", last, re.IGNORECASE):
        return "out of memory"
    return f"failed: {last[:200] or f'exit status {done.returncode}'}"


def drift_of(exact: np.ndarray, got: np.ndarray) -> Record:
    """Scores [n, C] against eager's in fp32: the largest error, and on how many pictures the best labels agree (0 to 1)."""
    exact = exact[: len(got)]
    k = min(5, exact.shape[1])
    overlap = [len(set(a[:k]) & set(b[:k])) / k for a, b in zip(np.argsort(-exact), np.argsort(-got), strict=True)]
    return {
        "pictures": len(got),
        "score_error": float(f"{np.abs(exact - got).max():.2g}"),
        "largest_score": float(f"{np.abs(exact).max():.2g}"),
        "top1": round(float((exact.argmax(1) == got.argmax(1)).mean()), 4),
        "top5_overlap": round(float(np.mean(overlap)), 4),
    }


if __name__ == "__main__":
    main()
