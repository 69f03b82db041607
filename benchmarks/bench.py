"""Measure the reference and this project's backends side by side on this machine, into one JSON file.

    python -m benchmarks.bench --out benchmarks/results/cpu.json
    python -m benchmarks.bench --device cuda --out benchmarks/results/h200.json
    python -m benchmarks.bench --variant tiny --labels 7 20 --batches 1 2  # a quick look

Every cell (contender, labels, batch) runs in processes of its own, in rounds: on a shared machine a slow minute then falls on
all contenders. A cell whose pass would take longer than --longest is not run, and its record says so; so does that of one that
runs out of memory. FILE.partial keeps the cells of an interrupted run, which the same command goes on with. `report.py` makes
table, plots and page of the files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.contenders import Cell, chosen
from benchmarks.measure import OUT_OF_MEMORY
from benchmarks.random_weights import VARIANTS
from benchmarks.records import timing
from benchmarks.stages import STAGES
from benchmarks.workload import CLIP, load, prepare
from sigrl_deploy.comparison import agreement, overlap, score_errors
from sigrl_deploy.config import ModelConfig
from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import replacing

LABELS = (20, 81, 256, 1006, 7586)
BATCHES = (1, 8, 64)
PASSES = 3  # of batch 1, at least, in a process
MEASURED = ("gemm_gflops", "copy_gb_per_s", "date")  # of a machine, what differs from one run to the next
Record = dict[str, Any]


def main() -> None:
    args = parse()
    pairs = chosen(args.device, args.backends)
    machine = json.loads(python("machine", args.device, check=True).stdout.splitlines()[-1])
    partial = args.out.with_name(f"{args.out.name}.partial") if args.out else None
    results = begun(partial, {"machine": machine, "variant": args.variant, "records": []})
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)) / args.variant
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, args.variant, args.labels, pairs, args.device)
        bench = Bench(folder, load(folder).config, results, args)
        for batch in args.batches:
            for labels in args.labels:
                bench.race([Cell(backend, precision, args.device, labels, batch) for backend, precision in pairs])
                write(partial, results)
    if partial:
        partial.replace(args.out)
    else:
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
    parser.add_argument("--seconds", type=float, default=5, help=f"timed in a process; for batch 1 {PASSES} passes at least")
    parser.add_argument("--folder", type=Path, help="where checkpoint and exports are kept [default: a temporary folder]")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser.parse_args()


def begun(partial: Path | None, new: Record) -> Record:
    """The results of an interrupted run, or `new`. Raises UsageError where they are of another machine or model."""
    if partial is None or not partial.exists():
        return new
    old: Record = json.loads(partial.read_text(encoding="utf-8"))

    def same(results: Record) -> list[Any]:
        return [results["variant"], {key: value for key, value in results["machine"].items() if key not in MEASURED}]

    if same(old) != same(new):
        raise UsageError(f"{partial}: is of another model, machine or installation; remove it, or choose another --out")
    return old


def write(path: Path | None, results: Record) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def python(module: str, *arguments: object, check: bool = False, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run a module of this package in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=check, **how)


class Bench:
    """Runs cells and collects their records."""

    def __init__(self, folder: Path, config: ModelConfig, results: Record, args: argparse.Namespace) -> None:
        self.folder, self.config, self.results = folder, config, results
        self.rounds, self.longest, self.seconds = args.rounds, args.longest, args.seconds

    def race(self, cells: list[Cell]) -> None:
        """All contenders at one size, in turn, round by round."""
        done = {tuple(record[key] for key in Cell.__dataclass_fields__) for record in self.results["records"]}
        cells = [cell for cell in cells if tuple(cell.to_dict().values()) not in done]
        if not cells:
            return
        children: dict[Cell, list[Record]] = {cell: [] for cell in cells}
        rounds = self.rounds if cells[0].batch == 1 else 1
        for number in range(rounds):
            for cell in tqdm(
                cells, desc=f"{cells[0].labels} labels, round {number + 1} of {rounds}", disable=None, leave=False
            ):
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
        drift = first and cell.batch == 1 and cell.backend != CLIP  # which computes another score
        with tempfile.TemporaryDirectory() as temporary:
            scores = Path(temporary) / "scores.npy"
            task: Record = {
                "cell": cell.to_dict(), "folder": str(self.folder), "image_size": self.config.vision.image_size,
                "runs": PASSES if cell.batch == 1 else 1, "seconds": self.seconds,
                "scores": str(scores) if drift else None, "stages": first and cell.batch == 1,
                "reference": False, "started": time.time(),
            }  # fmt: skip
            status, result = self.run(task, Path(temporary))
            if status:
                return {"status": status}
            if drift:
                exact = self.reference(cell, task, Path(temporary))
                result |= {"drift": drift_of(exact, np.load(scores))} if exact is not None else {}
            return result

    def run(self, task: Record, temporary: Path) -> tuple[str | None, Record]:
        """Why a process gave no result, or None and its result."""
        path = temporary / "task.json"
        path.write_text(json.dumps(task), encoding="utf-8")
        # What torch.compile keeps between processes would make a later one's start warm.
        environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(temporary / "inductor")}
        try:
            done = python("measure", path, env=environment, timeout=20 * self.longest + 600)
        except subprocess.TimeoutExpired:
            return "failed: did not end", {}
        if done.returncode:
            return failure(done), {}
        return None, {} if task["reference"] else json.loads(done.stdout.splitlines()[-1])

    def reference(self, cell: Cell, task: Record, temporary: Path) -> np.ndarray | None:
        """Scores of the eager model in fp32, computed once per label count; None where that fails."""
        kept = self.folder / f"reference-{cell.labels}.npy"
        if not kept.exists():
            scores = temporary / "reference.npy"
            if self.run(task | {"reference": True, "scores": str(scores)}, temporary)[0]:
                return None
            with replacing(kept) as target:
                target.write_bytes(scores.read_bytes())
        return np.load(kept)

    def predicted_seconds(self, cell: Cell) -> float:
        """Extrapolated from the same contender's largest smaller size, by batch and labels (squared where GMC runs)."""
        power = 2 if cell.backend == "eager-as-written" else 1
        known = [
            (record["batch"] * record["labels"], record["p50_ms"] / 1000, record)
            for record in self.results["records"]
            if record["status"] == "ok"
            and all(record[key] == getattr(cell, key) for key in ("backend", "precision", "device"))
            and record["labels"] <= cell.labels and record["batch"] <= cell.batch
        ]  # fmt: skip
        if not known:
            return 0.0
        _, seconds, record = max(known, key=lambda entry: entry[:2])
        return float(seconds * (cell.labels / record["labels"]) ** power * cell.batch / record["batch"])

    def summarise(self, cell: Cell, children: list[Record]) -> Record:
        """One record of the processes of all rounds; the median is that of the rounds' medians."""
        record = cell.to_dict()
        failed = [child["status"] for child in children if "status" in child]
        if failed:
            return record | {"status": failed[0]}
        starts = [child["cold_start_ms"] for child in children]
        return (
            timing(self.config, cell, [child["times"] for child in children], self.results["machine"])
            | {
                "peak_bytes": max(child["peak_bytes"] for child in children),
                "cold_start_ms": {name: float(np.median([start[name] for start in starts])) for name in starts[0]},
                "status": "ok",
            }
            | {key: children[0][key] for key in (STAGES, "drift") if key in children[0]}
        )


def failure(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process gave no result, in one line."""
    if done.returncode in (OUT_OF_MEMORY, -9) or "bad_alloc" in done.stderr:
        return "out of memory"
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit status {done.returncode}"
    return f"failed: {last[:200]}"


def drift_of(exact: np.ndarray, got: np.ndarray) -> Record:
    """Scores [n, C] against eager's in fp32: the largest error, and on how many pictures the best labels agree (0 to 1)."""
    exact = exact[: len(got)]
    return {
        "pictures": len(got),
        "score_error": float(f"{score_errors(exact, got).largest:.2g}"),
        "largest_score": float(f"{np.abs(exact).max():.2g}"),
        "top1": round(agreement(exact, got, 1), 4),
        "top5_overlap": round(overlap(exact, got, 5), 4),
    }


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
