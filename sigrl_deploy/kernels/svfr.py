"""SVFR, fused: of its [P, C, D] intermediates none leaves the chip.

    S[c, d] = Σ_n softmax_n(E1)[n, c, d] X[n, d]          E1[n, c, d] = Σ_j W1[d, j] tanh(X[n, j] T[c, j])      stage 1
    V       = S R Waᵀ + G Wbᵀ                              R = unit rows of relu(Sᵀ T)                             between
    Y[n, d] = X[n, d] Σ_c softmax_n(E2)[n, c, d]          E2[n, c, d] = Σ_j W2[d, j] tanh(X[n, j] V[c, j])      stage 2

(design, "Image side"). Shapes: X [B, P, D], T and G Wbᵀ [C, D], W [D, D]; Y [B, P, D]. A stage is 2·P·C·D² FLOP on the tensor
cores and P·C·D exponentials; a tanh is computed once for each block of output channels. Both stages compute the transposed
energy [channels, patches], so that the softmax is a reduction along rows of the accumulator, and all patches of a label are at
hand at once. Stage 2 sums over labels in registers; labels are split over programs, and the partial sums [splits, B, P, D]
added. Inputs fp32, fp16 or bf16; accumulation, softmax and sums are in fp32. The plain form is `svfr_stages` of
`model/materialised.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels.blocks import MIN_BLOCK, Launch, block, check, depth_block, precision, product, tanh
from sigrl_deploy.model.sigrl import SVFR

MAX_PATCHES = 1024
PROGRAMS = 256  # what stage 2 splits its labels for: two a multiprocessor of the largest GPUs

# What tuning tries beside `launch`'s choice: (BLOCK_O, BLOCK_K, warps, stages), by accumulators, P or else BLOCK_P, and the
# dtype's bytes. None spills or exceeds shared memory on sm_90 at the sizes of compile.py, which checks that with --candidates.
CANDIDATES = {
    (1, 64, 2): ((64, 64, 8, 3), (128, 64, 8, 3), (128, 64, 16, 3), (256, 64, 16, 2)),
    (1, 196, 2): ((64, 64, 8, 3), (64, 32, 8, 4), (128, 64, 8, 3), (128, 32, 8, 3), (128, 64, 16, 3)),
    (1, 256, 2): ((64, 64, 8, 3), (64, 32, 8, 4), (64, 64, 16, 3)),
    (1, 1024, 2): ((32, 32, 8, 2), (32, 32, 16, 2), (32, 16, 16, 3), (16, 32, 16, 3)),
    (1, 64, 4): ((32, 32, 8, 3), (64, 32, 8, 3), (64, 16, 8, 3)),
    (1, 256, 4): ((32, 32, 8, 3), (32, 32, 16, 3), (64, 32, 8, 3), (64, 16, 8, 3)),
    (1, 1024, 4): ((16, 16, 8, 3), (16, 16, 16, 3)),
    (2, 64, 2): ((64, 64, 8, 3), (128, 64, 8, 3), (128, 64, 16, 3), (256, 64, 16, 2)),
    (2, 256, 2): ((32, 64, 8, 3), (64, 64, 8, 3), (64, 32, 8, 3)),
    (2, 1024, 2): ((16, 32, 16, 3), (16, 16, 8, 3), (16, 64, 8, 2)),
    (2, 64, 4): ((32, 32, 8, 3), (64, 32, 8, 3), (64, 16, 8, 3)),
    (2, 256, 4): ((32, 32, 8, 3), (32, 16, 8, 3), (16, 32, 8, 3)),
}


@triton.jit
def _attention(
    patches,
    label,
    weight,
    channel,
    patch,
    TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FAST_TANH: tl.constexpr,
    WIDE_DOT: tl.constexpr,
):
    """exp(E - max_n E) of one label [BLOCK_O, BLOCK_P], 0 behind the last patch, and its sum over patches [BLOCK_O]."""
    energy = tl.zeros([BLOCK_O, BLOCK_P], tl.float32)
    for start in range(0, DIM, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w = tl.load(weight + channel[:, None] * DIM + k[None, :], (channel < DIM)[:, None] & (k < DIM)[None, :], 0.0)
        x = tl.load(patches + patch[None, :] * DIM + k[:, None], (patch < TOKENS)[None, :] & (k < DIM)[:, None], 0.0)
        t = tl.load(label + k, k < DIM, 0.0)
        bounded = tanh(x.to(tl.float32) * t.to(tl.float32)[:, None], FAST_TANH).to(w.dtype)
        energy = product(w, bounded, energy, WIDE_DOT)
    energy = tl.where((patch < TOKENS)[None, :], energy, float("-inf"))
    unscaled = tl.exp(energy - tl.max(energy, 1)[:, None])
    return unscaled, tl.sum(unscaled, 1)


@triton.jit
def decouple_kernel(
    patches,  # X [B, P, D]
    labels,  # T [C, D]
    weight,  # W1 [D, D]
    count,  # int32: labels that are not padding
    rows,  # C; behind the inputs and before the outputs, as TensorRT passes scalars
    semantic,  # out: S [B, C, D] fp32
    TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FAST_TANH: tl.constexpr,
    WIDE_DOT: tl.constexpr,
):
    # Programs of one label are neighbours: they read the same tanh inputs at the same time. Labels share the grid's first axis
    # with channels, since the others end at 65,535.
    program, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel_blocks: tl.constexpr = (DIM + BLOCK_O - 1) // BLOCK_O
    row = program // channel_blocks
    channel = program % channel_blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    patch = tl.arange(0, BLOCK_P)
    if row < tl.load(count):
        patches += picture * TOKENS * DIM
        unscaled, total = _attention(
            patches, labels + row * DIM, weight, channel, patch,
            TOKENS, DIM, BLOCK_O, BLOCK_P, BLOCK_K, FAST_TANH, WIDE_DOT,
        )  # fmt: skip
        inside = (channel < DIM)[:, None] & (patch < TOKENS)[None, :]
        own = tl.load(patches + patch[None, :] * DIM + channel[:, None], inside, 0.0).to(tl.float32)
        out = semantic + (picture * rows + row) * DIM + channel
        tl.store(out, tl.sum(unscaled * own, 1) / total, channel < DIM)


@triton.jit
def reconstruct_kernel(
    patches,  # X [B, P, D]
    labels,  # V [B, C, D]
    weight,  # W2 [D, D]
    count,  # int32: labels that are not padding
    rows,  # C
    splits,
    partial,  # out: [splits, B, P, D] fp32, Σ_c softmax over a split's labels
    TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    FAST_TANH: tl.constexpr,
    WIDE_DOT: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    split, picture = tl.program_id(1), tl.program_id(2).to(tl.int64)
    patch = tl.arange(0, BLOCK_P)
    patches += picture * TOKENS * DIM
    labels += picture * rows * DIM
    sums = tl.zeros([BLOCK_O, BLOCK_P], tl.float32)
    for row in range(split, tl.load(count), splits):
        unscaled, total = _attention(
            patches, labels + row * DIM, weight, channel, patch,
            TOKENS, DIM, BLOCK_O, BLOCK_P, BLOCK_K, FAST_TANH, WIDE_DOT,
        )  # fmt: skip
        sums += unscaled / total[:, None]
    out = partial + (split * tl.num_programs(2) + picture) * TOKENS * DIM
    inside = (channel < DIM)[:, None] & (patch < TOKENS)[None, :]
    tl.store(out + patch[None, :] * DIM + channel[:, None], sums, inside)


def launch(tokens: int, dim: int, dtype: torch.dtype, accumulators: int) -> Launch:
    """Block sizes for P patches: as many output channels as registers hold of `accumulators` tiles [channels, patches].

    Raises UsageError for more than MAX_PATCHES patches.
    """
    if tokens > MAX_PATCHES:
        raise UsageError(f"{tokens} patches: the SVFR kernels take {MAX_PATCHES} at most; switch the fused SVFR off")
    block_p, two_wide = block(tokens), accumulators == 2 and dtype is torch.float32
    block_o = block(dim, max(MIN_BLOCK, 16384 // accumulators // block_p))
    # What keeps two fp32 tiles in registers, as compile.py found.
    depth = MIN_BLOCK if two_wide and block_p >= 128 else depth_block(dim, block_p, dtype)
    constants = {
        "TOKENS": tokens,
        "DIM": dim,
        "BLOCK_O": min(block_o, 128 // dtype.itemsize),
        "BLOCK_P": block_p,
        "BLOCK_K": depth,
        **precision(dtype),
    }
    return Launch(constants, warps=8 if block_p * dtype.itemsize >= 256 else 4, stages=1 if two_wide and block_p >= 1024 else 2)


def candidates(tokens: int, dim: int, dtype: torch.dtype, accumulators: int) -> tuple[Launch, ...]:
    """What tuning chooses from, `launch`'s own choice first. Raises as it does."""
    first = launch(tokens, dim, dtype, accumulators)
    by_block = CANDIDATES.get((accumulators, first.constants["BLOCK_P"], dtype.itemsize), ())
    others = CANDIDATES.get((accumulators, tokens, dtype.itemsize), by_block)
    return first, *(first.altered(warps, stages, BLOCK_O=o, BLOCK_K=k) for o, k, warps, stages in others)


