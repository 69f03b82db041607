"""What tuning measures: each kernel at the size of a model, on random numbers of a small batch and vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sigrl_deploy.config import Arch, GraphConfig
from sigrl_deploy.kernels import between, gmc, match, svfr, vit
from sigrl_deploy.kernels.tuning import Case

PICTURES = 4
LABELS = 256


@dataclass(frozen=True)
class Sizes:
    """What kernels need of a model: P patches, D, k, the layers of GMC, and the ViT's width where it runs as kernels."""

    arch: Arch
    patches: int
    dim: int
    topk: int
    graph: tuple[GraphConfig, ...] = ()
    width: int = 0


def cases(sizes: Sizes, dtype: torch.dtype, device: torch.device, fused: Collection[str]) -> Iterator[Case]:
    """A case for every kernel that the model needs for the ops in `fused`: "svfr.decouple", "svfr.between",
    "svfr.reconstruct", "match", "gmc F" for heads of F features, and "tower". Each holds some megabytes on the device while it
    lives.
    """
    patches, dim = sizes.patches, sizes.dim
    size = f"P = {patches}, D = {dim}, {str(dtype).removeprefix('torch.')}"

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    if "svfr" in fused and sizes.arch.has_graph:
        x, t, weight = random(PICTURES, patches, dim), random(LABELS, dim), random(dim, dim) / dim**0.5
        stage1, stage2 = (svfr.candidates(patches, dim, dtype, accumulators) for accumulators in (1, 2))
        yield Case("svfr.decouple", size, stage1, lambda how: svfr.decouple(x, t, weight, how=how))
        v = random(PICTURES, LABELS, dim)
        semantic, wide, hows = v.float(), random(dim, 2 * dim), between.candidates(dim, dtype)
        yield Case("svfr.between", size, hows, lambda how: between.between(semantic, t, t, wide, how=how))
        yield Case("svfr.reconstruct", size, stage2, lambda how: svfr.reconstruct(x, v, weight, how=how))
    if "match" in fused and sizes.arch.has_local:
        y, g, labels = random(PICTURES, patches, dim), random(PICTURES, dim), random(4 * LABELS, dim)
        hows = match.candidates(patches, dim, dtype)
        yield Case("match", size, hows, lambda how: match.match(y, g, labels, sizes.topk, how=how))
    if "tower" in fused and sizes.width:
        stream = random(PICTURES, patches + 1, sizes.width)
        delta = torch.zeros_like(stream).view(-1, sizes.width)  # it is added to the stream with every run
        norm, hows = torch.nn.LayerNorm(sizes.width, device=device), vit.candidates(sizes.width)
        yield Case("tower", f"W = {sizes.width}, {size}", hows, lambda how: vit.add_norm(stream, delta, norm, how=how))
    if "gmc" in fused:
        for layer in sizes.graph:
            yield _graph_case(layer.heads, layer.width_head, device)


def _graph_case(heads: int, width: int, device: torch.device) -> Case:
    nodes, attention = torch.randn(4 * LABELS, heads, width, device=device), torch.randn(width, device=device)
    hows = gmc.candidates(width)
    return Case(f"gmc {width}", f"H = {heads}", hows, lambda how: gmc.graph_attention(nodes, attention, how))
