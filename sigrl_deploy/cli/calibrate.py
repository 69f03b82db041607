"""`sigrl-deploy calibrate`."""

from __future__ import annotations

import logging
from typing import Any

import click

from sigrl_deploy.cli.options import (
    PATH,
    background_option,
    batch_size_option,
    bundle_option,
    cache_option,
    crop_option,
    engine_options,
    labels_option,
    running_options,
    threads_option,
)
from sigrl_deploy.errors import printable

log = logging.getLogger(__name__)


@click.command()
@click.argument("source")
@bundle_option
@labels_option
@background_option
@click.option("--out", type=PATH, required=True, help="Write the thresholds to this .json file.")
@click.option("--overwrite", is_flag=True, help="Replace the files of --out and of the plots.")
@click.option(
    "--metric",
    default="f1",
    show_default=True,
    metavar="f1|precision@P|recall@R",
    help="What a threshold is chosen for: the best F1, or a precision or recall of at least so much, such as precision@0.9.",
)
@click.option(
    "--tags-per-picture",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Do without the truth: thresholds that N labels per picture reach on average.",
)
@click.option("--probabilities", is_flag=True, help="Also fit a curve from scores to probabilities, which infer then shows.")
@click.option("--plot-precision", type=PATH, help="Draw precision against recall of each label into this .png or .svg file.")
@click.option(
    "--plot-reliability", type=PATH, help="With --probabilities, draw how well they hold into this .png or .svg file."
)
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test"]),
    help="Which pictures of a data set [default: val, or all pictures of a folder without a column split].",
)
@click.option("--limit", type=click.IntRange(min=1), help="Use only the first N pictures.", metavar="N")
@batch_size_option
@crop_option
@running_options
@cache_option
@threads_option
def calibrate(**options: Any) -> None:
    """Choose a threshold for each label, from pictures of which the labels are known.

    SOURCE is a data set as for evaluate: a folder with a labels.csv, such a CSV file, or coco:DIR and others. With
    --tags-per-picture it may be any folder of pictures. The thresholds hold for this bundle, precision and label file only.
    """
    from sigrl_deploy.evaluation.calibrate import CalibrateOptions, run_calibrate
    from sigrl_deploy.evaluation.calibration_report import report
    from sigrl_deploy.tagging.output import open_output

    found = run_calibrate(CalibrateOptions(engine=engine_options(options), **options))
    with open_output("table", None) as stream:
        stream.write(f"{printable(str(options['out']))}: {report(found)}")
    for name, reason in found.unreadable:
        log.error("%s: %s", printable(name), reason)
    if found.unreadable:
        raise SystemExit(1)
