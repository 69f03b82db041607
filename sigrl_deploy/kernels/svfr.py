"""SVFR, fused: none of its [P, C, D] intermediates leaves the chip.

    S[c, d] = Σ_n softmax_n(E1)[n, c, d] X[n, d]          E1[n, c, d] = Σ_j W1[d, j] tanh(X[n, j] T[c, j])      stage 1
    V       = S R Waᵀ + G Wbᵀ                              R = unit rows of relu(Sᵀ T)                             between
    Y[n, d] = X[n, d] Σ_c softmax_n(E2)[n, c, d]          E2[n, c, d] = Σ_j W2[d, j] tanh(X[n, j] V[c, j])      stage 2

(docs/method.md, "Image side")

Shapes: X [B, P, D], T and G Wbᵀ [C, D], W [D, D]; Y [B, P, D]. A stage is 2·P·C·D² FLOP on the tensor
cores and P·C·D exponentials; a tanh is computed once for each block of output channels. A program has all patches of a label at
hand, as rows of the energies [patches, channels]: tanh is then the product's left operand, which Hopper's tensor cores take
from registers, and the softmax a reduction along columns. Stage 2 sums over labels in registers; labels are split over
programs, and the partial sums [splits, B, P, D] added. Inputs fp32, fp16 or bf16; accumulation, softmax and sums are in fp32.
The plain form is `svfr_stages` of `model/materialised.py`. `svfr_hopper.py` has a faster form for that GPU.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigrl_deploy.errors import UsageError
from sigrl_deploy.kernels import between, svfr_hopper
from sigrl_deploy.kernels.blocks import Launch, block, bounded_tanh, check, exp2, interpreted, precision, product
from sigrl_deploy.kernels.svfr_hopper import HopperLaunch
from sigrl_deploy.model.sigrl import SVFR

MAX_PATCHES = 1024
PROGRAMS = 128  # of stage 2: about one for each multiprocessor of a large GPU, whose registers one program fills
LABELS_A_PROGRAM = 4  # in stage 2, at least: partial sums cost as much as a label
LARGEST_ENERGY = 64.0  # e^64 leaves fp32 room for a sum of 1024 patches of any fp16 value, and e^-64 is a normal number
LOG2_E = tl.constexpr(1.4426950408889634)
WEIGH_SPLITS, WEIGH_BLOCK = 16, 256  # partial sums in flight at once, and values of each

# (BLOCK_O, BLOCK_K, warps, stages) by accumulators, the class of BLOCK_P and the dtype's bytes: the untuned choice first, then
# what tuning tries. None spills on sm_90, for which they were chosen, at the sizes of compile.py, which checks it.
BLOCKS = {
    (1, 64, 2): ((64, 64, 4, 3), (128, 64, 8, 3)),
    (1, 256, 2): ((64, 64, 8, 2), (64, 64, 8, 3), (64, 32, 8, 4)),
    (1, 1024, 2): ((16, 32, 8, 2), (16, 32, 8, 3)),
    (1, 64, 4): ((64, 32, 8, 2), (32, 32, 4, 2)),
    (1, 256, 4): ((64, 32, 8, 2), (32, 32, 8, 2)),
    (1, 1024, 4): ((16, 16, 8, 1),),
    (2, 64, 2): ((64, 64, 4, 3), (128, 64, 8, 3)),
    (2, 256, 2): ((64, 64, 8, 2), (64, 64, 8, 3)),
    (2, 1024, 2): ((16, 32, 8, 2),),
    (2, 64, 4): ((64, 32, 8, 2), (32, 32, 4, 2)),
    (2, 256, 4): ((32, 32, 8, 2), (32, 16, 8, 2)),
    (2, 1024, 4): ((16, 16, 8, 1),),
}
CLASSES = (64, 256, 1024)  # of BLOCK_P


@triton.jit
def _tile(start, row, column, rows, DIM: tl.constexpr, CHECK_ROWS: tl.constexpr, CHECK_COLUMNS: tl.constexpr):
    """Values [row, column] of a matrix of DIM columns; 0 outside it, where that is checked."""
    where = start + row * DIM + column
    if CHECK_ROWS and CHECK_COLUMNS:
        values = tl.load(where, (row < rows) & (column < DIM), 0.0)
    elif CHECK_ROWS:
        values = tl.load(where, tl.broadcast_to(row < rows, where.shape), 0.0)
    elif CHECK_COLUMNS:
        values = tl.load(where, tl.broadcast_to(column < DIM, where.shape), 0.0)
    else:
        values = tl.load(where)
    return values


@triton.jit
def _exponentials(
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
    BOUNDED: tl.constexpr,
    TANH: tl.constexpr,
    WIDE_DOT: tl.constexpr,
):
    """exp(E) of one label [BLOCK_P, BLOCK_O], divided by the largest of a channel unless BOUNDED; 0 behind the last patch."""
    uneven: tl.constexpr = DIM % BLOCK_K != 0
    energy = tl.zeros([BLOCK_P, BLOCK_O], tl.float32)
    for start in range(0, DIM, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        w = _tile(weight, channel[None, :], k[:, None], DIM, DIM, DIM % BLOCK_O != 0, uneven)
        x = _tile(patches, patch[:, None], k[None, :], TOKENS, DIM, TOKENS != BLOCK_P, uneven)
        t = tl.load(label + k, k < DIM, 0.0) if uneven else tl.load(label + k)
        energy = product(bounded_tanh(x, t[None, :], TANH), w, energy, WIDE_DOT)
    inside = (patch < TOKENS)[:, None]
    if not BOUNDED:
        energy -= tl.max(tl.where(inside, energy, float("-inf")), 0)[None, :]
    return tl.where(inside, exp2(energy * LOG2_E, WIDE_DOT), 0.0)


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
    BOUNDED: tl.constexpr,
    TANH: tl.constexpr,
    WIDE_DOT: tl.constexpr,
):
    # Programs of one label are neighbours: they read the same tanh inputs at the same time. Labels share the grid's first axis
    # with channels, since the others end at 65,535.
    program, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel_blocks: tl.constexpr = (DIM + BLOCK_O - 1) // BLOCK_O
    row = program // channel_blocks
    channel = program % channel_blocks * BLOCK_O + tl.arange(0, BLOCK_O)
    patch = tl.arange(0, BLOCK_P)
    out = semantic + (picture * rows + row) * DIM + channel
    if row < tl.load(count):
        patches += picture * TOKENS * DIM
        unscaled = _exponentials(
            patches, labels + row * DIM, weight, channel, patch,
            TOKENS, DIM, BLOCK_O, BLOCK_P, BLOCK_K, BOUNDED, TANH, WIDE_DOT,
        )  # fmt: skip
        own = _tile(patches, patch[:, None], channel[None, :], TOKENS, DIM, TOKENS != BLOCK_P, DIM % BLOCK_O != 0)
        tl.store(out, tl.sum(unscaled * own.to(tl.float32), 0) / tl.sum(unscaled, 0), channel < DIM)
    else:
        tl.store(out, tl.zeros([BLOCK_O], tl.float32), channel < DIM)


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
    BOUNDED: tl.constexpr,
    TANH: tl.constexpr,
    WIDE_DOT: tl.constexpr,
):
    channel = tl.program_id(0) * BLOCK_O + tl.arange(0, BLOCK_O)
    split, picture = tl.program_id(1), tl.program_id(2).to(tl.int64)
    patch = tl.arange(0, BLOCK_P)
    patches += picture * TOKENS * DIM
    labels += picture * rows * DIM
    sums = tl.zeros([BLOCK_P, BLOCK_O], tl.float32)
    for row in range(split, tl.load(count), splits):
        unscaled = _exponentials(
            patches, labels + row * DIM, weight, channel, patch,
            TOKENS, DIM, BLOCK_O, BLOCK_P, BLOCK_K, BOUNDED, TANH, WIDE_DOT,
        )  # fmt: skip
        sums += unscaled * (1.0 / tl.sum(unscaled, 0))[None, :]
    out = partial + (split * tl.num_programs(2) + picture) * TOKENS * DIM
    inside = (channel < DIM)[None, :] & (patch < TOKENS)[:, None]
    tl.store(out + patch[:, None] * DIM + channel[None, :], sums, inside)


@triton.jit(do_not_specialize=["splits", "size"])
def weigh_kernel(
    partial,  # [splits, B·P·D] fp32
    patches,  # X [B·P·D]
    count,  # int32: labels; splits behind their number hold nothing
    out,  # out: Y [B·P·D] of X's dtype
    splits,
    size,  # B·P·D
    SPLITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    filled = tl.minimum(splits, tl.load(count))
    total = tl.zeros([SPLITS, BLOCK], tl.float32)
    for start in range(0, filled, SPLITS):
        split = start + tl.arange(0, SPLITS)
        total += tl.load(partial + split[:, None] * size + i[None, :], (split < filled)[:, None] & (i < size)[None, :], 0.0)
    x = tl.load(patches + i, i < size, 0.0)
    tl.store(out + i, (x.to(tl.float32) * tl.sum(total, 0)).to(x.dtype), i < size)


def launch(
    tokens: int,
    dim: int,
    dtype: torch.dtype,
    accumulators: int,
    capability: tuple[int, int] | None = None,
    bounded: bool = False,
) -> Launch:
    """Block sizes for P patches, for every GPU: as many output channels as registers hold of `accumulators` tiles [patches,
    channels].

    `bounded` is what `bounded` says of the weights, `capability` that of the GPU to compile for, by default the current one.
    Raises UsageError for more than MAX_PATCHES patches.
    """
    if tokens > MAX_PATCHES:
        raise UsageError(f"{tokens} patches: the SVFR kernels take {MAX_PATCHES} at most; switch the fused SVFR off")
    block_p = block(tokens)
    o, k, warps, stages = _blocks(accumulators, block_p, dtype)[0]
    constants = {"TOKENS": tokens, "DIM": dim, "BLOCK_O": min(o, block(dim)), "BLOCK_P": block_p, "BLOCK_K": min(k, block(dim))}
    return Launch(constants | {"BOUNDED": bounded} | precision(dtype, capability), warps, stages)


def _blocks(accumulators: int, block_p: int, dtype: torch.dtype) -> tuple[tuple[int, int, int, int], ...]:
    """See BLOCKS."""
    return BLOCKS[accumulators, next(c for c in CLASSES if c >= block_p), dtype.itemsize]


def candidates(
    tokens: int,
    dim: int,
    dtype: torch.dtype,
    accumulators: int,
    capability: tuple[int, int] | None = None,
    bounded: bool = False,
) -> tuple[Launch, ...]:
    """The launches that tuning tries. Arguments and errors are those of `launch`.

    Where `svfr_hopper` has a form, its own, which on an H100 were 1.9 to 2.9 times as fast as the best other, at 20 to 1006
    labels and 1 to 64 pictures (benchmarks/results/h100.json), and one other, for a Triton that cannot compile them.
    """
    first = launch(tokens, dim, dtype, accumulators, capability, bounded)
    if bounded and not interpreted():
        found = svfr_hopper.candidates(tokens, dim, dtype, capability or torch.cuda.get_device_capability())
        if found:
            return *found, first
    others = _blocks(accumulators, first.constants["BLOCK_P"], dtype)[1:]
    return first, *(first.altered(warps, stages, BLOCK_O=o, BLOCK_K=k) for o, k, warps, stages in others)


def bounded(weight: Tensor) -> bool:
    """Whether energies of these weights [D, D] are too small to overflow, so that no maximum has to be subtracted.

    |tanh| ≤ 1, so |E[n, c, d]| ≤ ‖W[d]‖₁ (docs/method.md, identity 5). Waits for the GPU, so call it once, at loading.
    """
    return float(weight.float().abs().sum(1).max()) <= LARGEST_ENERGY


def decouple(patches: Tensor, labels: Tensor, weight: Tensor, count: Tensor | None = None, how: Launch | None = None) -> Tensor:
    """Stage 1: X [B, P, D], T [C, D], W1 [D, D] → S [B, C, D] fp32.

    `count` int32 [] on the device is how many of the C rows are labels; the rows of S after them are 0. `how` is one of
    `candidates`, by default `launch`'s, which takes any weights.
    """
    check("svfr.decouple", patches, labels, weight)
    (batch, tokens, dim), rows = patches.shape, labels.shape[0]
    how = how or launch(tokens, dim, patches.dtype, accumulators=1)
    patches, labels, weight, count = (
        patches.contiguous(),
        labels.contiguous(),
        weight.contiguous(),
        _count(count, rows, patches),
    )
    semantic = torch.empty(batch, rows, dim, dtype=torch.float32, device=patches.device)
    if isinstance(how, HopperLaunch):
        svfr_hopper.run(1, patches, labels, weight, count, semantic, how)
    else:
        decouple_kernel[triton.cdiv(dim, how.constants["BLOCK_O"]) * rows, batch](
            patches, labels, weight, count, rows, semantic, **how.constants, num_warps=how.warps, num_stages=how.stages
        )
    return semantic


def splits(rows: int, batch: int, channel_blocks: int) -> int:
    """How many parts stage 2 divides C labels into. Their sums [splits, B, P, D] fp32 are added afterwards."""
    return max(1, min(rows // LABELS_A_PROGRAM, PROGRAMS // (channel_blocks * batch)))


def parts_of(how: Launch, rows: int, batch: int, dim: int) -> int:
    """The splits of stage 2 for a launch, C labels, B pictures and D channels."""
    if isinstance(how, HopperLaunch):
        return svfr_hopper.splits(rows, batch, dim)
    return splits(rows, batch, triton.cdiv(dim, how.constants["BLOCK_O"]))


def reconstruct(
    patches: Tensor, labels: Tensor, weight: Tensor, count: Tensor | None = None, how: Launch | None = None
) -> Tensor:
    """Stage 2: X [B, P, D], V [B, C, D], W2 [D, D] → Y [B, P, D] of X's dtype. `count` and `how` as in `decouple`."""
    check("svfr.reconstruct", patches, labels, weight)
    (batch, tokens, dim), rows = patches.shape, labels.shape[1]
    how = how or launch(tokens, dim, patches.dtype, accumulators=2)
    parts = parts_of(how, rows, batch, dim)
    patches, labels, weight, count = (
        patches.contiguous(),
        labels.contiguous(),
        weight.contiguous(),
        _count(count, rows, patches),
    )
    partial = torch.empty(parts, batch, tokens, dim, dtype=torch.float32, device=patches.device)
    if isinstance(how, HopperLaunch):
        svfr_hopper.run(2, patches, labels, weight, count, partial, how)
    else:
        reconstruct_kernel[triton.cdiv(dim, how.constants["BLOCK_O"]), parts, batch](
            patches, labels, weight, count, rows, parts, partial, **how.constants, num_warps=how.warps, num_stages=how.stages
        )
    out, size = torch.empty_like(patches), patches.numel()
    weigh_kernel[(triton.cdiv(size, WEIGH_BLOCK),)](
        partial, patches, count, out, parts, size, SPLITS=WEIGH_SPLITS, BLOCK=WEIGH_BLOCK, num_warps=4
    )
    return out


