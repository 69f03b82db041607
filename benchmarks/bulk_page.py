"""What docs/bulk.md says in figures: what `benchmarks.bulk` measured, and sizes worked out from rates of single machines."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.tables import RESULTS, read, table

BULK, CPU, H100 = RESULTS / "bulk.json", RESULTS / "cpu.json", RESULTS / "h100.json"
PICTURE_BYTES = 200_000  # of a JPEG file, assumed
GPU_DOLLARS, CORE_DOLLARS = 3.0, 0.04  # an hour, assumed
CORES_PER_GPU = 16
LABELS = 81


def measured() -> str:
    """The table of what was measured, and the kill in words."""
    results = read(BULK)
    rows = [_row("`infer`, 2 threads", results["infer"])]
    for share in results["bulk"]:
        workers, cpus = share["workers"], share["cpus"]
        name = f"`bulk`, {workers} worker{'s' * (workers > 1)} of {cpus} CPU{'s' * (cpus > 1)}"
        rows.append(_row(name, share["runs"], _middle(results["infer"], "pictures_per_s")))
    header = ["", "pictures/s", "of `infer`'s", "CPU seconds a picture", "first rows after, s", "memory, GB"]
    machine, killed = results["machine"], results["killed"]
    caption = (
        f"\n{results['pictures']} pictures, {results['variant']} with random weights in fp32, 100 labels. {machine['cpu']}, "
        f"{machine['cores']} cores, Ray {machine['ray']}, {machine['date']}. Rates and CPU seconds are without the start; CPU "
        "seconds and memory are those of all processes, Ray's among them.\n"
    )
    worker, driver, _ = killed["events"]
    file = killed["rows_per_file"]
    story = (
        f"\nIn the plot a worker is killed after {worker['rows']} rows and the driver after {driver['rows']}; the same command "
        f"then goes on. At the end there are {killed['rows'][-1][1]} rows, each once. Pictures were opened "
        f"{killed['opened_again']} times more than there are. A file has {file} rows here, so up to {file} are lost with a "
        f"worker, and {2 * file} with the driver and its two workers.\n"
    )
    return table(header, rows) + caption + story


def _row(name: str, runs: list[dict[str, float]], infer: float | None = None) -> list[Any]:
    rate, cpu = _middle(runs, "pictures_per_s"), _middle(runs, "cpu_seconds_per_picture")
    share = "" if infer is None else f"{100 * rate / infer:.0f} %"
    first, memory = (_middle(runs, name) for name in ("first", "memory_bytes"))
    return [name, f"{rate:.2f}", share, f"{cpu:.3f}", f"{first:.0f}", f"{memory / 1e9:.1f}"]


def _middle(runs: list[dict[str, float]], name: str) -> float:
    return median(run[name] for run in runs)


def sizes() -> str:
    """Rates of nodes, and what a million pictures take, worked out."""
    cpu = {(r["backend"], r["precision"]): r for r in read(CPU)["records"] if r["labels"] == LABELS and r["batch"] == 1}
    gpu = {(r["backend"], r["precision"], r["batch"]): r for r in read(H100)["records"] if r["labels"] == LABELS}
    cores = read(CPU)["machine"]["cores"]
    laptop, int8 = (cpu["onnxruntime", precision]["images_per_s"] for precision in ("fp32", "int8"))
    h100 = gpu["torch", "bf16", 64]["images_per_s"]
    decoded = 1000 / read(BULK)["reading_ms"]  # pictures a second of a core
    fed = min(h100, CORES_PER_GPU * decoded)
    nodes = [
        (f"laptop, {cores} cores, fp32", laptop, CORE_DOLLARS * cores, "the model"),
        (f"laptop, {cores} cores, int8", int8, CORE_DOLLARS * cores, "the model"),
        ("one machine, 64 cores, int8", int8 * 64 / cores, CORE_DOLLARS * 64, "the model"),
        (f"one H100, {CORES_PER_GPU} cores, bf16", fed, GPU_DOLLARS, "decoding" if fed < h100 else "the GPU"),
        (f"100 H100s, {CORES_PER_GPU} cores each, bf16", 100 * fed, 100 * GPU_DOLLARS, "decoding, then the bucket"),
    ]
    rows = [
        [
            name,
            f"{rate:,.0f}",
            f"{rate * PICTURE_BYTES / 1e6:,.0f}",
            _hours(1e6 / rate / 3600),
            f"{price * 1e6 / rate / 3600:,.2f}",
            limit,
        ]
        for name, rate, price, limit in nodes
    ]
    header = ["", "pictures/s", "MB/s from storage", "a million takes", "dollars a million", "limited by"]
    need = h100 / decoded
    caption = (
        f"\nWorked out, not run: rates of one picture at {LABELS} labels on {cores} cores and of batches of 64 on an H100, "
        f"from [benchmarks.md](benchmarks.md), multiplied. A core decodes and prepares {decoded:,.0f} pictures of 640 pixels a "
        "second, as measured for the table above. An H100 alone would do "
        f"{h100:,.0f} pictures/s and so needs {need:,.0f} cores to feed it. Assumed: {PICTURE_BYTES // 1000} kB a picture, "
        f"${GPU_DOLLARS:.2f} an hour for a GPU with its cores, ${CORE_DOLLARS:.2f} for a core.\n"
    )
    return table(header, rows) + caption


def _hours(hours: float) -> str:
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    if hours < 1:
        return f"{60 * hours:.1f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def draw(path: Path) -> None:
    """Rows over time, with the kills."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sigrl-deploy"  # the same figures, the same file
    from matplotlib import pyplot as plt

    killed = read(BULK)["killed"]
    figure, axis = plt.subplots(figsize=(8, 4), layout="constrained")
    times, counts = zip(*killed["rows"], strict=True)
    axis.step([0, *times], [0, *counts], where="post", label="rows in finished files")
    for event in killed["events"]:
        said = f"{event['killed']} killed" if "killed" in event else "the same command again"
        axis.axvline(event["at"], color="tab:red" if "killed" in event else "tab:green", linestyle="--", label=said)
    axis.set(xlabel="seconds", ylabel="rows")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
