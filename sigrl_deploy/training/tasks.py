"""A model with its loss, as a module whose forward pass gives the loss of a batch, so that Fabric can wrap it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sigrl_deploy.model.sigrl import SigRL, encode_image, match
from sigrl_deploy.training.losses import distillation_loss, entropy_loss, ranking_loss
from sigrl_deploy.training.recipes import LossInput, Recipe, RecipeName


class Task(nn.Module, ABC):
    """A model with its loss. `forward(pixels, *targets)` returns losses by name; "loss" is the one to minimise."""

    model: SigRL

    @abstractmethod
    def targets(self, extras: list[Any]) -> tuple[Tensor, ...]:
        """The `Example.extra` of a batch as tensors, which `forward` takes after the pixels."""

    @abstractmethod
    def forward(self, pixels: Tensor, *targets: Tensor) -> dict[str, Tensor]: ...


class Scale(nn.Module):
    """A learned scale and bias for scores before a loss. Inference needs neither, since they do not change the order."""

    def __init__(self, scale: float, bias: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(float(np.log(scale))))
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, scores: Tensor) -> Tensor:
        return self.log_scale.exp() * scores + self.bias


def freeze_vision(model: SigRL, trained_blocks: int | None) -> None:
    """Freeze the ViT except for its last blocks, last norm and projection; None freezes nothing."""
    if trained_blocks is None:
        return
    visual = model.vit
    visual.requires_grad_(False)
    last = list(visual.transformer.resblocks)[max(0, len(visual.transformer.resblocks) - trained_blocks) :]
    for module in (*last, visual.ln_post):
        module.requires_grad_(True)
    visual.proj.requires_grad_(True)


class TaggingTask(Task):
    """The zero-shot and single-positive recipes: the scores of the training labels, with the text tower frozen.

    label_embedding: [C, D], fixed.
    """

    def __init__(self, model: SigRL, label_embedding: Tensor, recipe: Recipe) -> None:
        super().__init__()
        self.model = model.requires_grad_(True)
        if model.text is not None:
            model.text.requires_grad_(False)
        freeze_vision(model, recipe.trained_blocks)
        if model.svfr is not None:  # the softmax cancels these, so they have no gradient
            model.svfr.decouple.bias.requires_grad_(False)
            model.svfr.reconstruct.bias.requires_grad_(False)
        self.recipe = recipe
        self.register_buffer("label_embedding", label_embedding.clone(), persistent=False)
        ranking = recipe.name is RecipeName.ZERO_SHOT
        # √C makes up for the norm over C labels; a bias of -3 fits labels of which few are positive.
        scale = Scale(len(label_embedding) ** 0.5, 0.0 if ranking else -3.0)
        self.head = scale if recipe.loss_input is LossInput.SCALED else None
        if self.head is not None and ranking:
            self.head.bias.requires_grad_(False)  # it cancels out of every difference
        self.teacher = copy.deepcopy(model.visual).requires_grad_(False).eval() if recipe.distillation else None

    def targets(self, extras: list[Any]) -> tuple[Tensor, ...]:
        return (torch.from_numpy(np.stack(extras)),)

    def train(self, mode: bool = True) -> TaggingTask:
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, pixels: Tensor, *targets: Tensor) -> dict[str, Tensor]:
        label_embedding = self.label_embedding
        assert isinstance(label_embedding, Tensor)
        graph_projection = self.model.graph_projection(label_embedding)
        local, global_feature = self.model.encode_image(pixels, label_embedding, graph_projection)
        with torch.autocast(pixels.device.type, enabled=False):  # norms stay in fp32
            config = self.model.config
            scores = match(config.arch, local.float(), global_feature.float(), label_embedding.float(), config.topk)
            logits = scores if self.head is None else self.head(scores)
            if self.recipe.name is RecipeName.SINGLE_POSITIVE:
                loss = entropy_loss(logits, targets[0], self.recipe.entropy_weight)
                return {"loss": loss}
            losses = {"ranking": ranking_loss(logits, targets[0])}
        if self.teacher is not None:
            with torch.no_grad():
                frozen = encode_image(self.teacher, pixels)[1]
            losses["distillation"] = distillation_loss(global_feature.float(), frozen.float())
        return {"loss": losses["ranking"] + self.recipe.distillation * losses.get("distillation", 0.0)} | losses
