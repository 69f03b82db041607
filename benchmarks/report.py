"""Table, plots and pages from the files in `benchmarks/results/`: no figure is typed by hand.

python -m benchmarks.report           # rewrite docs/benchmarks*, and what README and other pages show
python -m benchmarks.report --check   # exit status 1 where a page differs from the results
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import bulk_page
from benchmarks.gpu_page import GLOSSARY, ordered, sections
from benchmarks.pretrained_table import pretrained_table
from benchmarks.readme_table import readme_table
from benchmarks.serving import table as service
from benchmarks.stages import STAGES
from benchmarks.support import support_table
from benchmarks.tables import CPU_PEERS, GPU_PEERS, Record, caption, name_of, read, result_files, summary, table

ROOT = Path(__file__).resolve().parent.parent
README, PAGE, PRETRAINED = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "pretrained.md"
BULK_PAGE = ROOT / "docs" / "bulk.md"
TAGGING, DEMO = ROOT / "docs" / "tagging.md", ROOT / "benchmarks" / "results" / "demo.json"
SERVING = ROOT / "docs" / "serving.md"
BEGIN, END = "<!-- benchmark table, by benchmarks/report.py -->\n", "<!-- end of benchmark table -->\n"
STAGE_NAMES = ("decode", "preprocess", "tower", "svfr", "match")
NO_SVFR = (
    "SVFR is left out: it was not timed by itself in these results, only as what tower and match leave of the whole pass, "
    "which takes in all that goes on beside them."
)
BEGIN_PRETRAINED, END_PRETRAINED = (
    "<!-- pretrained table, by benchmarks/report.py -->\n",
    "<!-- end of pretrained table -->\n",
)
BEGIN_SUPPORT, END_SUPPORT = "<!-- support matrix, by benchmarks/report.py -->\n", "<!-- end of support matrix -->\n"
INTRODUCTION = """# Benchmarks

`benchmarks/report.py` writes this page from `benchmarks/results/`. [benchmarking.md](benchmarking.md) says how to measure.
Whatever is not in a table was not run{no_gpu}. A *contender* is one implementation in one precision; the *tower* is CLIP's
image transformer (ViT), and *match* compares its features with the labels.

- `clip` is what a plain CLIP costs: the tower and one cosine for each label, exported and run as this project's bundles are. It
  computes another score, so it is compared in time only.
- `eager-as-written`: the reference's operations in PyTorch, with the label graph in every pass. `eager`: the same, with the
  label graph's result kept. `compile`: `eager` under torch.compile. `naive-onnx`: `eager` exported as it stands, in ONNX
  Runtime.
- `onnxruntime`, `openvino`: this project's bundle in the given precision under `Recognizer`, vocabulary cached, from pixels in
  memory to scores. `int8` is SVFR in 8 bits, `int8-all` the ViT too, `int8x3` the ViT in three products of 8 bits each. On a
  GPU `onnxruntime` is the tower in ONNX Runtime, followed by this project's kernels. On a CPU it is the tower with this
  project's native kernel for SVFR behind it, and `onnx-function` is the same bundle without that kernel.
- The floor is the least time for the products (2 FLOP per multiply-add) at the machine's own measured rates, or for reading
  weights, picture and labels once at its copy rate, whichever is longer. On a CPU the rates are those of PyTorch's or ONNX
  Runtime's best square product; a contender whose own products are faster can lie below that floor.
- Processes take turns in rounds; a median is the median of the rounds' medians. Memory is the largest resident set of the
  process.
- Scores are compared with eager in fp32 on the package's pictures: 12 for this project's engines, one for the others, fewer
  where there are many labels. Weights are random, so labels lie closer together than in a trained model; the
  [model card](../sigrl_deploy/data/MODEL_CARD.md) has a trained one.
