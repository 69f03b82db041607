"""`sigrl-deploy verify`."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import click

from sigrl_deploy.cli.error_lines import error_line
from sigrl_deploy.cli.options import (
    MOST_PICTURES,
    PATH,
    background_option,
    bundle_argument,
    cache_option,
    check_finite,
    checkpoint_options,
    device_option,
    rescale_option,
    threads_option,
)
from sigrl_deploy.config import Backend, Precision
from sigrl_deploy.errors import UsageError, VerificationError, printable

log = logging.getLogger(__name__)


@click.command()
@bundle_argument
@click.argument("pictures", nargs=-1, required=True)
@click.option(
    "--labels",
    type=PATH,
    help="Label file, as for infer [default: the labels of labels.csv, or the vocabulary in the bundle].",
)
@click.option("--checkpoint", type=PATH, help="The checkpoint that the bundle was exported from; it becomes the reference.")
@click.option("--text-tower", help="The checkpoint's, as for export.")
@click.option("--clip-config", help="The checkpoint's, as for export.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    type=click.Choice([backend.value for backend in Backend.named()]),
    help="Compare only this one; repeatable [default: all that run here].",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice([precision.value for precision in Precision]),
    help="Compare only this one; repeatable [default: all that the bundle holds].",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    help="Largest score error that is allowed [default: each precision's own, as for export].",
)
@click.option(
    "--threshold",
    type=float,
    help="Count scores that move across it [default: one that about five labels per picture pass].",
)
@background_option
@click.option(
    "--thresholds", type=PATH, help="File that calibrate wrote: count scores that move across each label's own threshold."
)
@rescale_option
@click.option("--batch-size", type=click.IntRange(1, MOST_PICTURES), default=1, show_default=True, help="Pictures per batch.")
@device_option
@cache_option
@threads_option
def verify(bundle: Path, pictures: tuple[str, ...], **options: Any) -> None:
    """Compare every backend that runs BUNDLE here, on your own PICTURES: files, folders, globs, or - for a list on stdin.

    The reference is the --checkpoint, or else the most exact of the bundle's graphs. For a folder with a labels.csv, or the
    path of such a file, the pictures and labels are taken from it, and mAP is measured too. The result is also written into
    the bundle's manifest.

    Exit status 3 if an error exceeds its tolerance, 1 if pictures could not be read.
    """
    options["checkpoint"] = checkpoint_options(options)
    from sigrl_deploy.evaluation.verify import NothingToCompareError, VerifyOptions
    from sigrl_deploy.evaluation.verify import verify as run
    from sigrl_deploy.evaluation.verify_table import not_run_lines, table
    from sigrl_deploy.tagging.output import open_output

    check_finite(options, "tolerance", "threshold")
    if options["threshold"] is not None and options["thresholds"] is not None:
        raise UsageError("`thresholds` has one for every label; leave out one of the two", argument="threshold")
    options["precisions"] = tuple(map(Precision, options["precisions"]))
    message = partial(error_line, verb=click.get_current_context().command)
    try:
        found = run(VerifyOptions(bundle, list(pictures), **options))
    except NothingToCompareError as error:  # what to do stands first; the reasons are many
        click.echo("\n".join([f"error: {message(error)}", *not_run_lines(error.not_run, message)]), err=True)
        raise SystemExit(error.exit_code) from None
    with open_output("table", None) as stream:
        stream.write(table(found, message))
    for name, reason in found.unreadable.items():
        log.error("%s: %s", printable(name), reason)
    exceeded = [comparison for comparison in found.comparisons if not comparison.within]
    if exceeded:
        worst = max(
            exceeded, key=lambda comparison: comparison.largest_error / comparison.tolerance if comparison.tolerance else 1
        )
        raise VerificationError(
            f"{bundle}: {worst.description} is {worst.largest_error:.1e} from the reference, more than its tolerance of "
            f"{worst.tolerance:g}; use another precision or backend, or allow more with `tolerance`"
        )
    if found.unreadable:
        raise SystemExit(1)
