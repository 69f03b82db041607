"""The training recipes as data: the published hyper-parameters (docs/method.md, "Training") and what a run may change."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from sigrl_deploy.architectures import Contract, TextSide
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import UsageError


class RecipeName(str, Enum):
    """What is trained, and by which losses.

    `zero-shot`: ranking loss and distillation on the seen labels. `single-positive`: entropy maximisation with one observed
    positive per picture. `contrastive`: a new CLIP from captioned pictures, which the other two can start from.
    """

    ZERO_SHOT = "zero-shot"
    SINGLE_POSITIVE = "single-positive"
    CONTRASTIVE = "contrastive"


class LossInput(str, Enum):
    """The input of the loss.

    `normalised`: the scores as they are, within ±1, as in the reference implementation. Nearly every pair then violates the
    ranking loss's margin of 1. `scaled`: the scores times a learned scale, plus a learned bias in the single-positive recipe.
    """

    NORMALISED = "normalised"
    SCALED = "scaled"


@dataclass(frozen=True)
class Recipe:
    """The hyper-parameters of a run.

    svfr_lr: the learning rate of SVFR and GMC, which start at random; None for `lr`.
    lr_floor: the fraction of the learning rate at which the cosine schedule ends.
    layer_decay: multiplies the learning rate once per block, from the last block backwards.
    trained_blocks: how many of the ViT's last blocks are trained; None for all.
    distillation: weight of the zero-shot recipe's distillation loss.
    entropy_weight: α of the single-positive recipe.
    """

    name: RecipeName
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
    svfr_lr: float | None = None
    distillation: float = 0.0
    entropy_weight: float = 0.0


# Captions are tied to places in a picture, which augmentation would move; the other options are about parts that CLIP lacks.
_NOT_CONTRASTIVE = (
    "arch",
    "init",
    "text_tower",
    "augment",
    "preprocess",
    "topk",
    "loss_input",
    "svfr_lr",
    "trained_blocks",
)
# The options that apply to one recipe only.
_ONLY = {"entropy_weight": RecipeName.SINGLE_POSITIVE, "distillation": RecipeName.ZERO_SHOT}

RECIPES = {
    RecipeName.ZERO_SHOT: Recipe(
        name=RecipeName.ZERO_SHOT,
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
        distillation=1.0,
    ),
    RecipeName.SINGLE_POSITIVE: Recipe(
        name=RecipeName.SINGLE_POSITIVE,
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
        entropy_weight=0.1,
    ),
    RecipeName.CONTRASTIVE: Recipe(
        name=RecipeName.CONTRASTIVE,
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
    """One run of `sigrl-deploy train`. None means the default of the recipe, the checkpoint or the data set.

    data: as `open_dataset` takes it.
    init: a CLIP or trained checkpoint, or open_clip's NAME:PRETRAINED.
    entropy_weight: α of the single-positive recipe; 0.2 on VOC and 0.1 elsewhere by default.
    distillation: weight of the zero-shot recipe's distillation loss; 1 by default.
    steps: updates, instead of `epochs`.
    warmup: updates during which learning rates rise; by default the same fraction of the run as published.
    patience: end the run after so many validations in a row without a better one.
    batch_size: pictures per update, over all devices and accumulated parts; at most as many as there are by default.
    accumulate: parts in which an update is computed, to save memory.
    keep_pictures: read each picture once and keep it in memory, in every worker.
    validate: how many validation pictures to use; 0 for none.
    validation_share: fraction of a folder without splits to set apart for validation, see `read_folder`.
    save_every: updates between checkpoints, and between validations.
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
    svfr_lr: float | None = None
    warmup: int | None = None
    patience: int | None = None
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
    """The recipe as the options change it. Raises UsageError for options that contradict it or each other."""
    _check(options)
    recipe = RECIPES[options.recipe]
    if options.recipe is RecipeName.SINGLE_POSITIVE and options.data.startswith("voc:"):
        recipe = replace(recipe, entropy_weight=0.2)  # as published
    changes: dict[str, Any] = {
        "contract": options.preprocess,
        "augment": options.augment,
        "loss_input": options.loss_input,
        "lr": options.lr,
        "svfr_lr": options.svfr_lr,
        "batch_size": options.batch_size,
        "epochs": options.epochs,
        "trained_blocks": options.trained_blocks,
        "distillation": options.distillation,
        "entropy_weight": options.entropy_weight,
    }
    return replace(recipe, **{name: value for name, value in changes.items() if value is not None})


def _check(options: TrainOptions) -> None:
    if options.steps is not None and options.epochs is not None:
        raise UsageError("replaces `epochs`; leave out one of the two", argument="steps")
    for name in ("lr", "svfr_lr", "distillation", "entropy_weight"):
        value = getattr(options, name)
        if value is not None and not math.isfinite(value):
            raise UsageError("expected a finite number", argument=name, value=value)
    for name, recipe in _ONLY.items():
        if getattr(options, name) is not None and options.recipe is not recipe:
            raise UsageError(f"applies to the {recipe.value} recipe only; leave it out", argument=name)
    if options.svfr_lr is not None and options.arch not in (None, Arch.SIGRL):
        raise UsageError(f"{options.arch.value} has no SVFR; leave it out", argument="svfr_lr")
    if options.patience is not None and options.patience < 1:
        raise UsageError("expected a whole number above 0", argument="patience", value=options.patience)
    if options.patience is not None and not options.validate:
        raise UsageError("counts validations; give `validate` more than 0, or leave it out", argument="patience")
    if options.arch is Arch.CLIP_FT and options.topk is not None:
        raise UsageError("clip-ft does not match patches; leave it out", argument="topk")
    if options.recipe is RecipeName.CONTRASTIVE:
        for name in _NOT_CONTRASTIVE:
            if getattr(options, name) is not None:
                raise UsageError("the contrastive recipe trains a whole new CLIP; leave it out", argument=name)
        if options.clip_config is None:
            raise UsageError("expected the config of the CLIP to train; give a .json file", argument="clip_config")
    elif options.arch is Arch.CLIP:
        raise UsageError("is CLIP as it is, without training; use sigrl, mkt or clip-ft", argument="arch", value="clip")
    elif options.arch is not None and options.arch.text_side is not TextSide.TOWER:
        raise UsageError("is not trained here; use sigrl, mkt or clip-ft", argument="arch", value=options.arch.value)
    elif options.init is None:
        raise UsageError(
            "expected the CLIP checkpoint to start from, such as ViT-B-16.pt, or open_clip's NAME:PRETRAINED", argument="init"
        )
