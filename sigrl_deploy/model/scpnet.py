"""SCPNet's text side: learned prompts of the labels, CLIP's text transformer, and a graph convolution over the labels.

Exploring Structured Semantic Prior for Multi Label Recognition with Incomplete Labels, CVPR 2023. All of it depends on the
checkpoint's own labels and weights alone, so it is computed once, at export. docs/systems.md has the formulas.

Symbols: C labels, W the text transformer's width, D joint embedding width, A [C, C] the graph.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigrl_deploy.image_towers import HEAD_WIDTH
from sigrl_deploy.model.sigrl import LEAKY_SLOPE, unit_rows
from sigrl_deploy.model.transformer import LayerNorm, Transformer

CONTEXT_LENGTH = 77
LEARNED = 4  # tokens of the learned context, after the start token
_LABELS_AT_ONCE = 64


class SCPNetLabels(nn.Module):
    """The labels' tokens as vectors, and everything that makes rows of them, under the names of the published checkpoints."""

    def __init__(self, labels: int, width: int, layers: int, embed_dim: int, hidden: int) -> None:
        super().__init__()
        self.ctx = nn.Parameter(torch.empty(LEARNED, width))
        self.token_prefix = nn.Parameter(torch.empty(labels, 1, width))
        self.token_suffix = nn.Parameter(torch.empty(labels, CONTEXT_LENGTH - LEARNED - 1, width))
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT_LENGTH, width))
        self.transformer = Transformer(width, layers, width // HEAD_WIDTH, 4.0, quick_gelu=True, causal=True)
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        sizes = (embed_dim, hidden, hidden, embed_dim)
        # The three graph layers; their weights are stored [in, out].
        self.gc1, self.gc2, self.gc3 = (
            nn.ParameterDict({"weight": nn.Parameter(torch.empty(given, made))}) for given, made in pairwise(sizes)
        )

    def text_features(self) -> Tensor:
        """The prompts at their end-of-text token, projected: [C, D], not normalised."""
        context = self.ctx.expand(len(self.token_prefix), -1, -1)
        prompts = torch.cat([self.token_prefix, context, self.token_suffix], dim=1) + self.positional_embedding
        # Padding is one token, so the last row that differs from the last of all is the end of text.
        padding = (self.token_suffix == self.token_suffix[:, -1:]).all(dim=-1)
        end = CONTEXT_LENGTH - 1 - padding.flip(1).int().cumprod(dim=1).sum(dim=1)
        tokens = torch.cat([self.ln_final(self.transformer(part)) for part in prompts.split(_LABELS_AT_ONCE)])
        return tokens[torch.arange(len(end)), end] @ self.text_projection

    def forward(self, graph: Tensor) -> Tensor:
        """A [C, C] → L [C, D], rows of unit length."""
        text = self.text_features()
        h = F.leaky_relu(graph @ (text @ self.gc1["weight"]), LEAKY_SLOPE)
        h = F.leaky_relu(graph @ (h @ self.gc2["weight"]), LEAKY_SLOPE)
        return unit_rows(graph @ (h @ self.gc3["weight"]) + text)


def label_graph(relation: Tensor, neighbours: int, weight: float) -> Tensor:
    """A [C, C] from how related labels are, [C, C]: rows cut to their `neighbours` largest, of which a label itself is one.

    Off the diagonal a row sums to `weight`; the diagonal is 1 − `weight`. A row without a neighbour holds NaN.
    """
    kept = torch.zeros_like(relation)
    values, places = relation.topk(neighbours, dim=1)
    kept.scatter_(1, places, values)
    kept.fill_diagonal_(0)
    return (kept / kept.sum(dim=1, keepdim=True) * weight).fill_diagonal_(1 - weight)
