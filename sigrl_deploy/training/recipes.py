"""The training recipes as data: the published hyper-parameters (docs/method.md, "Training") and what a run may change."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from sigrl_deploy.config import Arch, Contract
from sigrl_deploy.errors import UsageError


class RecipeName(str, Enum):
    """`zero-shot`: ranking loss and distillation on the seen labels. `single-positive`: entropy maximisation, one observed
    positive a picture. `contrastive`: a CLIP of its own from captioned pictures, which the other two start from.
    """

    ZERO_SHOT = "zero-shot"
    SINGLE_POSITIVE = "single-positive"
    CONTRASTIVE = "contrastive"


class LossInput(str, Enum):
    """What a loss is fed. `normalised`: the scores as they are, within ±1, the reference's way, in which margin 1 violates
    nearly every pair. `scaled`: the scores times a learned scale (plus a learned bias, where the loss is not of differences).
    """

    NORMALISED = "normalised"
    SCALED = "scaled"


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters. `trained_blocks` counts the ViT's last blocks, None for all of it; the text tower is frozen then.

    `lr_floor` is the share of the learning rate at which the cosine ends; `layer_decay` multiplies the learning rate once a
    block, from the last one backwards.
    """

    contract: Contract
    augment: str
    loss_input: LossInput
    optimizer: str
    lr: float
    lr_floor: float
    weight_decay: float
    layer_decay: float
    epochs: int
    warmup_epochs: int
    batch_size: int
    trained_blocks: int | None
    clip_norm: float | None = None


# Its captions say where things are, so pictures are taken as they are drawn; the rest is of parts that a CLIP does not have.
_NOT_CONTRASTIVE = (
    "arch",
    "init",
    "text_tower",
    "augment",
    "preprocess",
    "topk",
    "loss_input",
    "trained_blocks",
)
# What one recipe alone has a use for.
_ONLY = {"entropy_weight": RecipeName.SINGLE_POSITIVE, "distillation": RecipeName.ZERO_SHOT}

RECIPES = {
    RecipeName.ZERO_SHOT: Recipe(
        contract=Contract.ZERO_SHOT,
        augment="randaugment",
        loss_input=LossInput.SCALED,
        optimizer="AdamW",
        lr=1e-4,
        lr_floor=1e-3,
        weight_decay=0.05,
        layer_decay=0.65,
        epochs=20,
        warmup_epochs=2,
        batch_size=32,
        trained_blocks=2,
    ),
    RecipeName.SINGLE_POSITIVE: Recipe(
        contract=Contract.SINGLE_POSITIVE,
        augment="flip",
        loss_input=LossInput.SCALED,
        optimizer="Adam",
        lr=1e-5,
        lr_floor=1.0,
        weight_decay=0.0,
        layer_decay=1.0,
        epochs=10,
        warmup_epochs=0,
        batch_size=32,
        trained_blocks=None,
    ),
    RecipeName.CONTRASTIVE: Recipe(
        contract=Contract.CLIP,
        augment="none",
        loss_input=LossInput.SCALED,
        optimizer="AdamW",
        lr=1e-3,
        lr_floor=1e-2,
        weight_decay=0.05,
        layer_decay=1.0,
        epochs=10,
        warmup_epochs=1,
        batch_size=128,
        trained_blocks=None,
        clip_norm=1.0,
    ),
}


@dataclass(frozen=True)
class TrainOptions:
    """One run of `sigrl-deploy train`; None means what the recipe, the checkpoint or the data set says.

    `steps` counts updates and takes the place of `epochs`. `batch_size` is of one update, over all devices and accumulated
    parts. `entropy_weight` is the single-positive recipe's α: 0.2 on VOC, 0.1 elsewhere. `distillation` weighs the zero-shot
    recipe's, 1 by default. `keep_pictures` reads each picture once and keeps it in memory, in every worker. `validation_share`
    of a folder without splits is set apart, see `read_folder`.
    """

    data: str
    out: Path
    recipe: RecipeName
    init: str | None = None
    arch: Arch | None = None
    text_tower: str | None = None
    clip_config: str | None = None
    template: str | None = None
    preprocess: Contract | None = None
    augment: str | None = None
    topk: int | None = None
    loss_input: LossInput | None = None
    entropy_weight: float | None = None
    distillation: float | None = None
    steps: int | None = None
    epochs: int | None = None
    batch_size: int | None = None
    accumulate: int = 1
    lr: float | None = None
    trained_blocks: int | None = None
    seed: int = 0
    precision: str = "fp32"
    device: str = "auto"
    devices: int = 1
    workers: int = 0
    keep_pictures: bool = False
    validate: int = 1000
    validation_share: float | None = None
    save_every: int = 500
    resume: bool = False


def choose_recipe(options: TrainOptions) -> Recipe:
    """The recipe with what the options change of it. Raises UsageError for options that contradict it or each other."""
    recipe = RECIPES[options.recipe]
    changes: dict[str, Any] = {
        "contract": options.preprocess,
        "augment": options.augment,
        "loss_input": options.loss_input,
        "lr": options.lr,
        "batch_size": options.batch_size,
        "epochs": options.epochs,
        "trained_blocks": options.trained_blocks,
    }
    if options.steps is not None and options.epochs is not None:
        raise UsageError("--steps: takes the place of --epochs; leave out one of the two")
    for option in ("lr", "distillation", "entropy_weight"):
        value = getattr(options, option)
        if value is not None and not math.isfinite(value):
            raise UsageError(f"--{option.replace('_', '-')} {value}: expected a finite number")
    for name, recipe_name in _ONLY.items():
        if getattr(options, name) is not None and options.recipe is not recipe_name:
            raise UsageError(f"--{name.replace('_', '-')}: is of the {recipe_name.value} recipe; leave it out")
    if options.arch is Arch.CLIP_FT and options.topk is not None:
        raise UsageError("--topk: clip-ft matches no patches; leave it out")
    if options.recipe is RecipeName.CONTRASTIVE:
        for name in _NOT_CONTRASTIVE:
            if getattr(options, name) is not None:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option}: the contrastive recipe trains a whole CLIP from nothing; leave it out")
        if options.clip_config is None:
            raise UsageError("--clip-config: the contrastive recipe needs the config of the CLIP to train; give a .json file")
    elif options.arch is Arch.CLIP:
        raise UsageError("--arch clip: scores CLIP as it is, untrained; train sigrl, mkt or clip-ft")
    elif options.init is None:
        raise UsageError("--init: give the CLIP checkpoint to start from, such as ViT-B-16.pt, or open_clip's NAME:PRETRAINED")
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})
