"""open_clip's two towers, built from plain configs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from open_clip.transformer import LayerNorm, LayerNormFp32, QuickGELU, TextTransformer, VisionTransformer
from torch import nn

from sigrl_deploy.config import Precision, TextConfig, VisionConfig

if TYPE_CHECKING:
    from sigrl_deploy.model.sigrl import SigRL


def _activation(quick_gelu: bool) -> type[nn.Module]:
    return QuickGELU if quick_gelu else nn.GELU


def vision_tower(config: VisionConfig, embed_dim: int) -> VisionTransformer:
    """CLIP's ViT with a class token, `ln_post` and a projection to [*, embed_dim]."""
    return VisionTransformer(
        image_size=config.image_size,
        patch_size=config.patch_size,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        mlp_ratio=config.mlp_ratio,
        output_dim=embed_dim,
        act_layer=_activation(config.quick_gelu),
        norm_layer=LayerNorm,
    )


def text_tower(config: TextConfig, embed_dim: int) -> TextTransformer:
    """CLIP's causal text transformer: token ids [N, context] → [N, embed_dim] at the end-of-text token."""
    return TextTransformer(
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        width=config.width,
        heads=config.heads,
        layers=config.layers,
        mlp_ratio=config.mlp_ratio,
        output_dim=embed_dim,
        act_layer=_activation(config.quick_gelu),
        norm_layer=LayerNorm,
    )


def typed(model: SigRL, precision: Precision) -> SigRL:
    """A copy of the model in the dtype of an exported file: matrix weights in `precision`, layer norms in fp32."""
    model = copy.deepcopy(model)
    dtype = getattr(torch, precision.torch_name)
    if dtype is not torch.float32:
        for part in (model.visual, model.text, model.gmc, model.svfr):
            if part is not None:
                _cast_keeping_norms(part, dtype)
    return model


def _cast_keeping_norms(tower: nn.Module, dtype: torch.dtype) -> None:
    """Cast weights in place; layer norms keep fp32 weights and compute in fp32, as in every low-precision file."""
    tower.to(dtype)
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()
            module.__class__ = LayerNormFp32
