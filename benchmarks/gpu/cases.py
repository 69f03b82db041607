"""Every kernel as it is checked and timed: its candidates, its inputs, what runs it, and the same in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.machine import vit_flop
from sigrl_deploy.config import Arch, ModelConfig, Precision
from sigrl_deploy.kernels import between, gmc, match, svfr, vit
from sigrl_deploy.kernels.blocks import Launch
from sigrl_deploy.model import sigrl

TILE = 16  # labels at a time, in plain PyTorch
PAIRS = 1 << 24  # elements of GMC's pairwise tensor at a time
Dtype = torch.dtype
PRECISIONS = {torch.bfloat16: Precision.BF16, torch.float16: Precision.FP16, torch.float32: Precision.FP32}
Model = Callable[[Precision], sigrl.SigRL]
ALL = tuple(PRECISIONS)
# (batch, labels)
ERRORS = ((2, 81), (2, 1), (1, 1006), (1, 7586))
TIMES = ((1, 81), (1, 1006), (1, 20), (1, 256), (8, 81), (64, 81), (8, 1006))
REHEARSED = (1, 3)  # on a CPU
BEHIND_ENGINE = ((1, 64), (1, 128), (1, 1024), (4, 256), (4, 1024))  # its buckets, and what it tunes at


@dataclass(frozen=True)
class Kernel:
    """`inputs(labels, batch, dtype)` are what `run(*inputs, how)` and `plain(*inputs)` take; `plain` serves float64 too.

    `launches(dtype)` are the candidates. `flop(labels, batch)` are those of matrix products,
    0 where there are none. `labelled` is False where no label is in it, `pictured` where no picture is.
    """

    name: str
    dtypes: Sequence[Dtype]
    launches: Callable[[Dtype], Sequence[Launch]]
    inputs: Callable[[int, int, Dtype], tuple[Any, ...]]
    run: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    flop: Callable[[int, int], float]
    labelled: bool = True
    pictured: bool = True


def kernels(config: ModelConfig, model: Model, device: str) -> list[Kernel]:
    """All of them at the sizes of a model, which `model` gives in a precision."""
    patches, dim, topk = config.vision.grid**2, config.embed_dim, config.topk
    draw = partial(_draw, device)

    def stage(batch: int, dtype: Dtype, *labels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, rows, w = draw(dtype, batch, patches, dim), draw(dtype, *labels, dim), draw(dtype, dim, dim) / dim**0.5
        return x, rows, w, torch.tensor(labels[-1], dtype=torch.int32, device=device)

    def stage_launches(dtype: Dtype, stage: int) -> list[Launch]:
        """Those for weights whose energies are bounded, as these are, and those for any."""
        return [how for bounded in (True, False) for how in svfr.candidates(patches, dim, dtype, stage, bounded=bounded)]

    return [
        Kernel(
            "svfr.decouple", ALL,
            lambda dtype: stage_launches(dtype, 1),
            lambda labels, batch, dtype: stage(batch, dtype, labels),
            lambda x, t, w, count, how: svfr.decouple(x, t, w, count, how),
            lambda x, t, w, _: decouple(x, t, w),
            lambda labels, batch: 2 * batch * patches * labels * dim**2,
        ),
        Kernel(
            "svfr.reconstruct", ALL,
            lambda dtype: stage_launches(dtype, 2),
            lambda labels, batch, dtype: stage(batch, dtype, batch, labels),
            lambda x, v, w, count, how: svfr.reconstruct(x, v, w, count, how),
            lambda x, v, w, _: reconstruct(x, v, w),
            lambda labels, batch: 2 * batch * patches * labels * dim**2,
        ),
        Kernel(
            "match", ALL,
            lambda dtype: match.candidates(patches, dim, dtype),
            lambda labels, batch, dtype: (draw(dtype, batch, patches, dim), draw(dtype, batch, dim), draw(dtype, labels, dim)),
            lambda y, g, t, how: match.match(y, g, t, topk, how=how)[0],
            lambda y, g, t: sigrl.match(Arch.MKT, y, g, t, topk),
            lambda labels, batch: 2 * batch * (patches + 1) * labels * dim,
        ),
        _between(draw, dim),
        *(_graph(layer.heads, layer.width_head, draw) for layer in config.graph),
        _tower(model, draw, config),
    ]  # fmt: skip


def _draw(device: str, dtype: Dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, device=device).to(dtype)


def _graph(heads: int, width: int, draw: Callable[..., Tensor]) -> Kernel:
    return Kernel(
        f"gmc {width}", (torch.float32,),
        lambda _: gmc.candidates(width),
        lambda labels, _, dtype: (draw(dtype, labels, heads, width), draw(dtype, width)),
        lambda z, a, how: gmc.graph_attention(z, a, how),
        graph_attention,
        lambda labels, _: 2 * labels**2 * heads * width,  # of Σ_j α z[j]; the energies are no matrix product
        pictured=False,
    )  # fmt: skip


def _between(draw: Callable[..., Tensor], dim: int) -> Kernel:
    return Kernel(
        "svfr.between", ALL,
        lambda dtype: between.candidates(dim, dtype),
        lambda labels, batch, dtype: (
            draw(torch.float32, batch, labels, dim), draw(dtype, labels, dim), draw(dtype, labels, dim),
            draw(dtype, dim, 2 * dim) / dim**0.5,
        ),
        lambda s, t, p, w, how: between.between(s, t, p, w, how),
        plain_between,
        lambda labels, batch: batch * dim**2 * min(6 * labels, 4 * labels + 2 * dim),
    )  # fmt: skip


def _tower(model: Model, draw: Callable[..., Tensor], config: ModelConfig) -> Kernel:
    size = config.vision.image_size
    return Kernel(
        "vit.encode_image", ALL,
        lambda _: vit.candidates(config.vit.width),
        lambda _, batch, dtype: (model(PRECISIONS[dtype]).visual, draw(dtype, batch, 3, size, size)),
        lambda visual, pixels, how: _joined(vit.encode_image(visual, pixels, how=how)),
        lambda visual, pixels: _joined(sigrl.encode_image(visual, pixels)),
        lambda _, batch: batch * vit_flop(config),
        labelled=False,
    )  # fmt: skip


def _joined(features: tuple[Tensor, Tensor]) -> Tensor:
    return torch.cat([features[0], features[1][:, None]], dim=1)


def attention(x: Tensor, rows: Tensor, w: Tensor) -> Tensor:
    """softmax over patches of W tanh(X ⊙ rows): X [B, P, D], rows [B, tile, D] → [B, tile, P, D], in fp32 or wider."""
    return torch.softmax(sigrl.wide(F.linear(torch.tanh(x[:, None] * rows[:, :, None]), w)), dim=2)


def decouple(x: Tensor, t: Tensor, w: Tensor, of_tile: Callable[..., Tensor] | None = None) -> Tensor:
    """Stage 1, a tile of labels at a time; `of_tile` is what `decoupled` is."""
    of_tile = of_tile or decoupled
    return torch.cat([of_tile(x, rows, w) for rows in t.expand(len(x), -1, -1).split(TILE, dim=1)], dim=1)


def decoupled(x: Tensor, rows: Tensor, w: Tensor) -> Tensor:
    return (attention(x, rows, w) * sigrl.wide(x)[:, None]).sum(2)


def reconstruct(x: Tensor, v: Tensor, w: Tensor, of_tile: Callable[..., Tensor] | None = None) -> Tensor:
    """Stage 2, a tile of labels at a time; `of_tile` is what `reconstructed` is."""
    of_tile = of_tile or reconstructed
    weight = torch.zeros_like(sigrl.wide(x))
    for rows in v.split(TILE, dim=1):
        weight += of_tile(x, rows, w)
    return (sigrl.wide(x) * weight).to(x.dtype)


def reconstructed(x: Tensor, rows: Tensor, w: Tensor) -> Tensor:
    return attention(x, rows, w).sum(1)


def plain_between(s: Tensor, t: Tensor, projection: Tensor, w: Tensor) -> Tensor:
    """S [B, C, D], T and G Wbᵀ [C, D], Wf [D, 2·D] → V [B, C, D] of T's dtype, computed in fp32 or wider."""
    relation = sigrl.unit_rows(F.relu(s.transpose(1, 2) @ t.to(s.dtype)))
    return (F.linear(s @ relation, w[:, : s.shape[-1]].to(s.dtype)) + projection).to(t.dtype)


def graph_attention(z: Tensor, a: Tensor) -> Tensor:
    """One GATv2 layer behind its product, a block of rows at a time: z [C, H, F], a [F] → [C, H·F]."""
    found = []
    for rows in z.split(max(1, PAIRS // z.numel())):
        energy = F.leaky_relu(rows[:, None] + z[None], sigrl.LEAKY_SLOPE) @ a
        found.append(torch.einsum("rch,chf->rhf", torch.softmax(energy, dim=1), z).flatten(1))
    return torch.cat(found)
