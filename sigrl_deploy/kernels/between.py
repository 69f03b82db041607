"""The step between SVFR's stages, fused: three products on the tensor cores.

    A = relu(Sᵀ T)                              [B, D, D]
    M = (rows of A scaled to unit norm) Waᵀ     [B, D, D], a zero row of A stays zero
    V = S M + G Wbᵀ                             [B, C, D]

(docs/method.md, "Image side")

S R Waᵀ = S (R Waᵀ), so labels are an axis of two products only: 4·C·D² + 2·D³ FLOP a picture. Shapes: S
[B, C, D] fp32, T and G Wbᵀ [C, D], Wf = [Wa, Wb] [D, 2·D] → V [B, C, D] of T's dtype. The labels of Sᵀ T are split over
programs where there are many and few pictures; the second product adds the parts, takes the relu and sums the squares of each
row that it reads, so that sums never depend on timing. Operands of bf16 models are rounded to TF32, which
holds T and Wa as they are and rounds S, A and M by at most 2^-11; those of fp16 and fp32 models are three numbers of TF32:
rounded to one, an fp16 V would err more than twice as much. Emulated on random numbers, G = 0, D = 512, 1 to 7,586 labels, the
error of bf16 is at most 1.03 times, that of fp32 1.3 times the plain one. The plain form is `SVFR.between` of `model/sigrl.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigrl_deploy.kernels.blocks import Launch, block, check

PROGRAMS = 256  # what labels are split for: two a multiprocessor of the largest GPUs
MOST_SPLITS = 2  # each is read again by every program of the second product
CHUNK = 256  # labels whose products are added on the tensor cores, which cut where fp32 rounds

# As in svfr.py, by SINGLE: (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages).
CANDIDATES = {
    True: ((32, 32, 64, 4, 2), (32, 32, 32, 4, 4), (64, 64, 64, 8, 3), (64, 128, 32, 8, 3)),
    False: ((32, 32, 32, 4, 3), (32, 64, 32, 8, 3)),
}


@triton.jit
def _tf32(x, SINGLE: tl.constexpr):
    """x rounded to TF32, to which tensor cores would truncate it; x itself where a product is three of TF32."""
    if SINGLE:  # NaN stays NaN, which the sum could make another number
        rounded = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        x = tl.where(x == x, rounded, x)
    return x


@triton.jit
def _product(a, b, sum_in, SINGLE: tl.constexpr):
    """sum_in + a b of fp32 operands, which SINGLE says are numbers of TF32."""
    return tl.dot(a, b, sum_in, input_precision="tf32" if SINGLE else "tf32x3")


@triton.jit
def relation_kernel(
    semantic,  # S [B, C, D] fp32
    labels,  # T [C, D]
    partial,  # out: [splits, B, D, D] fp32, Sᵀ T over a split's labels
    rows,  # C
    splits,
    DIM: tl.constexpr,
    CHUNK: tl.constexpr,
    SINGLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile, picture, split = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2)
    tiles: tl.constexpr = (DIM + BLOCK_N - 1) // BLOCK_N
    i = tile // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    j = tile % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    semantic += picture * rows * DIM
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for chunk in range(split * CHUNK, rows, splits * CHUNK):
        part = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for start in range(chunk, tl.minimum(chunk + CHUNK, rows), BLOCK_K):
            c = start + tl.arange(0, BLOCK_K)
            s = tl.load(semantic + c[None, :] * DIM + i[:, None], (c < rows)[None, :] & (i < DIM)[:, None], 0.0)
            t = tl.load(labels + c[:, None] * DIM + j[None, :], (c < rows)[:, None] & (j < DIM)[None, :], 0.0)
            part = _product(_tf32(s, SINGLE), t.to(tl.float32), part, SINGLE)
        total += part
    out = partial + (split * tl.num_programs(1) + picture) * DIM * DIM
    tl.store(out + i[:, None] * DIM + j[None, :], total, (i < DIM)[:, None] & (j < DIM)[None, :])


@triton.jit
def fuse_kernel(
    partial,  # [SPLITS, B, D, D] fp32
    weight,  # Wf [D, 2·D]
    fused,  # out: Mᵀ [B, D, D] fp32, since TF32 products want both operands contiguous along what they add over
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    SINGLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles: tl.constexpr = (DIM + BLOCK_N - 1) // BLOCK_N
    i = tile // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tile % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    partial += picture * DIM * DIM
    stride = tl.num_programs(1).to(tl.int64) * DIM * DIM
    squares = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, DIM, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = (i < DIM)[:, None] & (k < DIM)[None, :]
        a = tl.load(partial + i[:, None] * DIM + k[None, :], inside, 0.0)
        for split in tl.static_range(1, SPLITS):
            a += tl.load(partial + split * stride + i[:, None] * DIM + k[None, :], inside, 0.0)
        a = tl.maximum(a, 0.0)
        squares += a * a
        w = tl.load(weight + o[None, :] * 2 * DIM + k[:, None], (k < DIM)[:, None] & (o < DIM)[None, :], 0.0)
        total = _product(_tf32(a, SINGLE), w.to(tl.float32), total, SINGLE)
    norm = tl.sqrt(tl.sum(squares, 1))
    m = _tf32(total / tl.where(norm > 0, norm, 1.0)[:, None], SINGLE)
    out = fused + picture * DIM * DIM
    tl.store(out + o[None, :] * DIM + i[:, None], m, (i < DIM)[:, None] & (o < DIM)[None, :])


@triton.jit
def combine_kernel(
    semantic,  # S [B, C, D] fp32
    fused,  # Mᵀ [B, D, D] fp32
    projection,  # G Wbᵀ [C, D]
    v,  # out: V [B, C, D]
    rows,  # C
    DIM: tl.constexpr,
    SINGLE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles: tl.constexpr = (DIM + BLOCK_N - 1) // BLOCK_N
    c = tile // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    o = tile % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    semantic += picture * rows * DIM
    fused += picture * DIM * DIM
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, DIM, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        s = tl.load(semantic + c[:, None] * DIM + k[None, :], (c < rows)[:, None] & (k < DIM)[None, :], 0.0)
        m = tl.load(fused + o[None, :] * DIM + k[:, None], (k < DIM)[:, None] & (o < DIM)[None, :], 0.0)
        total = _product(_tf32(s, SINGLE), m, total, SINGLE)
    inside, place = (c < rows)[:, None] & (o < DIM)[None, :], c[:, None] * DIM + o[None, :]
    total += tl.load(projection + place, inside, 0.0).to(tl.float32)
    tl.store(v + picture * rows * DIM + place, total.to(v.dtype.element_ty), inside)


def launch(dim: int, dtype: torch.dtype) -> Launch:
    """Block sizes of all three products, for a width of D."""
    constants = {
        "DIM": dim,
        "SINGLE": dtype is torch.bfloat16,
        "BLOCK_M": block(dim, 64),
        "BLOCK_N": block(dim, 64),
        "BLOCK_K": block(dim, 32),
    }
    # Those that do not need more registers than there are, as compile.py found.
    return Launch(constants, warps=4, stages=3) if constants["SINGLE"] else Launch(constants, warps=8, stages=2)


def candidates(dim: int, dtype: torch.dtype) -> tuple[Launch, ...]:
    """The launches that tuning tries, `launch`'s default first."""
    first = launch(dim, dtype)
    others = CANDIDATES[first.constants["SINGLE"]]
    return first, *(first.altered(warps, stages, BLOCK_M=m, BLOCK_N=n, BLOCK_K=k) for m, n, k, warps, stages in others)


