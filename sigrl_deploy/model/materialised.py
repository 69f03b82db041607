"""SigRL exactly as the reference implementation computes it: every [P, C, D] and [C, C, F] intermediate in memory.

This is the baseline that benchmarks and tests compare with; at 1006 labels it needs about 9 GB a picture. The list of
operations (repeats, transposed views, the norm over the whole batch) is the reference's, so that its cost is too.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sigrl_deploy.model.sigrl import GMC, LEAKY_SLOPE, SVFR, GraphAttention, SigRL, encode_image, match


def graph_attention(layer: GraphAttention, h: Tensor) -> Tensor:
    """One GATv2 layer with its pairwise tensor [C·C, H, F] whole: h [C, F_in] → [C, H·F]."""
    z = layer.nodes(h).to(h.dtype)  # in low precision all of it, as the reference's would be
    count = z.shape[0]
    pairs = (z.repeat(count, 1, 1) + z.repeat_interleave(count, dim=0)).view(count, count, *z.shape[1:])
    energy = F.leaky_relu(pairs, LEAKY_SLOPE) @ layer.attention
    weights = torch.softmax(energy, dim=1)
    return torch.einsum("ijh,jhf->ihf", weights, z).flatten(1)


def gmc(module: GMC, label_embedding: Tensor) -> Tensor:
    """T [C, D] → G [C, D]."""
    h = graph_attention(module.layers[0], label_embedding)  # type: ignore[arg-type]
    for layer in list(module.layers)[1:]:
        h = graph_attention(layer, F.elu(h))  # type: ignore[arg-type]
    return h


def _patch_softmax(linear: torch.nn.Linear, images: Tensor, labels: Tensor, batch: int) -> Tensor:
    """Softmax over patches of the biased linear layer: two [B·P, C, D] → [B, P, C, D]."""
    count, dim = images.shape[1:]
    energy = linear(torch.tanh(images * labels).view(-1, dim)).view(batch, -1, count, dim)
    return torch.softmax(energy.permute(0, 2, 3, 1), dim=-1).permute(0, 3, 1, 2)


def svfr_stages(module: SVFR, patches: Tensor, label_embedding: Tensor, graph: Tensor) -> tuple[Tensor, Tensor]:
    """X [B, P, D], T [C, D], G [C, D] → S [B, C, D], Y [B, P, D]."""
    batch, tokens, dim = patches.shape
    count = label_embedding.shape[0]
    images = patches.reshape(batch * tokens, 1, dim).repeat(1, count, 1)
    labels = label_embedding.repeat(batch * tokens, 1, 1)
    attention = _patch_softmax(module.decouple, images, labels, batch)
    semantic = (attention * images.view(batch, tokens, count, dim)).sum(1)

    # The reference divides by norms over the whole batch; the row scaling cancels them (docs/method.md, identity 2).
    relation = semantic.transpose(1, 2) @ label_embedding / (semantic.norm() * label_embedding.norm())
    relation = F.normalize(F.relu(relation), dim=-1)
    fused = module.fuse(torch.cat([semantic @ relation, graph.expand(batch, -1, -1)], dim=-1))

    labels = fused[:, None].expand(-1, tokens, -1, -1).reshape(batch * tokens, count, dim)
    attention = _patch_softmax(module.reconstruct, images, labels, batch)
    return semantic, (attention * images.view(batch, tokens, count, dim)).sum(2)


def forward(model: SigRL, pixels: Tensor, label_embedding: Tensor, graph: Tensor | None = None) -> Tensor:
    """Scores [B, C] as the reference computes them. GMC runs in every call, as written, unless its result G [C, D] is given."""
    if model.gmc is None or model.svfr is None:
        raise ValueError("only the sigrl architecture has a materialised form")
    patches, global_feature = encode_image(model.visual, pixels)
    graph = gmc(model.gmc, label_embedding) if graph is None else graph
    _, local = svfr_stages(model.svfr, patches, label_embedding, graph)
    return match(model.config.arch, local, global_feature, label_embedding, model.config.topk)
