"""BiAM's image side: VGG19, a self-attention block over regions, and a block that the whole scene gates.

Discriminative Region-based Multi-Label Zero-Shot Learning, ICCV 2021. docs/systems.md has the formulas.

Symbols: B pictures, P = (H / 16)² regions, row by row, D channels of the blocks, E width of what labels are matched with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigrl_deploy.image_towers import BiamConfig
from sigrl_deploy.model.image_tower import ImageTower
from sigrl_deploy.model.vgg import WIDTHS, Vgg19

_SLOPE = 0.2  # of the leaky ReLUs


class _Scale(nn.Module):
    """x · weight + bias by channel: what a batch norm does outside of training. The ReLU before it keeps it from folding."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, D, h, w] → the same shape."""
        return x * self.weight[:, None, None] + self.bias[:, None, None]


class _Convolution(nn.Module):
    """A 3×3 convolution, a ReLU, and only then the norm."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.bn = _Scale(channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels_in, h, w] → [B, channels, h, w]."""
        return self.bn(F.relu(self.body(x)))


class _Pointwise(nn.Module):
    """A 1×1 convolution and a leaky ReLU."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels_in, h, w] → [B, channels, h, w]."""
        return F.leaky_relu(self.body(x), _SLOPE)


class _Regions(nn.Module):
    """Attention between the regions, and a perceptron for each of them; both are added to what they are given."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.w_q, self.w_k, self.w_v, self.w_o = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        self.sub_network = nn.ModuleDict(
            {"conv1": nn.Conv2d(channels, 2 * channels, 1), "conv2": nn.Conv2d(2 * channels, channels, 1)}
        )

    def forward(self, h: Tensor) -> Tensor:
        """h [B, D, rows, columns] → the same shape."""
        q, k, v = (
            part(h).flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)  # [B, heads, P, D / heads]
            for part in (self.w_q, self.w_k, self.w_v)
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2).view_as(h)
        o = self.w_o(attended) + h
        return o + self.sub_network["conv2"](F.relu(self.sub_network["conv1"](o)))


class _Scene(nn.Module):
    """Channels of the regions, each as far open as the whole picture's feature says."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.channel_conv = _Pointwise(channels, channels)
        self.w_g = nn.Conv2d(hidden, channels, 1)
        self.gcff = _Convolution(channels, channels)

    def forward(self, h: Tensor, feature: Tensor) -> Tensor:
        """h [B, D, rows, columns], fc7 [B, F] → the shape of h."""
        v = self.channel_conv(h)
        gated = torch.sigmoid(v.mean(dim=(2, 3), keepdim=True) * self.w_g(feature[:, :, None, None])) * v
        return gated + self.gcff(gated)


class BiamTower(ImageTower):
    """VGG19 and both blocks, under the names of the published checkpoints. No token is that of the whole picture."""

    has_global = False

    def __init__(self, config: BiamConfig, embed_dim: int) -> None:
        super().__init__()
        channels = config.channels
        self.vgg = Vgg19(config.vgg)
        self.conv_3X3 = _Convolution(WIDTHS[-1] * config.vgg.width, channels)
        self.region_context_block = _Regions(channels, config.heads)
        self.scene_context_block = _Scene(channels, config.vgg.hidden)
        self.conv_1X1 = _Pointwise(2 * channels, embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, H] → features of the regions [B, P, E]."""
        maps = self.vgg.maps(pixels)
        h = self.conv_3X3(maps)
        blocks = [self.region_context_block(h), self.scene_context_block(h, self.vgg.fc7(maps))]
        features: Tensor = self.conv_1X1(torch.cat(blocks, dim=1))
        return features.flatten(2).transpose(1, 2)
