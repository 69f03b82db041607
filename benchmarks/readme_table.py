"""The README's table: what people ask first, in at most five rows. Everything else is in docs/benchmarks.md."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import Record, cell, read, result_files, table

LABELS = (81, 1006)
# Contender and precision by kind of machine: the reference first, and the fastest form of compiled PyTorch to compare with.
ON_CPU = (("eager-as-written", "fp32"), ("onnxruntime", "fp32"), ("onnxruntime", "int8"))
ON_GPU = (("eager-as-written", "bf16"), ("torch", "bf16"))
NAMES = {"eager-as-written": "reference in PyTorch", "onnxruntime": "ONNX Runtime", "torch": "PyTorch with kernels"}
RATIOS = ("faster than the reference", "faster than compiled")
COMPILED = {False: ("compile", "fp32"), True: ("compile-graph", "bf16")}


def readme_table() -> str:
    """The first CPU's and the first GPU's rows, and below them what they were measured on."""
    machines = [read(files[0]) for gpu in (False, True) if (files := result_files(gpu))]
    header = ["", *(f"{labels} labels" for labels in LABELS), f"memory at {LABELS[-1]}", *RATIOS]
    return table(header, [row for results in machines for row in _rows(results)]) + "\n" + _caption(machines)


def _rows(results: dict[str, Any]) -> list[list[str]]:
    gpu = "gpu" in results["machine"]
    found = {(r["backend"], r["precision"], r["labels"]): r for r in results["records"] if r["batch"] == 1}
    missing = {"status": "not measured"}
    shown = ON_GPU if gpu else ON_CPU
    peers = [found.get((*peer, LABELS[-1]), missing) for peer in (shown[0], COMPILED[gpu])]
    rows = []
    for contender in shown:
        records = [found.get((*contender, labels), missing) for labels in LABELS]
        name = f"{_hardware(results)}: {NAMES[contender[0]]}, {contender[1]}"
        memory = f"{records[-1]['peak_bytes'] / 1e9:.1f} GB" if records[-1]["status"] == "ok" else ""
        rows.append([name, *map(cell, records), memory, *(_ratio(peer, records[-1]) for peer in peers)])
    return rows


def _ratio(peer: Record, own: Record) -> str:
    """How many times faster than another contender."""
    return f"{peer['p50_ms'] / own['p50_ms']:.1f}×" if peer["status"] == own["status"] == "ok" else ""


def _hardware(results: dict[str, Any]) -> str:
    """A word for the machine."""
    machine = results["machine"]
    return machine["gpu"]["name"].removeprefix("NVIDIA ").split()[0] if "gpu" in machine else f"CPU, {machine['cores']} cores"


def _caption(machines: list[dict[str, Any]]) -> str:
    parts = []
    for results in machines:
        machine = results["machine"]
        shown = ("torch", "triton") if "gpu" in machine else ("torch", "onnxruntime")
        versions = ", ".join(f"{name} {machine['versions'][name]}" for name in shown if name in machine["versions"])
        parts.append(f"{machine['gpu']['name'] if 'gpu' in machine else machine['cpu']}, {versions}, {machine['date']}")
    precisions = " and ".join(f"in {COMPILED['gpu' in r['machine']][1]} on the {_hardware(r).split(',')[0]}" for r in machines)
    return (
        f"Median in ms for one picture, {machines[0]['variant']}, random weights. Ratios are at {LABELS[-1]} labels, to "
        f"PyTorch {precisions}; compiled: `torch.compile`, on GPUs in a CUDA graph. Memory: the whole process on CPUs, "
        "what PyTorch allocated on GPUs. int8: SVFR in 8 bits. "
        f"{'; '.join(parts)}.\n"
    )