"""

SERVICE = """Clients send one picture after another, each over a connection of its own, on the cores of the service. p50 and
p99 are of requests that are answered with tags, in ms. A client that is refused (429) sends its picture again when it is told
to: the third p99 counts from the first time. After 30 s a client leaves. `benchmarks/serving/` has what each contender is.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    tagging = with_demo_figures(TAGGING.read_text(encoding="utf-8"))
    pretrained = between(PRETRAINED.read_text(encoding="utf-8"), BEGIN_PRETRAINED, pretrained_table(), END_PRETRAINED)
    bulk = with_bulk_figures(BULK_PAGE.read_text(encoding="utf-8"))
    serving = between(
        SERVING.read_text(encoding="utf-8"),
        "<!-- service table, by benchmarks/report.py -->\n",
        service.short_tables(read(service.FILE)),
        "<!-- end of service table -->\n",
    )
    wanted = {
        README: with_tables(README.read_text(encoding="utf-8")),
        PAGE: page(),
        PRETRAINED: pretrained,
        TAGGING: tagging,
        SERVING: serving,
        BULK_PAGE: bulk,
    }
    if args.check:
        old = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
        for path in old:
            print(f"{path.relative_to(ROOT)}: differs from benchmarks/results; run benchmarks/report.py", file=sys.stderr)
        return int(bool(old))
    for path, text in wanted.items():
        path.write_text(text, encoding="utf-8")
    for path in result_files():
        draw(read(path), ROOT / "docs" / f"benchmarks-{path.stem}.svg")
    service.draw(read(service.FILE), ROOT / "docs" / "benchmarks-serve.svg")
    if bulk_page.BULK.exists():
        bulk_page.draw(ROOT / "docs" / "bulk.svg")
    return 0


def with_tables(readme: str) -> str:
    readme = between(readme, BEGIN, readme_table(), END)
    return between(readme, BEGIN_SUPPORT, support_table(), END_SUPPORT)


def with_demo_figures(text: str) -> str:
    """docs/tagging.md with what `demo_figures` measured on the model that ships."""
    found = json.loads(DEMO.read_text(encoding="utf-8"))
    clear, crops = found["clearness"], found["crops"]
    heat_maps = (
        f"In the model that ships, labels of what was drawn reach {clear['things']:.1f} (median, around the place where it was "
        f"drawn), the best\nlabels of pictures of one colour {clear['flat']:.1f}, of noise {clear['noise']:.1f}.\n"
    )
    each = ", ".join(f"{100 * crops[name]:.1f} with `{name}`" for name in ("centre", "pad", "tiles"))
    shown = f"On {crops['pictures']} pictures of two generated scenes side by side"
    side_by_side = f"{shown}, the shipped model's mAP over labels is\n{each}.\n"
    text = between(text, "<!-- heat maps, by benchmarks/report.py -->\n", heat_maps, "<!-- end of heat maps -->\n")
    return between(text, "<!-- crops, by benchmarks/report.py -->\n", side_by_side, "<!-- end of crops -->\n")


def with_bulk_figures(text: str) -> str:
    """docs/bulk.md with what `bulk` measured, and what follows from other results; as it is until there are results."""
    if not bulk_page.BULK.exists():
        return text
    for name, figures in (("measured", bulk_page.measured()), ("sizes", bulk_page.sizes())):
        begin, end = f"<!-- bulk {name}, by benchmarks/report.py -->\n", f"<!-- end of bulk {name} -->\n"
        text = between(text, begin, figures, end)
    return text


def between(text: str, begin: str, inside: str, end: str) -> str:
    """The text with everything between two of its lines replaced."""
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return before + begin + inside + end + after


def page() -> str:
    """docs/benchmarks.md: every record of every machine."""
    gpus = result_files(gpu=True)
    no_gpu = ": no GPU's results are among them, so the fused kernels and ONNX Runtime's CUDA provider have no times"
    parts = [INTRODUCTION.replace("{no_gpu}", "" if gpus else no_gpu) + (GLOSSARY.lstrip() if gpus else "")]
    for path in result_files():
        results, peers = (ordered(read(path)), GPU_PEERS) if path in gpus else (read(path), CPU_PEERS)
        records = results["records"]
        parts += [
            f"## {path.stem}\n\n{caption(results)}\n![Latency, memory and distance to the floor](benchmarks-{path.stem}.svg)\n"
        ]
        parts += ["### One picture, ms\n", summary(results, peers)]
        parts += ["### Latency, one picture, ms\n", latency(records)]
        if any(record["batch"] > 1 for record in records):
            parts += ["### Several pictures at once, pictures/s\n", throughput(records)]
        if path not in gpus:
            parts += ["### Stages of one picture, ms\n", stages(records), "### Cold start, ms\n", cold_start(records)]
        parts += ["### Scores against eager in fp32\n", drift(records)]
        parts += sections(results) if path in gpus else []
    parts += ["## The service\n\n![Pictures a second and latency by clients](benchmarks-serve.svg)\n"]
    parts += [SERVICE, service.full_tables(read(service.FILE))]
    return "\n".join(parts)