def splits(rows: int, batch: int, tiles: int) -> int:
    """How many parts Sᵀ T divides C labels into: a power of two, since each number is compiled separately."""
    most = min(MOST_SPLITS, triton.cdiv(rows, CHUNK), max(1, PROGRAMS // (tiles * batch)))
    return 1 << (most.bit_length() - 1)


def between(
    semantic: Tensor, label_embedding: Tensor, graph_projection: Tensor, weight: Tensor, how: Launch | None = None
) -> Tensor:
    """S [B, C, D] fp32, T and G Wbᵀ [C, D], Wf [D, 2·D] → V [B, C, D] of T's dtype.

    Padding labels have zero rows in S and T. `how` is one of `candidates`, by default the first.
    """
    check("svfr.between", label_embedding, graph_projection, weight)
    batch, rows, dim = semantic.shape
    how = how or launch(dim, label_embedding.dtype)
    side, across = how.constants["BLOCK_M"], triton.cdiv(dim, how.constants["BLOCK_N"])
    tiles = triton.cdiv(dim, side) * across
    parts = splits(rows, batch, tiles)
    options = how.constants | {"num_warps": how.warps, "num_stages": how.stages}
    semantic, label_embedding = semantic.contiguous(), label_embedding.contiguous()
    partial = torch.empty(parts, batch, dim, dim, dtype=torch.float32, device=semantic.device)
    relation_kernel[tiles, batch, parts](semantic, label_embedding, partial, rows, parts, CHUNK=CHUNK, **options)
    fused = torch.empty_like(partial[0])
    fuse_kernel[tiles, batch](partial, weight.contiguous(), fused, SPLITS=parts, **options)
    v = torch.empty(batch, rows, dim, dtype=label_embedding.dtype, device=semantic.device)
    combine_kernel[triton.cdiv(rows, side) * across, batch](semantic, fused, graph_projection.contiguous(), v, rows, **options)
    return v
