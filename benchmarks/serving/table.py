"""Tables and plot of what `benchmarks/serve.py` measured."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.serve import IN_PROCESS, MODELS, OURS, SERVICES
from benchmarks.tables import RESULTS, Record, table

FILE = RESULTS / "serve.json"
ALONE, MANY, MOST = 1, 64, 1000  # clients of the short table


def short_tables(results: Record) -> str:
    """What decides, for docs/serving.md: one client, 64, and 1,000."""
    header = ["", "one client, ms", "64 clients, pictures/s", "p99, ms", "1,000 clients, pictures/s", "p99, ms", "refused"]
    parts = []
    for model in models(results):
        inside = of(results, model, IN_PROCESS)
        rows = [[IN_PROCESS, f"{median(r['alone_ms']['p50'] for r in inside):.1f}", per_second(inside), "", "", "", ""]]
        for name in contenders(results, model):
            alone, many, most = (of(results, model, name, clients) for clients in (ALONE, MANY, MOST))
            rows.append(
                [name, p(alone, "p50"), per_second(many), p(many, "p99", 0), per_second(most), p(most, "p99", 0), refused(most)]
            )
        parts.append(f"{MODELS[model][0].upper()}{MODELS[model][1:]}:\n\n{table(header, rows)}")
    return "\n".join(parts) + f"\n{caption(results)}"


def full_tables(results: Record) -> str:
    """Everything, for docs/benchmarks.md."""
    header = [
        "contender",
        "clients",
        "pictures/s",
        "p50",
        "p99",
        "p99 with what was refused before",
        "refused",
        "left or closed",
    ]
    parts = []
    for model in models(results):
        rows = []
        for name in contenders(results, model):
            for clients in dict.fromkeys(r["clients"] for r in results["records"] if "clients" in r):
                if found := of(results, model, name, clients):
                    p99 = p(found, "p99", which="picture_ms")
                    rows.append(
                        [name, clients, per_second(found), p(found, "p50"), p(found, "p99"), p99, refused(found), gone(found)]
                    )
        parts.append(f"### Service, {MODELS[model]}, ms\n\n{table(header, rows)}")
    return "\n".join(parts) + f"\n{memory(results)}{caption(results)}"


def memory(results: Record) -> str:
    """How much memory the service had in the course of a long run."""
    parts = []
    for model in dict.fromkeys(sample["model"] for sample in results["steady"]):
        samples = [sample for sample in results["steady"] if sample["model"] == model]
        each = ", ".join(f"{sample['rss_bytes'] / 1e6:.0f} MB after {sample['answered']:,}" for sample in samples)
        parts.append(f"Memory of the service, {MODELS[model]}, in a run of requests of 64 clients: {each}.\n")
    return "\n".join(parts)


def caption(results: Record) -> str:
    machine = results["machine"]
    rounds = max(record["round"] for record in results["records"]) + 1
    return (
        f"{machine['cpu']}, {machine['cores']} cores, which services and clients share; {machine['date']}; medians of up to "
        f"{rounds} rounds.\n"
    )


def models(results: Record) -> list[str]:
    return [model for model in MODELS if any(record["model"] == model for record in results["records"])]


def contenders(results: Record, model: str) -> list[str]:
    return [name for name in SERVICES if of(results, model, name)]


def of(results: Record, model: str, name: str, clients: int | None = None) -> list[Record]:
    """The records of all rounds."""
    return [
        record
        for record in results["records"]
        if (record["model"], record["contender"]) == (model, name) and clients in (None, record.get("clients"))
    ]


def per_second(records: list[Record]) -> str:
    return f"{median(record['per_second'] for record in records):.1f}" if records else ""


def p(records: list[Record], percentile: str, digits: int = 1, which: str = "answer_ms") -> str:
    found = [record[which][percentile] for record in records if record[which]]
    return f"{median(found):.{digits}f}" if found else ""


def refused(records: list[Record]) -> str:
    """The share of answers that told the client to come later."""
    return share(records, ("429",))


def gone(records: list[Record]) -> str:
    """The share of requests without an answer: the client's patience ended, or the connection."""
    return share(records, ("left", "closed"))


def share(records: list[Record], statuses: tuple[str, ...]) -> str:
    if not records:
        return ""
    some = sum(record["statuses"].get(status, 0) for record in records for status in statuses)
    every = sum(sum(record["statuses"].values()) for record in records)
    return f"{100 * some / every:.0f} %"


def draw(results: Record, path: Path) -> None:
    """Pictures a second and p99 against clients, one row a model."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sigrl-deploy"  # the same figures, the same file
    from matplotlib import pyplot as plt

    shown = models(results)
    figure, axes = plt.subplots(len(shown), 2, figsize=(12, 3.8 * len(shown)), layout="constrained", squeeze=False)
    for (left, right), model in zip(axes, shown, strict=True):
        for name in contenders(results, model):
            _line(left, results, model, name, lambda records: median(r["per_second"] for r in records))
            _line(right, results, model, name, lambda records: median(r["picture_ms"].get("p99", 0) for r in records))
        left.axhline(
            median(r["per_second"] for r in of(results, model, IN_PROCESS)), color="grey", linestyle=":", label=IN_PROCESS
        )
        left.set(xscale="log", ylim=(0, None), xlabel="clients", title=f"{model}: pictures a second")
        right.set(xscale="log", yscale="log", xlabel="clients", title=f"{model}: p99 until a picture is tagged, ms")
        for axis in (left, right):
            axis.grid(alpha=0.3)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _line(axis: Any, results: Record, model: str, name: str, value: Any) -> None:
    counts = dict.fromkeys(record["clients"] for record in of(results, model, name))
    points = [(clients, value(of(results, model, name, clients))) for clients in counts]
    own = {"linewidth": 2.5, "color": "black"} if name == OURS else {}
    axis.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name, **own)
