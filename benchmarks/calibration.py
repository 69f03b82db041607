"""What calibration reaches on `scenes`: F1 by thresholds that were fitted in several ways, goals kept, probabilities.

python -m benchmarks.calibration                  # the shipped checkpoint
python -m benchmarks.calibration CHECKPOINT

Thresholds are fitted on pictures that are drawn from the validation split, several times, and always measured on the same
pictures of the test split. Rules were chosen on the validation split alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.tables import table
from sigrl_deploy.arrays import FloatArray, Targets
from sigrl_deploy.calibration.fitting import fit_quantiles, fit_thresholds
from sigrl_deploy.calibration.goals import best_threshold, parse_goal
from sigrl_deploy.calibration.pooling import known
from sigrl_deploy.calibration.probabilities import fit_probabilities, reliability
from sigrl_deploy.calibration.quality import quality
from sigrl_deploy.calibration.validation import best_k, top_k
from sigrl_deploy.checkpoints.eager import EagerModel, load_eager
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import Precision
from sigrl_deploy.datasets.dataset import POSITIVE
from sigrl_deploy.datasets.scenes import LABELS, Scenes
from sigrl_deploy.evaluation.scoring import Model, score_pictures
from sigrl_deploy.files import replacing, sha256_file

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "sigrl_deploy" / "data" / "scenes-sigrl.safetensors"
RESULTS = ROOT / "benchmarks" / "results" / "calibration.json"
PICTURES = 1000  # of each split
DRAWS = {50: 40, 600: 10, 1000: 1}  # how often so many calibration pictures are drawn
TAGS = 5.5  # a picture, which a user would have to know
TWELVE = LABELS[::9]
F1 = parse_goal("f1")

Scored = tuple[FloatArray, Targets]
Decide = Callable[[FloatArray, Targets, FloatArray], NDArray[np.bool_]]  # calibration scores and targets, others' scores


def scored(model: EagerModel, path: Path, split: str, labels: tuple[str, ...]) -> Scored:
    described = Model(path, model.description, model.arch, Precision.FP32, model.device, model)
    found = score_pictures(Scenes(split), range(PICTURES), labels, [described], 32)
    return found.scores[0], found.targets


def own_thresholds(scores: FloatArray, targets: Targets, halfway: float) -> NDArray[np.float64]:
    """Each label's best threshold alone, drawn to the global one by n / (n + halfway)."""
    fitted = fit_thresholds(scores, targets, F1)
    own = [
        best_threshold(*known(scores[:, c], targets[:, c]), F1) if positives else fitted.global_threshold
        for c, positives in enumerate(fitted.positives)
    ]
    weight = fitted.positives / np.maximum(1, fitted.positives + halfway)
    return weight * np.array(own) + (1 - weight) * fitted.global_threshold


WAYS: dict[str, Decide] = {
    "best top k": lambda scores, targets, others: top_k(others, best_k(scores, targets)),
    "one threshold": lambda scores, targets, others: others >= fit_thresholds(scores, targets, F1).global_threshold,
    "best of each label": lambda scores, targets, others: others >= own_thresholds(scores, targets, 0),
    "the same, n / (n + 10)": lambda scores, targets, others: others >= own_thresholds(scores, targets, 10),
    "fit_thresholds": lambda scores, targets, others: others >= fit_thresholds(scores, targets, F1).thresholds,
    "fit_quantiles": lambda scores, targets, others: others >= fit_quantiles(scores, TAGS)[1],
}


def draws(scores: FloatArray, targets: Targets, pictures: int) -> list[Scored]:
    rng = np.random.default_rng(pictures)
    drawn = [rng.permutation(len(scores))[:pictures] for _ in range(DRAWS[pictures])]
    return [(scores[rows], targets[rows]) for rows in drawn]


def f1(calibration: Scored, others: Scored, pictures: int) -> list[dict[str, Any]]:
    """Micro and macro F1 of each way: the mean over draws, and its spread over them."""
    records = []
    for way, decide in WAYS.items():
        found = [figures(decide(*drawn, others[0]), others[1]) for drawn in draws(*calibration, pictures)]
        records.append({"pictures": pictures, "way": way, "f1": np.mean(found, 0).tolist(), "sd": np.std(found, 0).tolist()})
    return records


def figures(decided: NDArray[np.bool_], targets: Targets) -> tuple[float, float]:
    positive = targets == POSITIVE
    hits, both = (decided & positive).sum(0), decided.sum(0) + positive.sum(0)
    return float(2 * hits.sum() / both.sum()), float((2 * hits / np.maximum(1, both)).mean())


def goals(calibration: Scored, others: Scored, pictures: int) -> list[dict[str, Any]]:
    """Micro precision and recall by thresholds for a precision or a recall, on other pictures."""
    records = []
    for text in ("precision@0.5", "precision@0.7", "recall@0.5", "recall@0.8"):
        found = []
        for drawn in draws(*calibration, pictures):
            micro = quality(others[0] >= fit_thresholds(*drawn, parse_goal(text)).thresholds, others[1]).micro
            found.append((micro.precision.value, micro.recall.value))
        precision, recall = np.mean(found, 0).tolist()
        records.append({"pictures": pictures, "goal": text, "precision": precision, "recall": recall})
    return records


def probabilities(calibration: Scored, others: Scored, pictures: int) -> dict[str, Any]:
    curves = [fit_probabilities(*drawn) for drawn in draws(*calibration, pictures)]
    errors = [reliability(curve(others[0]), others[1]).error for curve in curves]
    return {"pictures": pictures, "curve": type(curves[0]).__name__, "calibration_error": float(np.mean(errors))}


def twelve(model: EagerModel, path: Path, calibration: Scored, others: Scored) -> dict[str, float]:
    """Macro F1 of twelve labels: scored alone, and read out of the scores of all; thresholds from 600 pictures."""
    columns = [LABELS.index(label) for label in TWELVE]
    ways = {
        "alone": (scored(model, path, "val", TWELVE), scored(model, path, "test", TWELVE)),
        "of all": tuple((scores[:, columns], targets[:, columns]) for scores, targets in (calibration, others)),
    }
    decide = WAYS["fit_thresholds"]
    return {
        way: float(np.mean([figures(decide(*drawn, test[0]), test[1])[1] for drawn in draws(*val, 600)]))
        for way, (val, test) in ways.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=SHIPPED)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_eager(CheckpointOptions(args.checkpoint))
    calibration, others = (scored(model, args.checkpoint, split, LABELS) for split in ("val", "test"))
    f1s = [record for pictures in DRAWS for record in f1(calibration, others, pictures)]
    results = {
        "date": date.today().isoformat(),
        "checkpoint": {"name": args.checkpoint.name, "sha256": sha256_file(args.checkpoint)},
        "labels": len(LABELS),
        "others": PICTURES,
        "draws": DRAWS,
        "tags_per_picture": TAGS,
        "f1": f1s,
        "goals": [record for pictures in DRAWS for record in goals(calibration, others, pictures)],
        "probabilities": [probabilities(calibration, others, pictures) for pictures in DRAWS],
        "twelve": twelve(model, args.checkpoint, calibration, others),
    }
    cells = {(r["way"], r["pictures"]): "{:.3f} / {:.3f}".format(*r["f1"]) for r in f1s}
    print(table(["micro / macro F1", *map(str, DRAWS)], [[way, *(cells[way, n] for n in DRAWS)] for way in WAYS]))
    for key in ("goals", "probabilities", "twelve"):
        print(key, json.dumps(results[key]))
    with replacing(args.out) as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
