"""The training recipes as data: the published hyper-parameters (design, "Training") and what a run may change of them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sigrl_deploy.config import Arch
from sigrl_deploy.preprocess import Contract


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
    recipe's, 1 by default. `keep_pictures` reads each picture once and keeps it in memory, in every worker.
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
    save_every: int = 500
    resume: bool = False
