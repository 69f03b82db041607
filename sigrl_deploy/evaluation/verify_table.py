"""What `verify` found, as a table for people that fits a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sigrl_deploy.errors import SigRLError, printable
from sigrl_deploy.evaluation.verify import Comparison, Verification, short_name

_WIDTH = 100  # columns of a terminal
_HEAD = ("engine", "largest", "allowed", "mean", "cosine", "top-1", "top-5", "flips", "mAP")


def table(found: Verification, message: Callable[[SigRLError], str] = str) -> str:
    """One row per model, and below it what the columns mean and what did not run. Ends with a line feed.

    `message` makes one line of an error.
    """
    rows = [[*_HEAD], [f"reference: {printable(short_name(found.reference))}", *[""] * 7, _percent(found.reference_map)]]
    rows += [_row(comparison) for comparison in found.comparisons]
    if found.reference_map is None:
        rows = [row[:-1] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    widths[0] = min(widths[0], _WIDTH - sum(2 + width for width in widths[1:]))
    lines = ["  ".join(_aligned(row, widths)).rstrip() for row in rows]
    pictures = f"{found.pictures} picture{'' if found.pictures == 1 else 's'}"
    labels = f"{found.labels} label{'' if found.labels == 1 else 's'}"
    lines += [
        "",
        f"Reference: {printable(found.reference)}.",
        f"{pictures}, {labels}. Errors of scores, ! where too large; lowest cosine of a picture.",
        f"In percent: same best label, same five best labels, scores across {_across(found.threshold)}.",
        *_flipping(found),
    ]
    return "\n".join([*lines, *not_run_lines(found.not_run, message)]) + "\n"


def _across(threshold: float | str) -> str:
    return f"the thresholds of {printable(threshold)}" if isinstance(threshold, str) else f"the threshold {threshold:.4g}"


def _flipping(found: Verification) -> list[str]:
    """The labels that cross a threshold of their own most often, by engine."""
    if not isinstance(found.threshold, str):
        return []
    return [
        f"Across in {_name(one)}: " + ", ".join(f"{printable(label)} {count}×" for label, count in one.flipping.items())
        for one in found.comparisons
        if one.flipping
    ]


def _row(one: Comparison) -> list[str]:
    allowed = f"{one.tolerance:g}{'' if one.within else ' !'}"
    errors = [f"{one.largest_error:.1e}", allowed, f"{one.mean_error:.1e}", f"{one.cosine:.6f}"]
    return [_name(one), *errors, *map(_percent, (one.top1_agreement, one.top5_overlap, one.flips, one.map))]


def _name(one: Comparison) -> str:
    """The precision and then the engine, of which the log has the whole description."""
    engine = short_name(one.description).replace(f", {one.precision}", "", 1)
    return printable(f"{one.precision} {engine}")


def _aligned(row: list[str], widths: list[int]) -> list[str]:
    """Text to the left, cut where it is too long, and numbers to the right."""
    name = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 1] + "…"
    return [name.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]


def not_run_lines(not_run: Mapping[str, SigRLError], message: Callable[[SigRLError], str] = str) -> list[str]:
    """One line for each reason, with every backend and precision that it kept from running."""
    reasons: dict[str, list[str]] = {}
    for name, error in not_run.items():
        reasons.setdefault(message(error), []).append(name)
    return [f"not run: {', '.join(names)}: {printable(reason)}" for reason, names in reasons.items()]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"
