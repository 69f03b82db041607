"""`sigrl-deploy infer`."""

from __future__ import annotations

import io
import logging
import sys
from typing import TYPE_CHECKING, Any

import click

from sigrl_deploy.cli.options import (
    PATH,
    background_option,
    batch_size_option,
    build_option,
    bundle_option,
    cache_option,
    check_finite,
    crop_option,
    engine_options,
    labels_option,
    rescale_option,
    running_options,
    threads_option,
    threshold_option,
    thresholds_option,
    top_option,
)
from sigrl_deploy.errors import UsageError

if TYPE_CHECKING:
    from sigrl_deploy.tagging.run import InferOptions

log = logging.getLogger(__name__)


@click.command()
@click.argument("pictures", nargs=-1, required=True)
@click.option(
    "-0", "--null", is_flag=True, help="Names in the list on standard input end with a null byte, as find -print0 writes them."
)
@bundle_option
@labels_option
@background_option
@top_option
@threshold_option
@thresholds_option
@rescale_option
@click.option(
    "--scores",
    type=click.Choice(["top", "all"]),
    default="top",
    show_default=True,
    help="all: every label's score, in the order of the label file.",
)
@click.option(
    "--format",
    type=click.Choice(["table", "json", "jsonl", "csv"]),
    help="Output format [default: by the ending of --out, or table].",
)
@click.option(
    "--raw-csv", is_flag=True, help="CSV for programs: put no quote before text that a spreadsheet would run as a formula."
)
@click.option("--out", type=PATH, help="Write to this file instead of standard output: .jsonl, .json, .csv or .txt.")
@click.option("--overwrite", is_flag=True, help="Replace the file of --out, and what an interrupted run left of it.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run of --format jsonl --out FILE.")
@click.option("--retry-errors", is_flag=True, help="With --resume, try pictures again that could not be read.")
@click.option(
    "--heatmaps", type=PATH, metavar="DIR", help="Folder for heat maps, one file per picture: where in it each label was found."
)
@click.option("--heatmap-per-tag", is_flag=True, help="With --heatmaps, a file per tag in place of one per picture.")
@batch_size_option
@crop_option
@running_options
@click.option(
    "--device-preprocess",
    is_flag=True,
    help="Resize pictures on the device instead of in Pillow (--backend torch); prints how far that changes scores.",
)
@build_option
@cache_option
@threads_option
def infer(pictures: tuple[str, ...], null: bool, scores: str, **options: Any) -> None:
    """Tag PICTURES: files, folders (searched recursively), globs, or - for a list on standard input."""
    from sigrl_deploy.pictures.finding import STDIN, find_pictures
    from sigrl_deploy.tagging.run import InferOptions, run_infer

    if scores == "all" and any(options[name] is not None for name in ("top", "threshold", "thresholds")):
        problem = "gives every label, so leave out `top`, `threshold` and `thresholds`"
        raise UsageError(problem, argument="scores", value=scores)
    if scores == "all" and options["heatmaps"] is not None:
        problem = "heat maps are drawn for the best labels only; leave out `heatmaps` or `scores='all'`"
        raise UsageError(problem, argument="scores", value=scores)
    check_finite(options, "threshold")
    if null and STDIN not in pictures:
        raise UsageError("is for a list on standard input; give - in place of PICTURES, or leave it out", argument="null")
    found = find_pictures(pictures, sys.stdin.buffer if sys.stdin else io.BytesIO(), null_separated=null)
    chosen = InferOptions(
        found.paths, named=frozenset(pictures), all_scores=scores == "all", engine=engine_options(options), **options
    )
    try:
        failed = run_infer(chosen)
    except KeyboardInterrupt:
        _report_interrupted(chosen)
        raise
    if found.skipped_line:
        log.warning(found.skipped_line)
    if failed:
        log.error("%d picture%s could not be read or scored; see the errors in the output", failed, "" if failed == 1 else "s")
        raise SystemExit(1)


def _report_interrupted(options: InferOptions) -> None:
    """Say what is kept of an interrupted run."""
    from sigrl_deploy.tagging.output import choose_format
    from sigrl_deploy.tagging.partial import partial_path, records_kept

    if options.out is None:
        return
    if choose_format(options.format, options.out) != "jsonl":
        log.error("%s was not written; with --format jsonl an interrupted run keeps its records", options.out)
    elif kept := records_kept(options.out):
        log.error("%s holds %s; continue with --resume", partial_path(options.out), kept)
