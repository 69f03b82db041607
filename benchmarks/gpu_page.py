"""What the page says of a GPU's results file, which `gpu_once.py` writes."""

from __future__ import annotations

from typing import Any

from benchmarks.tables import Record, table

ORDER = ("eager-as-written", "eager", "compile", "compile-graph", "torch-from-host", "torch")
KERNELS_SHOWN = 15  # of a pass
GLOSSARY = """
- On a GPU `torch` is this project's engine, pixels and scores on the GPU, the pass one CUDA graph, from its launch until it is
  done; `torch-from-host` the same engine from pixels to scores in the host's memory, with several pictures from one batch's
  scores to the next one's. The others have pixels and scores on the GPU; `compile-graph` is `compile` in a CUDA graph too.
  Memory is what PyTorch had allocated at most, weights included. fp32 products of the floor are three of TF32, where that is
  faster.
  Errors of kernels are norms relative to a float64 reference, beside those of plain PyTorch in the same dtype; outputs were
  filled with NaN before, and runs repeated. "Within twice plain" is also yes up to a floor, whatever plain PyTorch's error is:
  2⁻⁸ in bf16 and 2⁻¹¹ in fp16, the largest error of rounding once, and 1e-6 in fp32.
"""


def ordered(results: dict[str, Any]) -> dict[str, Any]:
    """The results with their records sorted by contender, not by time of measurement."""
    known = [record for record in results["records"] if record["backend"] in ORDER]
    key = {name: place for place, name in enumerate(ORDER)}
    records = sorted(known, key=lambda r: (r["labels"], r["batch"], key[r["backend"]], r["precision"] == "fp32"))
    return results | {"records": records}


def sections(results: dict[str, Any]) -> list[str]:
    """The page's sections besides latency, throughput and drift."""
    parts = [
        ("Stages on the GPU, µs", stages(results.get("stages", ()))),
        ("Kernels", kernels(results.get("kernels", ()))),
        ("Errors of kernels", errors(results.get("errors", ()))),
        ("Candidates that do not run", failed(results.get("compiled", {}))),
        ("Kernels of one pass", profile(results.get("profile", ()))),
        ("What the GPU can do", ceilings(results.get("ceilings", {}))),
        (
            "Nsight Compute, both stages of SVFR at 1006 labels",
            "\n".join(f"- {line}" for line in results.get("ncu", ())) + "\n",
        ),
        ("`pytest -m gpu`", tests(results.get("tests"))),
        ("Not measured", left_out(results.get("left_out", ()))),
    ]
    return [f"### {title}\n\n{text}" for title, text in parts if text.strip()]


def stages(records: list[Record]) -> str:
    names = list(dict.fromkeys(record["stage"] for record in records if record["labels"]))
    found = {(r["batch"], r["labels"], r["stage"]): r["us"] for r in records}
    sizes = dict.fromkeys((batch, labels) for batch, labels, _ in found if labels)
    rows = [[batch, labels, *(found.get((batch, labels, name), "") for name in names)] for batch, labels in sizes]
    copies = [f"{r['batch']} of uint8 {r['us']}" for r in records if not r["labels"]]
    return table(["batch", "labels", *names], rows) + (
        f"\nPictures from pinned memory: {', '.join(copies)}.\n" if copies else ""
    )


def kernels(records: list[Record]) -> str:
    names = ("us", "tflops", "times_floor")
    rows = [
        [r["kernel"], r["precision"], r["batch"], r["labels"] or "", r.get("launch", r["form"]), *(r[name] for name in names)]
        for r in sorted(records, key=lambda r: (r["kernel"], r["precision"], r["batch"], r["labels"]))
    ]
    header = ["kernel", "precision", "batch", "labels", "fastest", "µs", "TFLOP/s", "times the floor"]
    return table(header, rows) if rows else ""


def errors(records: list[Record]) -> str:
    names, within = ("kernel", "precision", "labels", "candidates", "error", "plain"), {True: "yes", False: "no"}
    rows = [
        [*(r[name] for name in names), within[r["within twice plain"]], len(r["differ"]), len(r["failed"])] for r in records
    ]
    header = [*names[:4], "largest error", "plain", "within twice plain", "not repeatable", "failed"]
    return table(header, rows) if rows else ""


def ceilings(found: Record) -> str:
    return table(["measured", ""], [list(item) for item in found.items()]) if found else ""


def failed(compiled: Record) -> str:
    rows = [[entry[name] for name in ("kernel", "precision", "launch", "reason")] for entry in compiled.get("failed", ())]
    return table(["kernel", "precision", "launch", "reason"], rows) if rows else ""


def profile(records: list[Record]) -> str:
    parts = []
    for r in records:
        rows = [[f"`{entry['name'][:60]}`", entry["calls"], entry["us"]] for entry in r["kernels"][:KERNELS_SHOWN]]
        parts.append(
            f"{r['labels']} labels, one picture, {r['precision']}: {r['count']} kernels, busy for {r['busy_us']} of "
            f"{r['span_us']} µs.\n\n{table(['kernel', 'calls', 'µs'], rows)}"
        )
    return "\n".join(parts)


def tests(found: Record | None) -> str:
    if not found:
        return ""
    counts = ", ".join(f"{number} {word}" for word, number in found["counts"].items())
    return f"{found['status']}: {counts}.\n" + "".join(f"- {name}\n" for name in found["failed"])


def left_out(records: list[Record]) -> str:
    return "".join(f"- {entry['section']}, {entry['what']}: {entry['reason']}\n" for entry in records)
