"""`sigrl-deploy train`."""

from __future__ import annotations

import os
from typing import Any

import click

from sigrl_deploy.architectures import Contract
from sigrl_deploy.cli.options import PATH, device_option
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import printable

_POSITIVE = click.IntRange(min=1, max=10**9)


@click.command()
@click.argument("data")
@click.option("--out", type=PATH, required=True, help="Folder of the run: model.safetensors for export, state.pt, log/.")
@click.option(
    "--recipe",
    type=click.Choice(["zero-shot", "single-positive", "contrastive"]),
    default="zero-shot",
    show_default=True,
    help="contrastive trains a new CLIP, on scenes.",
)
@click.option("--init", help="Checkpoint to start from: a CLIP or trained one, or open_clip's NAME:PRETRAINED.")
@click.option("--arch", type=click.Choice(["sigrl", "mkt", "clip-ft"]), help="[default: sigrl]")
@click.option("--text-tower", help="CLIP text tower, where --init has none: a file, or NAME:PRETRAINED.")
@click.option("--clip-config", help="open_clip config of a CLIP that is not OpenAI's, as for export.")
@click.option("--template", help="Text prompt with {label} in it [default: the architecture's].")
@click.option(
    "--preprocess", type=click.Choice([contract.value for contract in Contract]), help="[default: --init's, or the recipe's]"
)
@click.option("--augment", type=click.Choice(["randaugment", "crop", "flip", "none"]), help="[default: the recipe's]")
@click.option("--topk", type=_POSITIVE, help="Patches that the local score averages [default: 16; 18 for mkt].")
@click.option(
    "--loss-input",
    type=click.Choice(["normalised", "scaled"]),
    help="Scores as they are, as in the reference, or times a learned scale [default: scaled].",
)
@click.option("--entropy-weight", type=click.FloatRange(min=0), help="α of single-positive [default: 0.2 on VOC, else 0.1].")
@click.option("--distillation", type=click.FloatRange(min=0), help="Weight of zero-shot's distillation loss [default: 1].")
@click.option("--epochs", type=_POSITIVE, help="[default: the recipe's]")
@click.option("--steps", type=_POSITIVE, help="Updates, instead of --epochs.")
@click.option("--batch-size", type=_POSITIVE, help="Pictures per update, over all devices [default: the recipe's].")
@click.option("--accumulate", type=_POSITIVE, default=1, show_default=True, help="Compute an update in parts, to save memory.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate [default: the recipe's].")
@click.option("--svfr-lr", type=click.FloatRange(min=0, min_open=True), help="Learning rate of SVFR and GMC [default: --lr].")
@click.option("--warmup", type=click.IntRange(min=0), help="Updates until learning rates are full [default: the recipe's].")
@click.option(
    "--trained-blocks", type=click.IntRange(min=0), help="Train this many of the ViT's last blocks [default: the recipe's]."
)
@click.option("--seed", type=click.IntRange(min=0, max=2**32 - 1), default=0, show_default=True, help="Random seed.")
@click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32", show_default=True, help="Mixed precision.")
@device_option
@click.option("--devices", type=_POSITIVE, default=1, show_default=True, help="GPUs (or CPU processes) to train on.")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that load pictures.")
@click.option("--keep-pictures", is_flag=True, help="Read each picture once and keep it in memory, in every worker.")
@click.option(
    "--validate", type=click.IntRange(min=0), default=1000, show_default=True, help="Validation pictures; 0 for none."
)
@click.option(
    "--save-every", type=_POSITIVE, default=500, show_default=True, help="Updates between checkpoints and validations."
)
@click.option("--patience", type=_POSITIVE, help="End after this many validations in a row without a better one.")
@click.option(
    "--validation-share",
    type=float,
    help="Fraction of a folder without a column split to set apart for validation; give evaluate the same.",
)
@click.option("--resume", is_flag=True, help="Continue the run in --out, to more --epochs or --steps if given.")
def train(**options: Any) -> None:
    """Train on DATA: scenes, nus-wide:DIR, coco:DIR, voc:DIR, open-images:DIR or folder:DIR.

    A folder of your own needs a labels.csv. A column split directly after path assigns its pictures to train, val or test;
    or --validation-share sets some apart.

    The best checkpoint by validation becomes OUT/model.safetensors, which sigrl-deploy export onnx reads.
    """
    from sigrl_deploy.training.checks import check_run
    from sigrl_deploy.training.recipes import LossInput, RecipeName, TrainOptions

    for name, enum in (("recipe", RecipeName), ("arch", Arch), ("preprocess", Contract), ("loss_input", LossInput)):
        options[name] = options[name] and enum(options[name])
    chosen = TrainOptions(**options)
    check_run(chosen)
    from sigrl_deploy.training.run import run_train

    reached = run_train(chosen)
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return  # of several processes, only the first reports
    metrics = ", ".join(f"{name} {100 * value:.1f}" for name, value in reached.metrics.items()) or "not validated"
    updates = f"{reached.step} update{'' if reached.step == 1 else 's'}"
    click.echo(f"{options['out']}: trained {updates}; kept the model of update {reached.best_step} ({metrics})")
    for name, reason in list(reached.unreadable.items())[:5]:
        click.echo(printable(reason if name in reason else f"{name}: {reason}"), err=True)
    if reached.unreadable:
        count = len(reached.unreadable)
        click.echo(f"{count} {'picture' if count == 1 else 'pictures'} could not be read and had to be left out", err=True)
        raise SystemExit(1)
