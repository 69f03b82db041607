"""What image towers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class ImageTower(nn.Module, ABC):
    """Pixels in, one feature per token out."""

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, H] → features of all tokens [B, 1 + P, D], the one of the whole picture first. P may be 0."""
