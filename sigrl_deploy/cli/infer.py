"""`sigrl-deploy infer`."""

from __future__ import annotations

import io
import logging
import math
import sys
from pathlib import Path

import click

from sigrl_deploy.cli.options import (
    PATH,
    backend_option,
    build_option,
    bundle_option,
    cache_option,
    device_option,
    precision_option,
    unfused_option,
)
from sigrl_deploy.errors import UsageError

log = logging.getLogger(__name__)


@click.command()
@click.argument("pictures", nargs=-1, required=True)
@bundle_option
@click.option("--labels", type=PATH, help="Label file, one a line [default: the vocabulary in the bundle].")
@click.option("--top", type=click.IntRange(min=1), help="At most so many labels a picture [default: 5].")
@click.option("--threshold", type=float, help="No label that scores below this; it holds for one vocabulary only.")
@click.option(
    "--scores", type=click.Choice(["top", "all"]), default="top", help="all: every label's score, in the file's order."
)
@click.option(
    "--format", "format_", type=click.Choice(["table", "json", "jsonl", "csv"]), help="[default: by --out's ending, or table]"
)
@click.option("--out", type=PATH, help="Write to a file instead of standard output.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of --format jsonl --out FILE.")
@click.option(
    "--heatmaps", type=PATH, metavar="DIR", help="Folder for a heat map a tag: where in the picture the label was found."
)
@click.option("--batch-size", type=click.IntRange(min=1), help="Pictures at once [default: 1 on a CPU, 16 on a GPU].")
@device_option
@backend_option
@precision_option
@unfused_option
@click.option(
    "--device-preprocess", is_flag=True, help="Resize pictures on the device, not in Pillow (--backend torch); says the drift."
)
@build_option
@cache_option
def infer(
    pictures: tuple[str, ...],
    bundle: Path,
    labels: Path | None,
    top: int | None,
    threshold: float | None,
    scores: str,
    format_: str | None,
    out: Path | None,
    resume: bool,
    heatmaps: Path | None,
    batch_size: int | None,
    device: str,
    backend: str,
    precision: str | None,
    unfused: tuple[str, ...],
    device_preprocess: bool,
    build: bool,
    cache_dir: Path | None,
) -> None:
    """Tag PICTURES: files, folders (recursively), globs, or - for a list on standard input."""
    from sigrl_deploy.infer import InferOptions, run_infer
    from sigrl_deploy.inputs import find_pictures

    if scores == "all" and (top is not None or threshold is not None):
        raise UsageError("--scores all: gives every label, so leave out --top and --threshold")
    if scores == "all" and heatmaps is not None:
        raise UsageError("--scores all: heat maps are drawn of the best labels only; leave out --heatmaps or --scores all")
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--threshold {threshold}: expected a finite number, such as 0.02")
    found = find_pictures(pictures, sys.stdin.buffer if sys.stdin else io.BytesIO())
    options = InferOptions(
        pictures=found.paths,
        bundle=bundle,
        labels=labels,
        top=top or 5,
        threshold=threshold,
        all_scores=scores == "all",
        format=format_,
        out=out,
        resume=resume,
        heatmaps=heatmaps,
        batch_size=batch_size,
        device=device,
        backend=backend,
        precision=precision,
        unfused=unfused,
        device_preprocess=device_preprocess,
        build=build,
        cache_dir=cache_dir,
    )
    failed = run_infer(options)
    if found.skipped_line:
        log.warning(found.skipped_line)
    if failed:
        log.error("%d picture%s could not be read; the records say why", failed, "" if failed == 1 else "s")
        raise SystemExit(1)