def _count(count: Tensor | None, rows: int, like: Tensor) -> Tensor:
    return torch.full((), rows, dtype=torch.int32, device=like.device) if count is None else count


class FusedSVFR:
    """SVFR of a module, on its device, for inference. Reads the weights at construction, which waits for the GPU."""

    def __init__(self, module: SVFR) -> None:
        self._module = module
        self.bounded = bounded(module.decouple.weight), bounded(module.reconstruct.weight)

    def __call__(
        self,
        patches: Tensor,
        label_embedding: Tensor,
        graph_projection: Tensor,
        count: Tensor | None = None,
        launches: Mapping[str, Launch] | None = None,
    ) -> Tensor:
        """X [B, P, D], T [C, D], G Wbᵀ [C, D] → Y [B, P, D], all of the module's dtype.

        Rows of T after `count` must be 0, so that they add nothing to Sᵀ T. `launches` are those of "svfr.decouple",
        "svfr.between" and "svfr.reconstruct", by default the first of their candidates.
        """
        module, (_, tokens, dim) = self._module, patches.shape
        first, second = (
            (launches or {}).get(name) or candidates(tokens, dim, patches.dtype, stage, bounded=self.bounded[stage - 1])[0]
            for stage, name in ((1, "svfr.decouple"), (2, "svfr.reconstruct"))
        )
        semantic = decouple(patches, label_embedding, module.decouple.weight, count, first)
        how = (launches or {}).get("svfr.between")
        v = between.between(semantic, label_embedding, graph_projection, module.fuse.weight, how)
        return reconstruct(patches, v, module.reconstruct.weight, count, second)
