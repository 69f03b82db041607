"""Local and global matching, fused: the [P, C] similarities leave the chip only where the evidence grid is asked for.

    local[c]  = mean of the k largest of { Y[n] · T[c] : n }
    global[c] = g · T[c]
    score     = (local / ‖local‖ + global / ‖global‖) / 2, norms over the labels of a picture

(design, "Matching"). Shapes: Y [B, P, D], g [B, D], T [C, D] → scores [B, C] fp32. Cost: 2·P·C·D FLOP a picture. The k-th
largest similarity of a label is found exactly, whatever k is, by 32 counts over its patches: one bit of an ordered integer a
count. Ties at the k-th place count as often as the k places leave room for. The plain form is `match` of `model/sigrl.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigrl_deploy.kernels.blocks import Launch, block, check, depth_block, interpreted, product

NORM_BLOCK = 1024

# As in svfr.py, by (BLOCK_P, bytes of the dtype): (BLOCK_C, BLOCK_K, warps, stages).
CANDIDATES = {
    (64, 2): ((32, 64, 8, 3), (64, 64, 16, 2)),
    (256, 2): ((16, 64, 4, 3), (32, 64, 8, 3), (32, 64, 16, 3), (64, 64, 16, 2)),
    (1024, 2): ((16, 32, 8, 3), (32, 32, 8, 2), (32, 32, 16, 3)),
    (64, 4): ((32, 32, 8, 3), (64, 32, 16, 2)),
    (256, 4): ((32, 32, 8, 3), (32, 32, 16, 3)),
    (1024, 4): ((32, 16, 8, 2), (16, 16, 16, 3)),
}


@triton.jit
def _mean_of_largest(values, inside, topk):
    """values [R, P] fp32 → mean of each row's `topk` largest [R]; `inside` masks out padding."""
    bits = values.to(tl.int32, bitcast=True)
    flipped = tl.where(bits < 0, bits ^ -1, bits ^ -2147483648)  # ordered as unsigned integers as the values are
    key = tl.where(inside, flipped, 0).to(tl.uint32, bitcast=True)  # 0 is below every number
    kth = tl.zeros_like(tl.max(key, 1))
    bit = tl.full([], 1, tl.uint32) << 31
    for _ in range(32):
        candidate = kth | bit
        enough = tl.sum((key >= candidate[:, None]).to(tl.int32), 1) >= topk
        kth = tl.where(enough, candidate, kth)
        bit = bit >> 1
    above = key > kth[:, None]
    room = topk - tl.sum(above.to(tl.int32), 1)
    return (tl.sum(tl.where(above, _value(key), 0.0), 1) + room * _value(kth)) / topk


@triton.jit
def _value(key):
    """The fp32 number that an ordered integer stands for. Decoding saves the registers that the numbers would take."""
    bits = key.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ -2147483648, bits ^ -1).to(tl.float32, bitcast=True)


@triton.jit
def match_kernel(
    local_feature,  # Y [B, P, D]
    global_feature,  # g [B, D]
    labels,  # T [C, D]
    local_score,  # out: [B, C] fp32
    global_score,  # out: [B, C] fp32
    evidence,  # out: [B, C, P] fp32, where WITH_EVIDENCE
    rows,  # C
    topk,
    TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WITH_EVIDENCE: tl.constexpr,
    WIDE_DOT: tl.constexpr,
):
    row = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    picture = tl.program_id(1).to(tl.int64)
    local_feature += picture * TOKENS * DIM
    patch = tl.arange(0, BLOCK_P)
    similarity = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    whole = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, DIM, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        t = tl.load(labels + row[:, None] * DIM + k[None, :], (row < rows)[:, None] & (k < DIM)[None, :], 0.0)
        y = local_feature + patch[None, :] * DIM + k[:, None]
        similarity = product(t, tl.load(y, (patch < TOKENS)[None, :] & (k < DIM)[:, None], 0.0), similarity, WIDE_DOT)
        g = tl.load(global_feature + picture * DIM + k, k < DIM, 0.0)
        whole += tl.sum(t.to(tl.float32) * g.to(tl.float32)[None, :], 1)
    inside = tl.broadcast_to((patch < TOKENS)[None, :], [BLOCK_C, BLOCK_P])
    out = picture * rows + row
    tl.store(local_score + out, _mean_of_largest(similarity, inside, topk), row < rows)
    tl.store(global_score + out, whole, row < rows)
    if WITH_EVIDENCE:
        tl.store(evidence + out[:, None] * TOKENS + patch[None, :], similarity, inside & (row < rows)[:, None])


