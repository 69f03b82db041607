"""Write the tables of the demo checkpoint's model card from `results/scenes.json`.

python -m benchmarks.model_card
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sigrl_deploy.files import replacing

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "scenes.json"
CARD = ROOT / "sigrl_deploy" / "data" / "MODEL_CARD.md"
FIGURES = ROOT / "sigrl_deploy" / "data" / "scenes-figures.json"  # which the demo's page shows
MARKERS = "<!-- results, by benchmarks/model_card.py -->", "<!-- end of results -->"
NAMES = {
    "chance": "chance",
    "nearest": "nearest neighbours on pixels",
    "clip": "CLIP, normalised features",
    "clip-ft": "CLIP-FT",
    "mkt": "MKT",
    "sigrl": "SigRL",
    "sigrl without gmc": "SigRL without GMC",
    "sigrl without svfr": "SigRL without SVFR",
    "sigrl without local": "SigRL without the local match",
    "sigrl without global": "SigRL without the global match",
}


def models_table(records: list[dict[str, Any]]) -> str:
    """Percent, mean ± sample standard deviation over the seeds where they differ."""
    columns = [(s, m) for s in ("unseen", "seen", "all") for m in ("map", "f1_3")]
    head = "| | " + " | ".join(f"{s} {'mAP' if m == 'map' else 'F1@3'}" for s, m in columns) + " |"
    lines = [head, "| --- |" + " ---: |" * len(columns)]
    for model, name in NAMES.items():
        cells = []
        for label_set, metric in columns:
            values = [100 * r[metric] for r in records if r["model"] == model and r["label_set"] == label_set]
            spread = f" ± {np.std(values, ddof=1):.1f}" if np.ptp(values or [0]) > 0 else ""
            cells.append(f"{np.mean(values):.1f}{spread}" if values else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def engines_table(engines: list[dict[str, Any]]) -> str:
    """Each engine against the eager checkpoint; agreement in percent of pictures, mAP in points."""
    lines = [
        "| engine | precision | labels | mAP | difference | same top label | same top 3 | largest score difference |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for e in engines:
        apart = e["difference"]
        shares = [f"{100 * apart[name]:.2f}" for name in ("top1_agreement", "top3_agreement")]
        numbers = [f"{100 * e['map']:.2f}", f"{100 * apart['map']:+.3f}", *shares, f"{apart['largest_score']:.1e}"]
        lines.append(f"| {' | '.join([e['backend'], e['engine'], e['label_set'], *numbers])} |")
    return "\n".join(lines)


def heads_table(heads: dict[str, Any]) -> str:
    """How far each matrix of SVFR and GMC moved from where training started, and the energies."""
    lines = ["| | spread before | spread after | moved |", "| --- | ---: | ---: | ---: |"]
    for name, entry in heads["weights"].items():
        moved = f"{100 * entry['moved']:.0f} %"
        lines.append(f"| `{name}` | {entry['before']:.4f} | {entry['after']:.4f} | {moved} |")
    for name, entry in heads["energies"].items():
        lines.append(f"| {name} over patches | {entry['before']:.2f} | {entry['after']:.2f} | |")
    return "\n".join(lines)


def write_card(results: dict[str, Any]) -> None:
    if "heads" not in results:
        raise SystemExit(f"error: {RESULTS}: is of an older recipe; run python -m benchmarks.demo_checkpoint")
    text = CARD.read_text(encoding="utf-8")
    before, rest = text.split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    seeds = sorted({r["seed"] for r in results["records"] if r["model"] == "sigrl"})
    best = [results["best_steps"][str(seed)]["sigrl"] for seed in seeds]
    subject = "The checkpoint that ships" if results["shipped"] else "SigRL of seed 0"
    tables = (
        f"{models_table(results['records'])}\n\n"
        f"Percent, on {results['pictures']} test pictures, {results['date']}: mean and standard deviation over the seeds "
        f"{', '.join(map(str, seeds))} of the heads, all from one CLIP that was trained by {results['clip_steps']} updates. "
        f"SigRL was best after {', '.join(map(str, best))} updates. A row without a deviation does not depend on the seed.\n\n"
        f"{heads_table(results['heads'])}\n\n"
        "SVFR and GMC of seed 0, before training and after: the standard deviation of each matrix, how far it moved "
        "(‖after − before‖ / ‖before‖), and the standard deviation of the energies over the patches of a picture.\n\n"
        f"{engines_table(results['engines'])}\n\n"
        f"{subject}, exported, against itself in PyTorch, on the same test pictures."
    )
    maps = {r["label_set"]: r["map"] for r in results["records"] if (r["model"], r["seed"]) == ("sigrl", 0)}
    if results["shipped"]:
        with replacing(FIGURES) as temporary:
            temporary.write_text(json.dumps({"pictures": results["pictures"], "map": maps}, indent=1) + "\n", encoding="utf-8")
    with replacing(CARD) as temporary:
        temporary.write_text(f"{before}{MARKERS[0]}\n{tables}\n{MARKERS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    write_card(json.loads(RESULTS.read_text(encoding="utf-8")))
