"""CLIP's ResNet: pixels in, one feature of the whole picture out.

It differs from the usual ResNet in a stem of three convolutions, in average pools where others have strides, and in an
attention pool at its end. Batch norms are part of the convolutions before them (`checkpoints/batch_norms.py`).

Symbols: B pictures, H their side, N = (H // 32)² positions of the last stage, W its channels, D joint embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigrl_deploy.image_towers import HEAD_WIDTH, ResNetConfig
from sigrl_deploy.model.image_tower import ImageTower

_EXPANSION = 4  # channels that a bottleneck gives, in those of its middle


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions beside a shortcut, whose channels and size `downsample` adapts where they change."""

    def __init__(self, width_in: int, width: int, stride: int, adapts: bool) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(width_in, width, 1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv3 = nn.Conv2d(width, _EXPANSION * width, 1)
        self.downsample = nn.Sequential(nn.Conv2d(width_in, _EXPANSION * width, 1)) if adapts else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, width_in, h, w] → [B, 4 width, h / stride, w / stride]."""
        inner = F.relu(self.conv2(F.relu(self.conv1(x))))
        inner, shortcut = self._pooled(inner), x if self.downsample is None else self.downsample(self._pooled(x))
        return F.relu(self.conv3(inner) + shortcut)

    def _pooled(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class AttentionPool(nn.Module):
    """One query, the mean of all positions, attends to that mean and to the positions; D numbers are projected from it."""

    def __init__(self, positions: int, width: int, embed_dim: int) -> None:
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.positional_embedding = nn.Parameter(torch.randn(positions + 1, width) * width**-0.5)
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, W, h, w] → [B, 1, D]."""
        tokens = x.flatten(2).transpose(1, 2)  # [B, N, W]
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.positional_embedding
        q, k, v = self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))  # [B, heads, tokens, 64]
        pooled = F.scaled_dot_product_attention(q, k, v)
        return self.c_proj(pooled.transpose(1, 2).flatten(2))


class ResNet(ImageTower):
    """CLIP's ResNet, under the tensor names of OpenAI. It has one token, that of the whole picture."""

    def __init__(self, config: ResNetConfig, embed_dim: int) -> None:
        super().__init__()
        width = config.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1)
        given = width
        for number, blocks in enumerate(config.blocks, start=1):
            middle, stride = width << (number - 1), 1 if number == 1 else 2
            first = Bottleneck(given, middle, stride, adapts=True)
            given = _EXPANSION * middle
            others = (Bottleneck(given, middle, 1, adapts=False) for _ in range(blocks - 1))
            self.add_module(f"layer{number}", nn.Sequential(first, *others))
        self.attnpool = AttentionPool(config.grid**2, config.channels, embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, H] → the feature of the whole picture [B, 1, D]."""
        x = F.relu(self.conv3(F.relu(self.conv2(F.relu(self.conv1(pixels))))))
        x = F.avg_pool2d(x, 2)
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return self.attnpool(x)
