"""`sigrl-deploy infer`."""

from __future__ import annotations

import io
import logging
import math
import sys
from typing import Any

import click

from sigrl_deploy.cli.options import (
    MOST_PICTURES,
    PATH,
    backend_option,
    build_option,
    bundle_option,
    cache_option,
    device_option,
    precision_option,
    threads_option,
    unfused_option,
)
from sigrl_deploy.errors import UsageError

log = logging.getLogger(__name__)


@click.command()
@click.argument("pictures", nargs=-1, required=True)
@click.option("-0", "--null", is_flag=True, help="The list on standard input ends each name with a null byte, as find -print0.")
@bundle_option
@click.option("--labels", type=PATH, help="Label file, one a line [default: the vocabulary in the bundle].")
@click.option("--top", type=click.IntRange(min=1), help="At most so many labels a picture [default: 5].")
@click.option("--threshold", type=float, help="No label that scores below this; it holds for one vocabulary only.")
@click.option(
    "--scores", type=click.Choice(["top", "all"]), default="top", help="all: every label's score, in the file's order."
)
@click.option("--format", type=click.Choice(["table", "json", "jsonl", "csv"]), help="[default: by --out's ending, or table]")
@click.option(
    "--raw-csv", is_flag=True, help="CSV for programs: no quote before text that a spreadsheet would run as a formula."
)
@click.option("--out", type=PATH, help="Write to a file instead of standard output: .jsonl, .json, .csv or .txt.")
@click.option("--overwrite", is_flag=True, help="Replace FILE of --out, and what an interrupted run left of it.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted run of --format jsonl --out FILE.")
@click.option("--retry-errors", is_flag=True, help="With --resume, read pictures again that could not be read.")
@click.option(
    "--heatmaps", type=PATH, metavar="DIR", help="Folder for a heat map a tag: where in the picture the label was found."
)
@click.option(
    "--batch-size", type=click.IntRange(1, MOST_PICTURES), help="Pictures at once [default: 1 on a CPU, 16 on a GPU]."
)
@device_option
@backend_option
@precision_option
@unfused_option
@click.option(
    "--device-preprocess", is_flag=True, help="Resize pictures on the device, not in Pillow (--backend torch); says the drift."
)
@build_option
@cache_option
@threads_option
def infer(pictures: tuple[str, ...], null: bool, scores: str, **options: Any) -> None:
    """Tag PICTURES: files, folders (recursively), globs, or - for a list on standard input."""
    from sigrl_deploy.pictures.finding import STDIN, find_pictures
    from sigrl_deploy.tagging.run import InferOptions, run_infer

    if scores == "all" and (options["top"] is not None or options["threshold"] is not None):
        raise UsageError("--scores all: gives every label, so leave out --top and --threshold")
    if scores == "all" and options["heatmaps"] is not None:
        raise UsageError("--scores all: heat maps are drawn of the best labels only; leave out --heatmaps or --scores all")
    if options["threshold"] is not None and not math.isfinite(options["threshold"]):
        raise UsageError(f"--threshold {options['threshold']}: expected a finite number, such as 0.02")
    if null and STDIN not in pictures:
        raise UsageError("--null: is about a list on standard input; give - in place of PICTURES, or leave it out")
    found = find_pictures(pictures, sys.stdin.buffer if sys.stdin else io.BytesIO(), null_separated=null)
    options["top"] = options["top"] or 5
    failed = run_infer(InferOptions(found.paths, all_scores=scores == "all", **options))
    if found.skipped_line:
        log.warning(found.skipped_line)
    if failed:
        log.error("%d picture%s could not be read or scored; the records say why", failed, "" if failed == 1 else "s")
        raise SystemExit(1)
