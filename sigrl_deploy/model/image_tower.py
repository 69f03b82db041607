"""What image towers have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class ImageTower(nn.Module, ABC):
    """Pixels in, one feature per token out. `has_global` says whether the first token is that of the whole picture."""

    has_global = True

    @abstractmethod
    def forward(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, H] → features of all tokens [B, P, D], or [B, 1 + P, D] with `has_global`. P may be 0 there."""
