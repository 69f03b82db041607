"""The forward pass of SigRL in PyTorch, top to bottom: pixels and labels in, scores out.

Semantic-guided Representation Learning for Multi-Label Recognition, ICME 2025. Symbols: B pictures, P patch tokens, C labels,
D joint embedding width, k patches averaged by the local match. `materialised.py` has the same functions written as the
reference implementation computes them. Here the label axis is tiled, so memory does not grow with P·C·D. Nor does it in
training: the backward pass computes the tiles again, unless they are small.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sigrl_deploy.config import Arch, GraphConfig, ModelConfig
from sigrl_deploy.image_towers import BiamConfig, Ml2pConfig, ResNetConfig, VggConfig
from sigrl_deploy.model.biam import BiamTower
from sigrl_deploy.model.image_tower import ImageTower
from sigrl_deploy.model.ml2p import Ml2pTower
from sigrl_deploy.model.resnet import ResNet
from sigrl_deploy.model.text import TextTransformer
from sigrl_deploy.model.vgg import VggTower
from sigrl_deploy.model.vit import VisionTransformer

LEAKY_SLOPE = 0.2
LABEL_TILE = 16
TILE_BUDGET = 1 << 23  # elements of one [B, tile, P, D] intermediate, of which a training step holds about eight
KEPT_BUDGET = 1 << 25  # elements of one [B, C, P, D] intermediate up to which training keeps them: about 1 GB in all
PAIR_BUDGET = 1 << 23  # elements of GMC's pairwise tensor held at once
GRAPH_DROPOUT = 0.3  # in training only, on the input of both GATv2 layers and on their attention


def wide(x: Tensor) -> Tensor:
    """fp16 and bf16 as fp32, in which norms, softmax and sums are computed; fp32 and fp64 as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def recomputed(function: Callable[..., Tensor], *inputs: Tensor, elements: int) -> Tensor:
    """`function(*inputs)`, a part of something whose intermediates have `elements` elements in all.

    With gradients and more than KEPT_BUDGET they are not kept, but computed again in the backward pass.
    """
    if not torch.is_grad_enabled() or elements <= KEPT_BUDGET:
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False)
    return result


