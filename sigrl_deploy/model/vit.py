"""CLIP's vision transformer: pixels in, one feature per token out.

Symbols: B pictures, p the side of a patch, P = (H // p)² patches, W the tower's width, D joint embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigrl_deploy.image_towers import VisionConfig
from sigrl_deploy.model.image_tower import ImageTower
from sigrl_deploy.model.transformer import LayerNorm, Transformer


class PatchEmbedding(nn.Module):
    """Each patch times one matrix: a convolution with stride p and no bias, written as a matrix product.

    cuDNN's convolutions round fp32 to TF32 by default; matrix products do not.
    """

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.weight = nn.Conv2d(3, width, patch_size, patch_size, bias=False).weight

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, H] → [B, P, W], patches row by row. Pixels beyond the last whole patch are ignored."""
        p = self.patch_size
        grid = pixels.shape[-1] // p
        pixels = pixels[..., : grid * p, : grid * p]
        patches = pixels.unflatten(-1, (grid, p)).unflatten(2, (grid, p))  # [B, 3, row, y, column, x]
        return F.linear(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), self.weight.flatten(1))


class VisionTransformer(ImageTower):
    """CLIP's ViT with a class token; the last norm and the projection apply to every token, as SigRL needs them."""

    def __init__(self, config: VisionConfig, embed_dim: int) -> None:
        super().__init__()
        scale = config.width**-0.5
        self.conv1 = PatchEmbedding(config.patch_size, config.width)
        self.class_embedding = nn.Parameter(scale * torch.randn(config.width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(config.grid**2 + 1, config.width))
        self.ln_pre = LayerNorm(config.width)
        self.transformer = Transformer(
            config.width, config.layers, config.heads, config.mlp_ratio, config.quick_gelu, causal=False
        )
        self.ln_post = LayerNorm(config.width)
        self.proj = nn.Parameter(scale * torch.randn(config.width, embed_dim))

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, H] → features of all tokens [B, 1 + P, D], the class token's first."""
        x = self.conv1(pixels)
        class_token = self.class_embedding.expand(x.shape[0], 1, -1)
        x = torch.cat([class_token, x], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        return self.ln_post(x) @ self.proj