def decouple(patches: Tensor, labels: Tensor, weight: Tensor, count: Tensor | None = None, how: Launch | None = None) -> Tensor:
    """Stage 1: X [B, P, D], T [C, D], W1 [D, D] → S [B, C, D] fp32.

    `count` int32 [] on the device says how many of the C rows are labels; rows of S behind them are 0. `how` is one of
    `candidates`, by default the first.
    """
    check("svfr.decouple", patches, labels, weight)
    (batch, tokens, dim), rows = patches.shape, labels.shape[0]
    how = how or launch(tokens, dim, patches.dtype, accumulators=1)
    semantic = torch.zeros(batch, rows, dim, dtype=torch.float32, device=patches.device)
    decouple_kernel[triton.cdiv(dim, how.constants["BLOCK_O"]) * rows, batch](
        patches.contiguous(), labels.contiguous(), weight.contiguous(), _count(count, rows, patches), rows, semantic,
        **how.constants, num_warps=how.warps, num_stages=how.stages,
    )  # fmt: skip
    return semantic


def splits(rows: int, batch: int, channel_blocks: int) -> int:
    """Into how many parts stage 2 divides C labels, whose sums [splits, B, P, D] fp32 are added afterwards."""
    return max(1, min(rows, PROGRAMS // (channel_blocks * batch)))


def reconstruct(
    patches: Tensor, labels: Tensor, weight: Tensor, count: Tensor | None = None, how: Launch | None = None
) -> Tensor:
    """Stage 2: X [B, P, D], V [B, C, D], W2 [D, D] → Y [B, P, D] of X's dtype. `count` and `how` as in `decouple`."""
    check("svfr.reconstruct", patches, labels, weight)
    (batch, tokens, dim), rows = patches.shape, labels.shape[1]
    how = how or launch(tokens, dim, patches.dtype, accumulators=2)
    channel_blocks = triton.cdiv(dim, how.constants["BLOCK_O"])
    parts = splits(rows, batch, channel_blocks)
    partial = torch.empty(parts, batch, tokens, dim, dtype=torch.float32, device=patches.device)
    reconstruct_kernel[channel_blocks, parts, batch](
        patches.contiguous(), labels.contiguous(), weight.contiguous(), _count(count, rows, patches), rows, parts, partial,
        **how.constants, num_warps=how.warps, num_stages=how.stages,
    )  # fmt: skip
    return (patches.float() * partial.sum(0)).to(patches.dtype)


def _count(count: Tensor | None, rows: int, like: Tensor) -> Tensor:
    return torch.full((), rows, dtype=torch.int32, device=like.device) if count is None else count


def svfr(
    module: SVFR,
    patches: Tensor,
    label_embedding: Tensor,
    graph_projection: Tensor,
    count: Tensor | None = None,
    stage1: Launch | None = None,
    stage2: Launch | None = None,
) -> Tensor:
    """X [B, P, D], T [C, D], G Wbᵀ [C, D] → Y [B, P, D], with the module's weights, all of one dtype. Inference only.

    Rows of T behind `count` must be 0, so that they add nothing to Sᵀ T. `stage1` and `stage2` as `how` of `decouple`.
    """
    semantic = decouple(patches, label_embedding, module.decouple.weight, count, stage1)
    v = module.between(semantic, label_embedding, graph_projection).to(patches.dtype)
    return reconstruct(patches, v, module.reconstruct.weight, count, stage2)
