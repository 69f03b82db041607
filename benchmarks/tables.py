"""Results files, and the tables that README and page make of them, in Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
MANY = 1006  # labels, at which memory and ratios are given
# Whom the others are compared with: a contender in the precision that comes first, or in the one that is named.
CPU_PEERS = ("eager-as-written", "eager", "compile, fp32", "compile, bf16")
GPU_PEERS = ("eager-as-written", "eager", "compile-graph")
AS_WRITTEN = "faster than as written at {}"
BEFORE_KERNEL = "; measured before `onnxruntime` had a native kernel for SVFR, and floors are from PyTorch's products alone"
Record = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def result_files(gpu: bool | None = None) -> list[Path]:
    """The results file of every machine, or of those with or without a GPU. Other files in the folder hold accuracy."""
    machines = [(path, read(path).get("machine", {})) for path in sorted(RESULTS.glob("*.json"))]
    return [path for path, machine in machines if "gemm_gflops" in machine and gpu in (None, "gpu" in machine)]


def caption(results: dict[str, Any]) -> str:
    machine = results["machine"]
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in machine["gemm_gflops"].items())
    hardware, unit, shown = f"{machine['cpu']}, {machine['cores']} cores", "GFLOP/s", ("torch", "onnxruntime")
    kernel = f"; SVFR's native kernel: {machine['cpu_kernel']}" if "cpu_kernel" in machine else BEFORE_KERNEL
    if "gpu" in machine:
        kernel = ""
        rates = ", ".join(f"{name} {rate / 1000:.0f}" for name, rate in machine["gemm_gflops"].items())
        hardware, unit, shown = machine["gpu"]["name"], "TFLOP/s", ("torch", "triton")
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items() if name in shown)
    return (
        f"{hardware} (matrix products in {unit}: {rates}; copies {machine['copy_gb_per_s']:.0f} GB/s), {versions}, "
        f"{machine['date']}; {results['variant']}, random weights, one picture, median in ms, warm{kernel}.\n"
    )


def summary(results: dict[str, Any], peers: tuple[str, ...] = CPU_PEERS) -> str:
    """One row per contender, one column per label count; batch 1."""
    records, missing = [record for record in results["records"] if record["batch"] == 1], {"status": "not measured"}
    counts = sorted({record["labels"] for record in records})
    found = {(name_of(record), record["labels"]): record for record in records}
    most = MANY if MANY in counts else counts[-1]
    baselines = peer_names(records, peers)
    ratios_to = [_ratio_to(name, most) for name in baselines]
    header = ["", *(f"{count} labels" for count in counts), f"memory at {most}", *ratios_to, "times the floor"]
    rows = []
    times = [found.get((name, most), {}).get("p50_ms") for name in baselines]
    for name in dict.fromkeys(name_of(record) for record in records):
        own = found.get((name, most), missing)
        ratios = [f"{peer / own['p50_ms']:.1f}×" if peer and own["status"] == "ok" else "" for peer in times]
        cells = [cell(found.get((name, count), missing)) for count in counts]
        memory = f"{own['peak_bytes'] / 1e9:.1f} GB" if own["status"] == "ok" else ""
        rows.append([name, *cells, memory, *ratios, own.get("times_floor", "")])
    return table(header, rows)


def peer_names(records: list[Record], peers: tuple[str, ...]) -> list[str]:
    """The baselines that there are."""
    found = [next((name_of(r) for r in records if peer in (r["backend"], name_of(r))), "") for peer in peers]
    return [name for name in found if name]


def _ratio_to(baseline: str, labels: int) -> str:
    """What is said above the ratios to a baseline."""
    backend, precision = baseline.split(", ")
    return f"{AS_WRITTEN.format(labels) if backend == 'eager-as-written' else f'than {backend}'} ({precision})"


def name_of(record: Record) -> str:
    return f"{record['backend']}, {record['precision']}"


def cell(record: Record) -> str:
    if record["status"] != "ok":
        return str(record["status"]).partition(":")[0]
    return f"{record['p50_ms']:.{0 if record['p50_ms'] >= 10 else 2}f}"


def table(header: list[str], rows: list[list[Any]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"
