"""The image side of the (ML)²P-Encoder: VGG19 with batch norms, attention between channels, and a mixer.

(ML)²P-Encoder: On Exploration of Channel-Class Correlation for Multi-Label Zero-Shot Learning, CVPR 2023. docs/systems.md has
the formulas. Batch norms are part of the convolutions before them (`checkpoints/batch_norms.py`).

Symbols: B pictures, G groups, V numbers of a word vector (300), N = (H / 32)² positions (49), row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigrl_deploy.image_towers import Ml2pConfig
from sigrl_deploy.model.image_tower import ImageTower
from sigrl_deploy.model.transformer import LayerNorm
from sigrl_deploy.model.vgg import STAGES, WIDTHS

_TAPS = 3  # stages that are tapped, the last ones


def _features(width: int) -> nn.ModuleList:
    """The layers of torchvision's vgg19_bn under its numbers; where it has norms, nothing is done."""
    layers: list[nn.Module] = []
    given = 3
    for count, factor in zip(STAGES, WIDTHS, strict=True):
        for _ in range(count):
            layers += [nn.Conv2d(given, factor * width, 3, padding=1), nn.Identity(), nn.ReLU()]
            given = factor * width
        layers.append(nn.MaxPool2d(2))
    return nn.ModuleList(layers)


class _Tap(nn.Module):
    """A 1×1 convolution and a ReLU."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, channels_in, h, w] → [B, channels, h, w]."""
        return F.relu(self.conv(x))


class _Perceptron(nn.Module):
    """One hidden layer with the exact GELU, over the last axis."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense_1 = nn.Linear(width, hidden)
        self.dense_2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] → the same shape."""
        return self.dense_2(F.gelu(self.dense_1(x)))


class _ChannelAttention(nn.Module):
    """Attention between the channels of each head, by their maps of unit length. Its sums over channels stay in fp32."""

    def __init__(self, groups: int, vector: int) -> None:
        super().__init__()
        channels = groups * vector
        self.temperature = nn.Parameter(torch.ones(groups, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, G V, h, w] → [B, G, V, N]; head h has the channels from h V on."""
        groups = len(self.temperature)
        q, k, v = (part.flatten(2).unflatten(1, (groups, -1)) for part in self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1))
        q, k = (F.normalize(part.float(), dim=-1) for part in (q, k))
        weights = torch.softmax(self.temperature.float() * (q @ k.transpose(2, 3)), dim=-1)
        return weights.to(v.dtype) @ v


class _Mixer(nn.Module):
    """Perceptrons over positions and over channels; the same for every group."""

    def __init__(self, config: Ml2pConfig) -> None:
        super().__init__()
        self.layer_norm_1, self.layer_norm_2 = LayerNorm(config.vector), LayerNorm(config.vector)
        self.mlp_token = _Perceptron(config.grid**2, config.token_hidden)
        self.mlp_channel = _Perceptron(config.vector, config.channel_hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, G, N, V] → [B, G, V], the largest of all positions."""
        x = x + self.mlp_token(self.layer_norm_1(x).transpose(2, 3)).transpose(2, 3)
        x = x + self.mlp_channel(self.layer_norm_2(x))
        return torch.sigmoid(x.amax(dim=2))


class _GroupAttention(nn.Module):
    """Products of all groups with each other, neither scaled nor in a softmax, so in fp32."""

    def __init__(self, vector: int) -> None:
        super().__init__()
        self.Linear1, self.Linear2 = _Perceptron(vector, vector), _Perceptron(vector, vector)

    def forward(self, h: Tensor) -> Tensor:
        """h [B, G, V] → the same shape, fp32."""
        q, k = self.Linear1(h).float(), self.Linear2(h).float()
        return q @ k.transpose(1, 2) @ h.float()


class Ml2pTower(ImageTower):
    """All of it, under the names of the published code. Its features are groups of channels, and have no places."""

    has_global = False

    def __init__(self, config: Ml2pConfig) -> None:
        super().__init__()
        self.groups = config.groups
        taken = [factor * config.width for factor in WIDTHS[-_TAPS:]]
        self.vgg = nn.ModuleDict({"features": _features(config.width)})
        self.ft_module = nn.ModuleList(_Tap(given, made) for given, made in zip(taken, config.taps, strict=True))
        self.conv_embedding = nn.Conv2d(sum(config.taps), config.groups * config.vector, 1)
        self.Channel_MLP = nn.ModuleDict(
            {"channel_attn": _ChannelAttention(config.groups, config.vector), "channel_mlp": _Mixer(config)}
        )
        self.Group_Attention = _GroupAttention(config.vector)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, H] → features of the groups [B, G, V], fp32."""
        maps = self.conv_embedding(torch.cat(self._taps(pixels), dim=1))
        shuffled = maps.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        attended = self.Channel_MLP["channel_attn"](shuffled)
        found: Tensor = self.Group_Attention(self.Channel_MLP["channel_mlp"](attended.transpose(2, 3)))
        # The shuffle undone, across groups and channels: what the published scores are computed with.
        return found.flatten(1).unflatten(1, (-1, self.groups)).transpose(1, 2)

    def _taps(self, pixels: Tensor) -> list[Tensor]:
        """The last stages after their pools, each in the size of the last."""
        x, pooled = pixels, []
        layers = self.vgg["features"]
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            x = layer(x)
            if isinstance(layer, nn.MaxPool2d):
                pooled.append(x)
        taps = [tap(maps) for tap, maps in zip(self.ft_module, pooled[-_TAPS:], strict=True)]
        sides = [1 << number for number in reversed(range(_TAPS))]
        return [F.max_pool2d(maps, side) if side > 1 else maps for maps, side in zip(taps, sides, strict=True)]
