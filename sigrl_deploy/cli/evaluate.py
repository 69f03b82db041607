"""`sigrl-deploy evaluate`."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import click

from sigrl_deploy.cli.options import (
    MOST_PICTURES,
    PATH,
    backend_option,
    cache_option,
    checkpoint_options,
    device_option,
    threads_option,
    unfused_option,
)
from sigrl_deploy.config import Arch, Precision

log = logging.getLogger(__name__)


@click.command()
@click.argument("data")
@click.option("--bundle", "bundles", type=PATH, multiple=True, help="Folder that the export wrote; repeatable.")
@click.option("--checkpoint", type=PATH, help="Evaluate this one in PyTorch, fp32, and compare the bundles with it.")
@click.option("--text-tower", help="The checkpoint's, as for export.")
@click.option("--arch", type=click.Choice([arch.value for arch in Arch]), help="The checkpoint's, as for export.")
@click.option("--clip-config", help="The checkpoint's, as for export.")
@click.option(
    "--preprocess", type=click.Choice(["zero-shot", "single-positive", "clip"]), help="The checkpoint's, as for export."
)
@click.option("--template", help="The checkpoint's, as for export.")
@click.option("--topk", type=click.IntRange(min=1), help="The checkpoint's, as for export.")
@click.option("--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True)
@click.option(
    "--validation-share",
    type=float,
    help="With --split val or train: part a folder without a column split as train did with the same share.",
)
@click.option(
    "--label-set",
    "label_sets",
    multiple=True,
    help="unseen (zero-shot), seen or all (generalised); repeatable [default: those that DATA has].",
)
@click.option("--labels", type=PATH, help="Label file, one a line: evaluate these labels of DATA only.")
@click.option("--limit", type=click.IntRange(min=1), help="The first so many pictures only.")
@click.option(
    "--batch-size", type=click.IntRange(1, MOST_PICTURES), help="Pictures at once [default: 1 on a CPU, 16 on a GPU]."
)
@device_option
@backend_option
@click.option(
    "--precision",
    "precisions",
    type=click.Choice([precision.value for precision in Precision]),
    multiple=True,
    help="Of those that each bundle was exported with; repeatable [default: its first that the device can run].",
)
@unfused_option
@cache_option
@threads_option
@click.option("--out", type=PATH, help="Write everything that was measured to a JSON file.")
def evaluate(**options: Any) -> None:
    """Measure mAP and F1@K on DATA, and how far bundles are from the first model.

    \b
    DATA: scenes, nus-wide:DIR, coco:DIR, voc:DIR, open-images:DIR, folder:DIR, or a folder or CSV file of your own, all of
    whose pictures are evaluated where labels.csv has no column split (train, val or test) directly behind path.
    """
    options["checkpoint"] = checkpoint_options(options)
    from sigrl_deploy.evaluation.report import as_json, table
    from sigrl_deploy.evaluation.run import EvaluateOptions, run_evaluate
    from sigrl_deploy.tagging.output import open_output

    options["precisions"] = tuple(map(Precision, options["precisions"]))
    chosen = EvaluateOptions(**options)
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
        log.error("left out, because unreadable: %d picture%s", failed, "" if failed == 1 else "s")
        raise SystemExit(1)
