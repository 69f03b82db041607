"""Local and global matching in three kernels: similarities, the best patches of every label, norms over labels.

    local[c]  = mean of the k largest of { Y[n] · T[c] : n }
    global[c] = g · T[c]
    score     = (local / ‖local‖ + global / ‖global‖) / 2, norms over the labels of a picture

(docs/method.md, "Scores")

Shapes: Y [B, P, D], g [B, D], T [C, D] → scores [B, C] fp32. Cost: 2·P·C·D FLOP a picture, and the
similarities [B, C, P] fp32, which stay in L2 for a picture of some thousand labels. The k-th largest similarity of a label is
found exactly, whatever k is, by 32 counts over its patches: one bit of an ordered integer a count. One warp does that for a
label, so that no count waits for other warps, and there are as many programs as labels. Ties at the k-th place count as often
as the k places leave room for. The plain form is `match` of `model/sigrl.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigrl_deploy.kernels.blocks import Launch, block, check, interpreted, product

NORM_BLOCK = 1024
PATCHES_A_WARP = 1024  # that a warp holds of a label, 32 a thread
LABELS_A_PROGRAM = 16 if interpreted() else 1  # the interpreter takes long for every program

# As in svfr.py, by the dtype's bytes: (BLOCK_C, BLOCK_P, BLOCK_K, warps, stages).
CANDIDATES = {
    2: ((16, 32, 128, 4, 3), (16, 64, 128, 4, 3), (32, 64, 64, 4, 4), (64, 64, 64, 4, 3), (128, 64, 64, 8, 3)),
    4: ((16, 32, 64, 4, 3), (32, 64, 32, 4, 3), (64, 64, 32, 8, 3)),
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
    return (tl.sum(tl.where(above, values, 0.0), 1) + room * _value(kth)) / topk


@triton.jit
def _value(key):
    """The fp32 number that an ordered integer stands for."""
    bits = key.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, bits ^ -2147483648, bits ^ -1).to(tl.float32, bitcast=True)


@triton.jit
def similarity_kernel(
    local_feature,  # Y [B, P, D]
    labels,  # T [C, D]
    similarity,  # out: [B, C, P] fp32
    rows,  # C
    TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WIDE_DOT: tl.constexpr,
):
    # Patches are on the first axis with labels, since the others end at 65,535.
    picture = tl.program_id(1).to(tl.int64)
    blocks: tl.constexpr = (TOKENS + BLOCK_P - 1) // BLOCK_P
    row = tl.program_id(0) // blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    patch = tl.program_id(0) % blocks * BLOCK_P + tl.arange(0, BLOCK_P)
    local_feature += picture * TOKENS * DIM
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for start in range(0, DIM, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        t = tl.load(labels + row[:, None] * DIM + k[None, :], (row < rows)[:, None] & (k < DIM)[None, :], 0.0)
        y = tl.load(local_feature + patch[None, :] * DIM + k[:, None], (patch < TOKENS)[None, :] & (k < DIM)[:, None], 0.0)
        total = product(t, y, total, WIDE_DOT)
    out = similarity + (picture * rows + row)[:, None] * TOKENS + patch[None, :]
    tl.store(out, total, (row < rows)[:, None] & (patch < TOKENS)[None, :])


@triton.jit
def select_kernel(
    similarity,  # [B, C, P] fp32
    global_feature,  # g [B, D]
    labels,  # T [C, D]
    local_score,  # out: [B, C] fp32
    global_score,  # out: [B, C] fp32
    rows,  # C
    topk,
    TOKENS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, picture = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C), tl.program_id(1).to(tl.int64)
    channel, patch = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_P)
    out, own = picture * rows + row, (row < rows)[:, None]
    inside = tl.broadcast_to((patch < TOKENS)[None, :], [BLOCK_C, BLOCK_P])
    values = tl.load(similarity + out[:, None] * TOKENS + patch[None, :], inside & own, 0.0)
    t = tl.load(labels + row[:, None] * DIM + channel[None, :], own & (channel < DIM)[None, :], 0.0).to(tl.float32)
    g = tl.load(global_feature + picture * DIM + channel, channel < DIM, 0.0).to(tl.float32)
    tl.store(global_score + out, tl.sum(t * g[None, :], 1), row < rows)
    tl.store(local_score + out, _mean_of_largest(values, inside, topk), row < rows)


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
    """Block sizes of the similarities of P patches."""
    constants = {
        "TOKENS": tokens,
        "DIM": dim,
        "BLOCK_C": 32,
        "BLOCK_P": block(tokens, 64),
        "BLOCK_K": block(dim, 128 // dtype.itemsize),
        "WIDE_DOT": interpreted(),
    }
    return Launch(constants, warps=4, stages=3)


def candidates(tokens: int, dim: int, dtype: torch.dtype) -> tuple[Launch, ...]:
    """The launches that tuning tries, `launch`'s default first."""
    first = launch(tokens, dim, dtype)
    others = CANDIDATES[dtype.itemsize]
    return first, *(first.altered(warps, stages, BLOCK_C=c, BLOCK_P=p, BLOCK_K=k) for c, p, k, warps, stages in others)


def select_launch(tokens: int, dim: int) -> Launch:
    """How the best of P patches are found: by one warp where it can hold them."""
    block_p = block(tokens)
    constants = {"TOKENS": tokens, "DIM": dim, "BLOCK_C": LABELS_A_PROGRAM, "BLOCK_P": block_p, "BLOCK_D": block(dim)}
    return Launch(constants, warps=max(1, min(8, block_p // PATCHES_A_WARP)), stages=1)


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
    how, select = how or launch(tokens, dim, local_feature.dtype), select_launch(tokens, dim)
    global_feature, label_embedding = global_feature.contiguous(), label_embedding.contiguous()
    similarity = torch.empty(batch, rows, tokens, device=local_feature.device)
    local_score, global_score, score = (torch.empty(batch, rows, device=local_feature.device) for _ in range(3))
    blocks = triton.cdiv(rows, how.constants["BLOCK_C"]) * triton.cdiv(tokens, how.constants["BLOCK_P"])
    similarity_kernel[blocks, batch](
        local_feature.contiguous(), label_embedding, similarity, rows,
        **how.constants, num_warps=how.warps, num_stages=how.stages,
    )  # fmt: skip
    select_kernel[triton.cdiv(rows, select.constants["BLOCK_C"]), batch](
        similarity, global_feature, label_embedding, local_score, global_score, rows, min(topk, tokens),
        **select.constants, num_warps=select.warps,
    )  # fmt: skip
    mix_kernel[(batch,)](local_score, global_score, score, rows, BLOCK=NORM_BLOCK, num_warps=4)
    return score, similarity if with_evidence else None
