"""The optimizer and its learning rates: layer-wise decay, warm-up and cosine."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sigrl_deploy.training.recipes import Recipe

_BLOCK = re.compile(r"(visual|text)\.transformer\.resblocks\.(\d+)\.")
_BEFORE_BLOCKS = ("conv1.", "class_embedding", "positional_embedding", "token_embedding.", "ln_pre.")
_NEW = ("model.svfr.", "model.gmc.")
_HEAD_LR = 1e-3  # for the scale and bias of the scores, which move farther than fine-tuned weights


def build_optimizer(task: nn.Module, recipe: Recipe, blocks: int) -> Optimizer:
    """The recipe's Adam or AdamW over the trainable parameters. Vectors (biases, norms, scales) have no weight decay.

    The learning rate of block i of `blocks` is lr · layer_decay^(blocks − i). Parameters before the blocks count as block −1,
    those after them have the rate lr (BEiT, arXiv 2106.08254, as in MKT). SVFR and GMC have the recipe's `svfr_lr` where it has
    one, and the loss's scale and bias a rate of their own.
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            own = _own_rate(recipe, name)
            rate = recipe.lr * recipe.layer_decay ** _layers_after(name, blocks) if own is None else own
            groups[rate, recipe.weight_decay if parameter.ndim > 1 else 0.0, own is not None].append(parameter)
    values: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": decay, "head": head}
        for (rate, decay, head), parameters in groups.items()
    ]
    return {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[recipe.optimizer](values, lr=recipe.lr, fused=True)


def _own_rate(recipe: Recipe, name: str) -> float | None:
    """The learning rate of a parameter that does not go by the recipe's `lr`."""
    if name.startswith("head."):
        return _HEAD_LR
    return recipe.svfr_lr if name.startswith(_NEW) else None


def _layers_after(name: str, blocks: int) -> int:
    block = _BLOCK.search(name)
    if block:
        return blocks - int(block[2])
    return blocks + 1 if any(part in name for part in _BEFORE_BLOCKS) else 0


def build_schedule(optimizer: Optimizer, warmup: int, steps: int, floor: float) -> LambdaLR:
    """Linear warm-up over `warmup` updates, then a cosine to `floor` (a fraction of the rate) at the last of `steps`."""

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, steps - 1 - warmup)
        return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, done))) / 2

    return LambdaLR(optimizer, share)


def follow_schedule(rates: LambdaLR) -> None:
    """Set the optimizer's learning rates to those of the current step; a loaded state may come from a shorter run."""
    for group, base, share in zip(rates.optimizer.param_groups, rates.base_lrs, rates.lr_lambdas, strict=True):
        group["lr"] = base * share(rates.last_epoch)