def latency(records: list[Record]) -> str:
    keys = ("p50_ms", "p90_ms", "p99_ms", "runs")
    rows = []
    for record in (r for r in records if r["batch"] == 1):
        ok = record["status"] == "ok"
        memory = f"{record['peak_bytes'] / 1e9:.2f}" if ok else record["status"]
        rows.append(
            [name_of(record), record["labels"], *(record.get(k, "") for k in keys), memory, record.get("times_floor", "")]
        )
    return table(["contender", "labels", "p50", "p90", "p99", "runs", "peak GB", "times the floor"], rows)


def throughput(records: list[Record]) -> str:
    batches = sorted({record["batch"] for record in records})
    found = {(name_of(r), r["labels"], r["batch"]): r.get("images_per_s", r["status"].partition(":")[0]) for r in records}
    names = dict.fromkeys((name, labels) for name, labels, _ in found)
    rows = [[name, labels, *(found.get((name, labels, batch), "") for batch in batches)] for name, labels in names]
    return table(["contender", "labels", *(f"batch {batch}" for batch in batches)], rows)


def stages(records: list[Record]) -> str:
    """One row per contender and label count. Stages that were not measured by themselves are left out, and the text says so."""
    names, own = list(STAGE_NAMES), [record for record in records if record["batch"] == 1]
    old = any("stages_ms" in record for record in own)
    if old:
        names.remove("svfr")
    times = [(record, record.get(STAGES) or record.get("stages_ms")) for record in own]
    rows = [[name_of(record), record["labels"], *(found.get(name, "") for name in names)] for record, found in times if found]
    return table(["contender", "labels", *names], rows) + (f"\n{NO_SVFR}\n" if old else "")


def cold_start(records: list[Record]) -> str:
    own = [record for record in records if "cold_start_ms" in record and record["batch"] == 1]
    names = ("start_and_import", "open", "first_picture")
    rows = [[name_of(record), record["labels"], *(record["cold_start_ms"][name] for name in names)] for record in own]
    return table(["contender", "labels", "start and import", "open", "first picture"], rows)


def drift(records: list[Record]) -> str:
    own = [record for record in records if "drift" in record]
    names = ("pictures", "score_error", "largest_score", "top1", "top5_overlap")
    rows = [[name_of(record), record["labels"], *(record["drift"][name] for name in names)] for record in own]
    header = ["contender", "labels", "pictures", "largest error", "largest score", "same best label", "of the five best"]
    return table(header, rows)


def draw(results: dict[str, Any], path: Path) -> None:
    """Latency, memory and distance to the floor against labels, one picture."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sigrl-deploy"  # the same figures, the same file
    from matplotlib import pyplot as plt

    records = [record for record in results["records"] if record["batch"] == 1 and record["status"] == "ok"]
    panels = (("p50_ms", 1, "latency, ms"), ("peak_bytes", 1e9, "peak memory, GB"), ("times_floor", 1, "times the floor"))
    figure, axes = plt.subplots(1, len(panels), figsize=(15, 4.5), layout="constrained")
    for axis, (key, unit, title) in zip(axes, panels, strict=True):
        for name in dict.fromkeys(map(name_of, records)):
            points = sorted((r["labels"], r[key] / unit) for r in records if name_of(r) == name and key in r)
            axis.plot(*zip(*points, strict=True) if points else ([], []), marker="o", markersize=3, label=name)
        axis.set(xscale="log", yscale="log", xlabel="labels", title=title)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
