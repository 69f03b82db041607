"""The pre-norm transformer of CLIP's two towers, under the tensor names of OpenAI and open_clip.

Symbols: B sequences, L tokens, W the tower's width, H heads of W / H channels each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LayerNorm(nn.LayerNorm):
    """(x − mean) / √(variance + 1e-5) · weight + bias over the last axis, in the dtype of its weights: fp32 in a bf16 model."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., W] → the same shape and dtype."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


class QuickGELU(nn.Module):
    """x · σ(1.702 x), OpenAI's GELU."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Attention(nn.Module):
    """Multi-head self-attention. If causal, no token sees those after it.

    [q, k, v] = x Wᵀ + b, one product of width 3 W; out = concat over heads of softmax(q kᵀ / √(W / H)) v, projected.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, W] → [B, L, W]."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        # Views, since the fused attention of every device reads heads by their strides.
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # each [B, H, L, W / H]
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """A perceptron of one hidden layer."""

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, W] → [B, L, W]."""
        return self.c_proj(self.gelu(self.c_fc(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + perceptron(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, quick_gelu: bool, causal: bool) -> None:
        super().__init__()
        self.quick_gelu = quick_gelu
        self.ln_1 = LayerNorm(width)
        self.attn = Attention(width, heads, causal)
        self.ln_2 = LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio), quick_gelu)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, W] → [B, L, W]."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float, quick_gelu: bool, causal: bool) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads, mlp_ratio, quick_gelu, causal) for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, W] → [B, L, W]."""
        for block in self.resblocks:
            x = block(x)
        return x
