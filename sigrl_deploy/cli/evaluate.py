"""`sigrl-deploy evaluate`."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import click

from sigrl_deploy.architectures import Contract
from sigrl_deploy.cli.options import (
    PATH,
    backend_option,
    background_option,
    batch_size_option,
    cache_option,
    checkpoint_options,
    device_option,
    engine_options,
    rescale_option,
    threads_option,
    thresholds_option,
    unfused_option,
)
from sigrl_deploy.config import Arch, Precision

log = logging.getLogger(__name__)


@click.command()
@click.argument("data")
@click.option("--bundle", "bundles", type=PATH, multiple=True, help="Folder that export wrote; repeatable.")
@click.option(
    "--checkpoint", type=PATH, help="Evaluate this checkpoint too, in PyTorch in fp32, and compare the bundles with it."
)
@click.option("--text-tower", help="The checkpoint's, as for export.")
@click.option("--arch", type=click.Choice([arch.value for arch in Arch]), help="The checkpoint's, as for export.")
@click.option("--clip-config", help="The checkpoint's, as for export.")
@click.option(
    "--preprocess", type=click.Choice([contract.value for contract in Contract]), help="The checkpoint's, as for export."
)
@click.option("--template", help="The checkpoint's, as for export.")
@click.option("--topk", type=click.IntRange(min=1), help="The checkpoint's, as for export.")
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True, help="Which pictures of DATA."
)
@click.option(
    "--validation-share",
    type=float,
    help="For a folder without a column split: the share that train set apart, to evaluate its --split val or train.",
)
@click.option(
    "--label-set",
    "label_sets",
    multiple=True,
    help="unseen (zero-shot), seen or all (generalised zero-shot); repeatable [default: those that DATA has].",
)
@click.option("--labels", type=PATH, help="Label file: evaluate only these labels of DATA.")
@background_option
@thresholds_option
@rescale_option
@click.option("--limit", type=click.IntRange(min=1), help="Evaluate only the first N pictures.", metavar="N")
@batch_size_option
@device_option
@backend_option
@click.option(
    "--precision",
    "precisions",
    type=click.Choice([precision.value for precision in Precision]),
    multiple=True,
    help="One that each bundle was exported with; repeatable [default: its first that the device can run].",
)
@unfused_option
@cache_option
@threads_option
@click.option("--out", type=PATH, help="Also write everything that was measured to this JSON file.")
@click.option("--overwrite", is_flag=True, help="Replace the file of --out.")
def evaluate(**options: Any) -> None:
    """Measure mAP and F1@K on DATA, and how far bundles are from the first model.

    DATA is scenes, nus-wide:DIR, coco:DIR, voc:DIR, open-images:DIR or folder:DIR, or your own folder with a labels.csv, or
    such a CSV file. All pictures of your own folder are evaluated, unless the CSV file has a column split (train, val or test)
    directly after path.
    """
    options["checkpoint"] = checkpoint_options(options)
    from sigrl_deploy.evaluation.report import as_json, table
    from sigrl_deploy.evaluation.run import EvaluateOptions, run_evaluate
    from sigrl_deploy.tagging.output import open_output

    options["precisions"] = tuple(map(Precision, options["precisions"]))
    chosen = EvaluateOptions(engine=engine_options(options), **options)
    evaluation = run_evaluate(chosen)
    try:
        if chosen.out:
            with open_output("json", chosen.out) as stream:
                json.dump(as_json(evaluation, chosen), stream, indent=1, ensure_ascii=False, allow_nan=False)
                stream.write("\n")
    finally:
        # Also where the file could not be written: the run may have taken hours.
        if sys.stdout is not None:
            with open_output("table", None) as stream:
                stream.write(table(evaluation))
    failed = len(evaluation.unreadable)
    if failed:
        log.error("%d picture%s could not be read and %s left out", failed, *(("", "was") if failed == 1 else ("s", "were")))
        raise SystemExit(1)
