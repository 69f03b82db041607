"""What tuning measures: each kernel at the sizes of a model and of a pass, on random numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sigrl_deploy.config import Arch, GraphConfig
from sigrl_deploy.kernels import between, gmc, match, svfr, vit
from sigrl_deploy.kernels.tuning import Case

LARGEST = 4096  # pictures × labels, above which more of them change no choice: every multiprocessor has work for long


@dataclass(frozen=True)
class Sizes:
    """What kernels need to know about a model: P, D, k, the layers of GMC, and the ViT's width where it runs as kernels."""

    arch: Arch
    patches: int
    dim: int
    topk: int
    graph: tuple[GraphConfig, ...] = ()
    width: int = 0  # of the ViT, where it runs as kernels
    bounded: tuple[bool, bool] = (False, False)  # of SVFR's stages, see `svfr.bounded`


@dataclass(frozen=True)
class Shape:
    """The size of one pass: pictures, and labels with padding (`rows`) and without."""

    pictures: int
    rows: int
    labels: int

    def __str__(self) -> str:
        return f"at {self.pictures} pictures and {self.labels} labels"

    @property
    def size_class(self) -> int:
        """The power of four that covers pictures × rows, at most LARGEST. Tuning at one size serves the whole class."""
        covered = (self.pictures * self.rows - 1).bit_length()
        return min(LARGEST, 1 << (covered + covered % 2))

    @property
    def cut(self) -> Shape:
        """The same with fewer pictures, where that is enough for LARGEST."""
        return replace(self, pictures=max(1, min(self.pictures, LARGEST // self.rows)))


def cases(sizes: Sizes, dtype: torch.dtype, device: torch.device, fused: Collection[str], shape: Shape) -> Iterator[Case]:
    """A case for every kernel that the model needs for the ops in `fused`: "svfr.decouple", "svfr.between",
    "svfr.reconstruct", "match", "gmc F" for heads of F features, and "tower". Each holds some megabytes on the device while it
    lives.
    """
    patches, dim, served = sizes.patches, sizes.dim, shape.cut
    size = f"P = {patches}, D = {dim}, {str(dtype).removeprefix('torch.')}, pictures × labels to {shape.size_class}"

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    if "svfr" in fused and sizes.arch.has_graph:
        x, t, weight = random(served.pictures, patches, dim), random(served.rows, dim), random(dim, dim) / dim**0.5
        count = torch.tensor(served.labels, dtype=torch.int32, device=device)
        stage1, stage2 = (svfr.candidates(patches, dim, dtype, stage, bounded=sizes.bounded[stage - 1]) for stage in (1, 2))
        sizes1, sizes2 = (f"{size}{', bounded' if bounded else ''}" for bounded in sizes.bounded)
        yield Case("svfr.decouple", sizes1, stage1, lambda how: svfr.decouple(x, t, weight, count=count, how=how))
        v = random(served.pictures, served.rows, dim)
        semantic, fuse, hows = v.float(), random(dim, 2 * dim), between.candidates(dim, dtype)
        yield Case("svfr.between", size, hows, lambda how: between.between(semantic, t, t, fuse, how=how))
        yield Case("svfr.reconstruct", sizes2, stage2, lambda how: svfr.reconstruct(x, v, weight, count=count, how=how))
    if "match" in fused and sizes.arch.has_match_kernel:
        y, g, labels = random(served.pictures, patches, dim), random(served.pictures, dim), random(served.rows, dim)
        hows = match.candidates(patches, dim, dtype)
        yield Case("match", size, hows, lambda how: match.match(y, g, labels, sizes.topk, how=how))
    if "tower" in fused and sizes.width:
        stream = random(served.pictures, patches + 1, sizes.width)
        delta = torch.zeros_like(stream).view(-1, sizes.width)  # it is added to the stream with every run
        norm, hows = torch.nn.LayerNorm(sizes.width, device=device), vit.candidates(sizes.width)
        yield Case("tower", f"W = {sizes.width}, {size}", hows, lambda how: vit.add_norm(stream, delta, norm, how=how))
    if "gmc" in fused:
        for layer in sizes.graph:
            yield _graph_case(layer.heads, layer.width_head, served.labels, f"labels to {shape.size_class}", device)


def _graph_case(heads: int, width: int, labels: int, size: str, device: torch.device) -> Case:
    nodes, attention = torch.randn(labels, heads, width, device=device), torch.randn(width, device=device)
    hows = gmc.candidates(width)
    return Case(f"gmc {width}", f"H = {heads}, {size}", hows, lambda how: gmc.graph_attention(nodes, attention, how))