@triton.jit
def mix_kernel(
    local_score,  # [B, C] fp32
    global_score,  # [B, C] fp32
    score,  # out: [B, C] fp32
    rows,  # C
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * rows
    squares_local = tl.zeros([BLOCK], tl.float32)
    squares_global = tl.zeros([BLOCK], tl.float32)
    for start in range(0, rows, BLOCK):
        c = start + tl.arange(0, BLOCK)
        a = tl.load(local_score + first + c, c < rows, 0.0)
        b = tl.load(global_score + first + c, c < rows, 0.0)
        squares_local += a * a
        squares_global += b * b
    norm_local = tl.sqrt(tl.sum(squares_local, 0))
    norm_global = tl.sqrt(tl.sum(squares_global, 0))
    norm_local = tl.where(norm_local > 0, norm_local, 1.0)
    norm_global = tl.where(norm_global > 0, norm_global, 1.0)
    for start in range(0, rows, BLOCK):
        c = start + tl.arange(0, BLOCK)
        a = tl.load(local_score + first + c, c < rows, 0.0)
        b = tl.load(global_score + first + c, c < rows, 0.0)
        tl.store(score + first + c, (a / norm_local + b / norm_global) / 2, c < rows)


def launch(tokens: int, dim: int, dtype: torch.dtype) -> Launch:
    """Block sizes for P patches."""
    block_p = block(tokens)
    constants = {
        "TOKENS": tokens,
        "DIM": dim,
        "BLOCK_C": block(16, max(16, 8192 // block_p)),
        "BLOCK_P": block_p,
        "BLOCK_K": depth_block(dim, block_p, dtype),
        "WIDE_DOT": interpreted(),
    }
    if block_p < 1024:
        return Launch(constants, warps=4 if block_p <= 64 else 8, stages=2)
    # What keeps the largest tiles in registers, as compile.py found.
    return Launch(constants, warps=8, stages=1) if dtype is torch.float32 else Launch(constants, warps=16, stages=2)


def candidates(tokens: int, dim: int, dtype: torch.dtype) -> tuple[Launch, ...]:
    """What tuning chooses from, `launch`'s own choice first."""
    first = launch(tokens, dim, dtype)
    others = CANDIDATES.get((first.constants["BLOCK_P"], dtype.itemsize), ())
    return first, *(first.altered(warps, stages, BLOCK_C=c, BLOCK_K=k) for c, k, warps, stages in others)


def match(
    local_feature: Tensor,
    global_feature: Tensor,
    label_embedding: Tensor,
    topk: int,
    with_evidence: bool = False,
    how: Launch | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Y [B, P, D], g [B, D], T [C, D], all of one dtype → scores [B, C] fp32, and Y · T [B, C, P] fp32 where asked for.

    k is cut to P. Zero rows of T behind the labels score 0 and change no other score. `how` is one of `candidates`, by default
    the first.
    """
    check("match", local_feature, global_feature, label_embedding)
    (batch, tokens, dim), rows = local_feature.shape, label_embedding.shape[0]
    how = how or launch(tokens, dim, local_feature.dtype)
    local_score, global_score, score = (torch.empty(batch, rows, device=local_feature.device) for _ in range(3))
    evidence = torch.empty((batch, rows, tokens) if with_evidence else (1,), device=local_feature.device)
    grid = (triton.cdiv(rows, how.constants["BLOCK_C"]), batch)
    match_kernel[grid](
        local_feature.contiguous(), global_feature.contiguous(), label_embedding.contiguous(),
        local_score, global_score, evidence, rows, min(topk, tokens),
        WITH_EVIDENCE=with_evidence, **how.constants, num_warps=how.warps, num_stages=how.stages,
    )  # fmt: skip
    mix_kernel[(batch,)](local_score, global_score, score, rows, BLOCK=NORM_BLOCK, num_warps=4)
    return score, evidence if with_evidence else None