def full_precision(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method whose products mixed precision leaves in the dtype of their inputs, since they feed a softmax or a norm."""

    @wraps(method)
    def in_full(self: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return method(self, x, *others)

    return in_full


def encode_image(visual: ImageTower, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The image tower: pixels [B, 3, H, W] → patches X [B, P, D], global g [B, D].

    A tower without patches gives X [B, 0, D], one without a global feature g [B, 0].
    """
    tokens = visual(pixels)
    return (tokens[:, 1:], tokens[:, 0]) if visual.has_global else (tokens, tokens[:, 0, :0])


def encode_text(text: TextTransformer, token_ids: Tensor) -> Tensor:
    """CLIP's causal text transformer at the end-of-text token: token ids [N, L] → label embeddings [N, D], not normalised.

    L may be less than the context: no token sees those after it, so columns behind the last end-of-text token change nothing.
    """
    tokens = text(token_ids)
    end_of_text = token_ids.argmax(dim=-1, keepdim=True)[:, :, None]  # it has the highest id
    # Gathered, not indexed: torch 2.11 exports that pair of indices to a graph that does not run.
    return tokens.gather(1, end_of_text.expand(-1, -1, tokens.shape[2]))[:, 0] @ text.text_projection


class GraphAttention(nn.Module):
    """One GATv2 layer over the complete graph of labels, self loops included; one matrix serves both ends of an edge.

    e[i, j, h] = a · LeakyReLU(z[i, h] + z[j, h]), out[i] = concat over h of Σ_j softmax_j(e)[i, j, h] z[j, h], z = h Wᵀ.
    """

    def __init__(self, config: GraphConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.linear = nn.Linear(config.width_in, config.heads * config.width_head, bias=False)
        bound = config.width_head**-0.5
        self.attention = nn.Parameter(torch.empty(config.width_head).uniform_(-bound, bound))

    def nodes(self, h: Tensor) -> Tensor:
        """h [C, F_in] → z [C, H, F], in fp32 or wider."""
        return wide(self.linear(h)).unflatten(-1, (self.heads, -1))

    def forward(self, h: Tensor) -> Tensor:
        """h [C, F_in] → [C, H·F], a block of rows at a time, in fp32 or wider."""
        z = self.nodes(F.dropout(h, GRAPH_DROPOUT, self.training))
        rows = max(1, PAIR_BUDGET // z.numel())
        return torch.cat([recomputed(self.attend, block, z, elements=len(z) * z.numel()) for block in z.split(rows)])

    @full_precision
    def attend(self, queries: Tensor, z: Tensor) -> Tensor:
        """queries [R, H, F] against all z [C, H, F] → [R, H·F]."""
        pairs = F.leaky_relu(queries[:, None] + z[None], LEAKY_SLOPE)  # [R, C, H, F]
        weights = torch.softmax(pairs @ wide(self.attention), dim=1)  # [R, C, H]
        weights = F.dropout(weights, GRAPH_DROPOUT, self.training)
        return torch.einsum("rch,chf->rhf", weights, z).flatten(1)


class GMC(nn.Module):
    """The label graph: T [C, D] → G [C, D]. A row depends on the whole vocabulary, and moves with its label."""

    def __init__(self, layers: tuple[GraphConfig, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GraphAttention(layer) for layer in layers)

    def forward(self, label_embedding: Tensor) -> Tensor:
        h = self.layers[0](label_embedding)
        for layer in self.layers[1:]:
            h = layer(F.elu(h).to(label_embedding.dtype))
        return h.to(label_embedding.dtype)


class SVFR(nn.Module):
    """Label-conditioned reconstruction of the patch features: decouple by label, fuse with the label graph, reconstruct.

    The biases exist because checkpoints hold them; the softmax over patches cancels them, so only the materialised form adds
    them.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.decouple = nn.Linear(dim, dim)  # W1, b1
        self.fuse = nn.Linear(2 * dim, dim, bias=False)  # Wf = [Wa, Wb]: columns that meet O, columns that meet G
        self.reconstruct = nn.Linear(dim, dim)  # W2, b2

    def graph_projection(self, graph: Tensor) -> Tensor:
        """G [C, D] → G Wbᵀ [C, D], the part of V that only the vocabulary decides."""
        return F.linear(graph, self.fuse.weight[:, graph.shape[-1] :])

    def forward(self, patches: Tensor, label_embedding: Tensor, graph_projection: Tensor) -> Tensor:
        """patches X [B, P, D], T [C, D], G Wbᵀ [C, D] → Y [B, P, D]."""
        tile = max(1, min(LABEL_TILE, TILE_BUDGET // patches.numel()))
        labels = label_embedding.expand(patches.shape[0], -1, -1)
        part = partial(recomputed, elements=patches.numel() * len(label_embedding))
        semantic = torch.cat([part(self.decoupled, patches, rows) for rows in labels.split(tile, dim=1)], dim=1)
        v = self.between(semantic, label_embedding, graph_projection).to(patches.dtype)
        weight = torch.zeros_like(wide(patches))
        for rows in v.split(tile, dim=1):
            weight = weight + part(self.reconstructed, patches, rows)
        return (wide(patches) * weight).to(patches.dtype)

    def decoupled(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Stage 1 of a tile of labels: X [B, P, D], T rows [B, tile, D] → S rows [B, tile, D]."""
        return self._attention(self.decouple, patches, labels).mul(wide(patches)[:, None]).sum(2)

    def reconstructed(self, patches: Tensor, labels: Tensor) -> Tensor:
        """Stage 2 of a tile of labels, before X is multiplied: X [B, P, D], V rows [B, tile, D] → [B, P, D]."""
        return self._attention(self.reconstruct, patches, labels).sum(1)

    @staticmethod
    def _attention(linear: nn.Linear, patches: Tensor, labels: Tensor) -> Tensor:
        """softmax over patches of W tanh(X ⊙ label) [B, tile, P, D], in fp32 or wider."""
        energy = F.linear(torch.tanh(patches[:, None] * labels[:, :, None]), linear.weight)
        return torch.softmax(wide(energy), dim=2)

    @full_precision
    def between(self, semantic: Tensor, label_embedding: Tensor, graph_projection: Tensor) -> Tensor:
        """S [B, C, D] → V = S R Waᵀ + G Wbᵀ [B, C, D], R the rows of relu(Sᵀ T) scaled to unit norm, zero rows left zero."""
        relation = unit_rows(F.relu(semantic.transpose(1, 2) @ wide(label_embedding)))  # [B, D, D]
        fuse = wide(self.fuse.weight[:, : semantic.shape[-1]])
        return F.linear(semantic @ relation, fuse) + wide(graph_projection)


def local_match(local: Tensor, label_embedding: Tensor, topk: int) -> Tensor:
    """Mean of the k best patches of every label: Y [B, P, D], T [C, D] → [B, C]. k is cut to P."""
    similarity = local @ label_embedding.T
    return similarity.topk(min(topk, local.shape[1]), dim=1).values.mean(1)


def unit_rows(x: Tensor) -> Tensor:
    """Rows scaled to unit L2 norm; a zero row stays zero."""
    norm = x.norm(dim=-1, keepdim=True)
    return x / torch.where(norm > 0, norm, torch.ones_like(norm))


def match(arch: Arch, local: Tensor, global_feature: Tensor, label_embedding: Tensor, topk: int) -> Tensor:
    """Scores [B, C] by the architecture's rule (see `Arch`). They rank the labels of one picture."""
    matches = [local_match(local, label_embedding, topk)] if arch.has_local else []
    if arch.has_global:
        picture = unit_rows(global_feature) if arch.unit_global else global_feature
        matches.append(picture @ (unit_rows(label_embedding) if arch.unit_labels else label_embedding).T)
    if arch.compares_labels:
        matches = [unit_rows(each) for each in matches]
    score = matches[0] if len(matches) == 1 else (matches[0] + matches[1]) / 2
    return torch.sigmoid(score) if arch.gives_probabilities else score


def _image_tower(config: ModelConfig) -> ImageTower:
    vision, dim = config.vision, config.embed_dim
    if isinstance(vision, ResNetConfig):
        return ResNet(vision, dim)
    if isinstance(vision, VggConfig):
        return VggTower(vision)
    if isinstance(vision, Ml2pConfig):
        return Ml2pTower(vision)
    return BiamTower(vision, dim) if isinstance(vision, BiamConfig) else VisionTransformer(vision, dim)


class SigRL(nn.Module):
    """The whole model. `text` is None where label embeddings come from a file, `gmc` and `svfr` where there is no graph."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = _image_tower(config)
        self.text = TextTransformer(config.text, config.embed_dim) if config.text else None
        self.gmc = GMC(config.graph) if config.arch.has_graph else None
        self.svfr = SVFR(config.embed_dim) if config.arch.has_graph else None

    @property
    def vit(self) -> VisionTransformer:
        """The image tower, where it is a ViT. Raises ValueError for another."""
        if not isinstance(self.visual, VisionTransformer):
            raise ValueError("the image tower is no ViT")
        return self.visual

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix weights."""
        return next(self.visual.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.visual.parameters()).device

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """token ids [N, L] → label embeddings [N, D]; see `encode_text`."""
        if self.text is None:
            raise ValueError("this model has no text tower")
        return encode_text(self.text, token_ids)

    def graph_projection(self, label_embedding: Tensor) -> Tensor | None:
        """T [C, D] → G Wbᵀ [C, D], fixed by the vocabulary; None without a label graph."""
        if self.gmc is None or self.svfr is None:
            return None
        return self.svfr.graph_projection(self.gmc(label_embedding))

    def encode_image(self, pixels: Tensor, label_embedding: Tensor, graph_projection: Tensor | None) -> tuple[Tensor, Tensor]:
        """pixels [B, 3, H, W] → local features [B, P, D] to match labels against, global feature [B, D]."""
        patches, global_feature = encode_image(self.visual, pixels)
        if self.svfr is not None and graph_projection is not None:
            patches = self.svfr(patches, label_embedding, graph_projection)
        return patches, global_feature

    def forward(self, pixels: Tensor, label_embedding: Tensor, graph_projection: Tensor | None = None) -> Tensor:
        """pixels [B, 3, H, W], T [C, D] → scores [B, C]; `graph_projection` is computed where it is not given."""
        if graph_projection is None:
            graph_projection = self.graph_projection(label_embedding)
        local, global_feature = self.encode_image(pixels, label_embedding, graph_projection)
        return match(self.config.arch, local, global_feature, label_embedding, self.config.topk)
