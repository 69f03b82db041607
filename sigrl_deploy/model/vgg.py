"""VGG19 without batch norms, under torchvision's names, and the feature that a linear classifier takes of it.

Symbols: B pictures, H their side, W channels of the first stage (64), F numbers of fc7 (4096).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigrl_deploy.image_towers import VggConfig
from sigrl_deploy.model.image_tower import ImageTower

STAGES = (2, 2, 4, 4, 4)  # convolutions before each of the five pools
WIDTHS = (1, 2, 4, 8, 8)  # channels of the stages, in those of the first


class Vgg19(nn.Module):
    """Sixteen convolutions in five stages, and the first two of its three fully connected layers."""

    def __init__(self, config: VggConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        given = 3
        for count, factor in zip(STAGES, WIDTHS, strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(given, factor * config.width, 3, padding=1), nn.ReLU()]
                given = factor * config.width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        # The dropout between them, which numbers what follows it, does nothing outside of training.
        first, second = nn.Linear(given * config.grid**2, config.hidden), nn.Linear(config.hidden, config.hidden)
        self.classifier = nn.Sequential(first, nn.ReLU(), nn.Identity(), second, nn.ReLU())

    def maps(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, H] → the last convolution after its ReLU [B, 8 W, H / 16, H / 16]."""
        x: Tensor = self.features[:-1](pixels)
        return x

    def fc7(self, maps: Tensor) -> Tensor:
        """Those maps → fc7 after its ReLU [B, F]."""
        x: Tensor = self.classifier(F.max_pool2d(maps, 2).flatten(1))
        return x


class VggTower(ImageTower):
    """fc7 of VGG19, and a 1 behind it, which meets the bias that a linear classifier has for each label."""

    def __init__(self, config: VggConfig) -> None:
        super().__init__()
        self.vgg = Vgg19(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, H] → the feature of the whole picture [B, 1, F + 1]."""
        feature = self.vgg.fc7(self.vgg.maps(pixels))
        return torch.cat([feature, torch.ones_like(feature[:, :1])], dim=1)[:, None]
