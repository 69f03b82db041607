"""The results of an evaluation: a table for people, in percent, and JSON for programs, in fractions (0 to 1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

from sigrl_deploy.errors import printable
from sigrl_deploy.evaluation.metrics import TOP_K
from sigrl_deploy.evaluation.run import EvaluateOptions, Evaluation, LabelSetResult, ModelResult
from sigrl_deploy.version import tool_versions

_PATH_WIDTH = 40
_DECIDED = ["F1", "macro-F1", "precision", "recall", "tags"]  # at thresholds
_PACKAGES = ("numpy", "pillow", "scikit-learn")  # a model's description names the version of its backend


def table(evaluation: Evaluation) -> str:
    """One row per label set and model, and below them what the columns mean. Ends with a line feed."""
    sparse = any(None in row.metrics.average_precision for found in evaluation.label_sets for row in found.results)
    several = len({model.path for model in evaluation.models}) < len(evaluation.models)  # precisions of one bundle
    head = [
        "label set",
        "model",
        *["precision"] * several,
        "mAP",
        *["mAP present"] * sparse,
        *(f"F1@{k}" for k in TOP_K),
        "sample-F1@3",
        "macro-F1@3",
    ]
    head += ["pictures", "labels"]
    head += _DECIDED if _decides(evaluation) else []
    if len(evaluation.models) > 1:
        head += ["mAP diff", "top-1 same", "top-3 same", "score diff"]
    rows = [head]
    for found in evaluation.label_sets:
        rows += [_row(found, result, sparse, several, _decides(evaluation)) for result in found.results]
    widths = [max(len(row[i]) if i < len(row) else 0 for row in rows) for i in range(len(head))]
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", *_notes(evaluation, sparse)]) + "\n"


def _decides(evaluation: Evaluation) -> bool:
    return any(result.decisions is not None for found in evaluation.label_sets for result in found.results)


def _row(found: LabelSetResult, result: ModelResult, sparse: bool, several: bool, decides: bool) -> list[str]:
    metrics, difference = result.metrics, result.difference
    path = printable(str(result.model.path))
    row = [found.name, path if len(path) <= _PATH_WIDTH else "…" + path[1 - _PATH_WIDTH :]]
    row += [result.model.precision.value] * several + [_percent(metrics.map)]
    if sparse:
        row.append("-" if metrics.map_present is None else _percent(metrics.map_present))
    row += [*(_percent(metrics.top_k[k].f1) for k in TOP_K), _percent(metrics.top_k[3].sample_f1)]
    row += [_percent(metrics.top_k[3].macro_f1), str(found.pictures), str(len(found.labels))]
    if decides and result.decisions is None:
        row += ["-"] * len(_DECIDED)
    elif decides and result.decisions is not None:
        at = result.decisions
        row += [*map(_percent, (at.f1, at.macro_f1, at.precision, at.recall)), f"{at.tags:.2f}"]
    if difference is not None:
        agreement = [_percent(difference.top1_agreement), _percent(difference.top3_agreement)]
        row += [f"{100 * difference.map:+.2f}", *agreement, f"{difference.largest_score:.1e}"]
    return row


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"


def _aligned(row: list[str], widths: list[int]) -> Iterator[str]:
    """Text to the left, numbers to the right."""
    for i, (cell, width) in enumerate(zip(row, widths, strict=False)):
        yield cell.ljust(width) if i < 2 else cell.rjust(width)


def _notes(evaluation: Evaluation, sparse: bool) -> Iterator[str]:
    yield "mAP and F1 in percent; F1@K is micro, over each picture's K best labels."
    if _decides(evaluation):
        yield "F1, macro-F1, precision and recall are at the thresholds; tags is how many labels a picture then has."
        if any(result.decisions is None for found in evaluation.label_sets for result in found.results):
            yield "-: the thresholds are for another label set, bundle or precision."
    if sparse:
        for found in evaluation.label_sets:
            absent = found.results[0].metrics.average_precision.count(None)
            if absent:
                without = f"{absent} of {len(found.labels)} labels have no positive picture"
                yield f"{found.name}: {without}; mAP counts them as 0, mAP present leaves them out."
    for found in evaluation.label_sets:
        if len(found.labels) < max(TOP_K):
            yield f"{found.name}: K is cut to its {len(found.labels)} labels."
    if len(evaluation.models) > 1:
        reference = f"{printable(str(evaluation.models[0].path))} in {evaluation.models[0].precision.value}"
        yield f"Against {reference}: mAP in points; pictures with the same best label, and with the same three, in percent;"
        yield "largest score difference."


def as_json(evaluation: Evaluation, options: EvaluateOptions) -> dict[str, Any]:
    """All results. Lists by label are in the order of the label set's `labels`; paths are as they were given."""
    return {
        "data": options.data,
        "split": options.split,
        "validation_share": options.validation_share,
        "limit": options.limit,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": tool_versions(*_PACKAGES),
        "models": [
            {
                "path": str(model.path),
                "description": model.description,
                "arch": model.arch.value,
                "precision": model.precision.value,
                "device": model.device,
            }
            for model in evaluation.models
        ],
        "label_sets": [_label_set(found) for found in evaluation.label_sets],
        "unreadable": [{"picture": name, "error": reason} for name, reason in evaluation.unreadable],
    }


def _label_set(found: LabelSetResult) -> dict[str, Any]:
    """`results` has one entry per model, in the order of `models`; the first is the reference and has no difference."""
    results = []
    for result in found.results:
        metrics = asdict(result.metrics)
        del metrics["positives"]  # the same for every model
        results.append(
            metrics
            | {"difference": result.difference and asdict(result.difference)}
            | ({} if result.decisions is None else {"at_thresholds": asdict(result.decisions)})
        )
    return {
        "name": found.name,
        "labels": list(found.labels),
        "pictures": found.pictures,
        "positives": list(found.results[0].metrics.positives),
        "results": results,
    }
