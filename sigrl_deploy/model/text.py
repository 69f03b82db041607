"""CLIP's text transformer: token ids in, one feature per token out. `encode_text` reads the end-of-text token's.

Symbols: N texts, L tokens, W the tower's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sigrl_deploy.config import TextConfig
from sigrl_deploy.model.transformer import Block, LayerNorm, Transformer


class TextTransformer(nn.Module):
    """CLIP's causal transformer. `text_projection` [W, D] applies to that token."""

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = Transformer(
            config.width, config.layers, config.heads, config.mlp_ratio, config.quick_gelu, causal=True
        )
        self.ln_final = LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.empty(config.width, embed_dim))
        self._draw(config)

    def _draw(self, config: TextConfig) -> None:
        """Random weights, distributed as at the start of CLIP's training."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        std = config.width**-0.5
        residual = std * (2 * config.layers) ** -0.5
        for block in self.transformer.resblocks:
            assert isinstance(block, Block)
            nn.init.normal_(block.attn.in_proj_weight, std=std)
            nn.init.normal_(block.attn.out_proj.weight, std=residual)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * config.width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=residual)
        nn.init.normal_(self.text_projection, std=std)

    def forward(self, token_ids: Tensor) -> Tensor:
        """token ids [N, L], L at most the context → features of all tokens [N, L, W]."""
        x = self.token_embedding(token_ids) + self.positional_embedding[: token_ids.shape[1]]
        return self.ln_final(self.transformer(x))
