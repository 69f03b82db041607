"""SVFR's stages for Hopper (compute capability 9.0): what `svfr.py` computes, as long-lived programs of specialised warps.

A program keeps 128 output channels of W in shared memory and goes through its share of a picture's labels. Two warpgroups
produce tanh(X ⊙ t) in turn, a step of input channels at a time, into a ring in shared memory. Two consume it, each for 64 of
the output channels: the tensor cores read W and the ring from there, and the exponentials are taken from the accumulators. So
the special-function units, which compute tanh, and the tensor cores work at the same time, W is read once, and X once a label.
Energies are transposed [channels, patches]: patches are the product's columns, which come in eights, so 196 take 200 where a
power of two would be 256. Three powers of two make up the columns, the sides that Gluon's tensors have.

fp16 and bf16, P ≤ 200, D a multiple of 128 up to 512, and only weights whose energies are bounded (`svfr.bounded`), since no
maximum is subtracted. Everything else is `svfr.py`'s. Gluon is Triton's lower level; the interpreter does not run it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma, warpgroup_mma_wait

from sigrl_deploy.kernels.blocks import Launch

CAPABILITY = (9, 0)
MOST_PATCHES = 200  # whose energies and sums of 64 channels fit a warpgroup's registers
MOST_CHANNELS = 512  # of which 128 rows of W leave shared memory room for the ring
REGISTERS = 128  # a thread's share, of 512, before the warpgroups divide them anew
STEP = 64  # input channels of a step, whose 128 bytes are the widest rows that tensor cores read
SLOTS = 3  # steps in the ring
CANDIDATES = ((32, 56), (16, 48))  # (ROWS, PRODUCER_REGISTERS)
LOG2_E = gl.constexpr(1.4426950408889634)
HALF = gl.constexpr(64)  # output channels of a consumer: the rows of one product
COPY = gl.constexpr(getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared)  # named so before 3.7


@gluon.jit
def _tanh_of_product(x, t, HALF_PRECISION: gl.constexpr):
    """tanh(x ⊙ t) of pairs of 16-bit values, each pair an int32: so that a pair takes one register."""
    pair: gl.constexpr = "f16x2" if HALF_PRECISION else "bf16x2"
    code: gl.constexpr = "mul.rn." + pair + " $0, $1, $2; tanh.approx." + pair + " $0, $0;"
    return gl.inline_asm_elementwise(code, "=r,r,r", [x, t], dtype=gl.int32, is_pure=True, pack=1)


@gluon.jit
def _exponentials(energy, FIRST: gl.constexpr, TOKENS: gl.constexpr, layout: gl.constexpr):
    """exp(E) [64, columns] of the patches from FIRST on, 0 after the last."""
    value = gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [energy * LOG2_E], dtype=gl.float32, is_pure=True, pack=1
    )
    columns: gl.constexpr = energy.shape[1]
    if FIRST + columns > TOKENS:
        patch = FIRST + gl.arange(0, columns, gl.SliceLayout(0, layout))
        value = gl.where((patch < TOKENS)[None, :], value, 0.0)
    return value


@gluon.jit
def _load(patches, k, FIRST: gl.constexpr, ROWS: gl.constexpr, TOKENS: gl.constexpr, PAIRS: gl.constexpr, layout: gl.constexpr):
    """Pairs k of X's rows from FIRST on; rows after the last repeat it."""
    patch = FIRST + gl.arange(0, ROWS, gl.SliceLayout(1, layout))
    if FIRST + ROWS > TOKENS:
        patch = gl.minimum(patch, TOKENS - 1)
    return gl.load(patches + patch[:, None] * PAIRS + k[None, :])


@gluon.jit
def _store_tanh(place, x, t, HALF_PRECISION: gl.constexpr):
    place.store(_tanh_of_product(x, gl.broadcast(t[None, :], x)[0], HALF_PRECISION))


@gluon.jit
def _produce(
    WHICH: gl.constexpr,
    arguments,
    ring,
    barriers,
    TOKENS: gl.constexpr,
    DIM: gl.constexpr,
    STEP: gl.constexpr,
    ROWS: gl.constexpr,
):
    """tanh of every second step of all labels of this program, ROWS patches at a time, with two groups of loads in flight."""
    patches, labels, _weight, count, _rows, splits, _out = arguments
    ring_a, ring_b, ring_c = ring
    ready, empty = barriers
    half_precision: gl.constexpr = patches.dtype.element_ty == gl.float16
    slots: gl.constexpr = ring_a.type.shape[0]
    columns_a: gl.constexpr = ring_a.type.shape[1]
    even: gl.constexpr = columns_a + ring_b.type.shape[1]
    pairs: gl.constexpr = DIM // 2
    steps: gl.constexpr = DIM // STEP
    patches = patches.to(gl.pointer_type(gl.int32), bitcast=True)
    labels = labels.to(gl.pointer_type(gl.int32), bitcast=True)
    layout: gl.constexpr = gl.BlockedLayout([1, 4], [256 // STEP, STEP // 8], [4, 1], [1, 0])
    k = gl.arange(0, STEP // 2, gl.SliceLayout(0, layout))
    split = gl.program_id(1)
    total = gl.maximum(gl.load(count) - split + splits - 1, 0) // splits * steps
    for i in range(WHICH, total, 2):
        slot = i % slots
        x = patches + i % steps * (STEP // 2)
        t = gl.load(labels + (split + i // steps * splits) * pairs + i % steps * (STEP // 2) + k)
        now = _load(x, k, 0, ROWS, TOKENS, pairs, layout)
        soon = _load(x, k, ROWS, ROWS, TOKENS, pairs, layout)
        mbarrier.wait(empty.index(slot), (i // slots & 1) ^ 1)
        for group in gl.static_range(even // ROWS):
            this = now
            now = soon
            if (group + 2) * ROWS < even:
                soon = _load(x, k, (group + 2) * ROWS, ROWS, TOKENS, pairs, layout)
            elif (group + 2) * ROWS == even:
                last = _load(x, k, even, ring_c.type.shape[1], TOKENS, pairs, layout)
            if group * ROWS < columns_a:
                place = ring_a.index(slot).slice(group * ROWS, ROWS, 0)
            else:
                place = ring_b.index(slot).slice(group * ROWS - columns_a, ROWS, 0)
            _store_tanh(place, this, t, half_precision)
        _store_tanh(ring_c.index(slot), last, t, half_precision)
        fence_async_shared()
        mbarrier.arrive(ready.index(slot), count=1)


@gluon.jit
def _keep_weights(weights, weight, first, WHICH: gl.constexpr, DIM: gl.constexpr, STEP: gl.constexpr):
    """Load 64 rows of W into shared memory, one tile per step."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // STEP, STEP // 8], [4, 1], [1, 0])
    channel = first + gl.arange(0, HALF, gl.SliceLayout(1, layout))
    k = gl.arange(0, STEP, gl.SliceLayout(0, layout))
    for tile in gl.static_range(DIM // STEP):
        COPY(weights.index(2 * tile + WHICH), weight + channel[:, None] * DIM + tile * STEP + k[None, :])
    async_copy.commit_group()
    async_copy.wait_group(0)
    fence_async_shared()


@gluon.jit
def _own(
    patches, channel, FIRST: gl.constexpr, ROWS: gl.constexpr, TOKENS: gl.constexpr, DIM: gl.constexpr, layout: gl.constexpr
):
    """X at the output channels, transposed [64, ROWS]."""
    patch = gl.minimum(FIRST + gl.arange(0, ROWS, gl.SliceLayout(0, layout)), TOKENS - 1)
    return gl.load(patches + patch[None, :] * DIM + channel[:, None])


@gluon.jit
def _store_sums(out, sums, channel, FIRST: gl.constexpr, TOKENS: gl.constexpr, DIM: gl.constexpr, layout: gl.constexpr):
    patch = FIRST + gl.arange(0, sums.shape[1], gl.SliceLayout(0, layout))
    gl.store(out + patch[None, :] * DIM + channel[:, None], sums, (patch < TOKENS)[None, :])


@gluon.jit
def _consume(
    WHICH: gl.constexpr,
    arguments,
    weights,
    ring,
    barriers,
    TOKENS: gl.constexpr,
    DIM: gl.constexpr,
    STEP: gl.constexpr,
    STAGE: gl.constexpr,
):
    """The energies of 64 output channels, for every label of this program, and the stage's results from them."""
    patches, _labels, weight, count, rows, splits, out = arguments
    dtype: gl.constexpr = patches.dtype.element_ty
    ready, empty = barriers
    slots: gl.constexpr = ring[0].type.shape[0]
    columns_a: gl.constexpr = ring[0].type.shape[1]
    columns_b: gl.constexpr = ring[1].type.shape[1]
    columns_c: gl.constexpr = ring[2].type.shape[1]
    shared: gl.constexpr = gl.NVMMASharedLayout(2 * STEP, 16, 2)
    ring_a = ring[0]._reinterpret(dtype, [slots, columns_a, STEP], shared)
    ring_b = ring[1]._reinterpret(dtype, [slots, columns_b, STEP], shared)
    ring_c = ring[2]._reinterpret(dtype, [slots, columns_c, STEP], shared)
    layout_a: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns_a, 16])
    layout_b: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns_b, 16])
    layout_c: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns_c, 16])
    rows_a: gl.constexpr = gl.SliceLayout(1, layout_a)
    rows_b: gl.constexpr = gl.SliceLayout(1, layout_b)
    rows_c: gl.constexpr = gl.SliceLayout(1, layout_c)
    first = gl.program_id(0) * (2 * HALF) + WHICH * HALF
    channel = first + gl.arange(0, HALF, rows_a)
    channel_b = gl.convert_layout(channel, rows_b)
    channel_c = gl.convert_layout(channel, rows_c)
    _keep_weights(weights, weight, first, WHICH, DIM, STEP)
    if STAGE == 2:
        sums_a = gl.zeros([HALF, columns_a], gl.float32, layout_a)
        sums_b = gl.zeros([HALF, columns_b], gl.float32, layout_b)
        sums_c = gl.zeros([HALF, columns_c], gl.float32, layout_c)
    else:
        own_a = _own(patches, channel, 0, columns_a, TOKENS, DIM, layout_a)
        own_b = _own(patches, channel_b, columns_a, columns_b, TOKENS, DIM, layout_b)
        own_c = _own(patches, channel_c, columns_a + columns_b, columns_c, TOKENS, DIM, layout_c)
    split = gl.program_id(1)
    labelled = gl.load(count)
    i = 0
    for row in range(split, labelled, splits):
        a = gl.zeros([HALF, columns_a], gl.float32, layout_a)
        b = gl.zeros([HALF, columns_b], gl.float32, layout_b)
        c = gl.zeros([HALF, columns_c], gl.float32, layout_c)
        for step in range(DIM // STEP):
            slot = i % slots
            mbarrier.wait(ready.index(slot), i // slots & 1)
            w = weights.index(2 * step + WHICH)
            a = warpgroup_mma(w, ring_a.index(slot).permute((1, 0)), a, is_async=True)
            b = warpgroup_mma(w, ring_b.index(slot).permute((1, 0)), b, is_async=True)
            c = warpgroup_mma(w, ring_c.index(slot).permute((1, 0)), c, is_async=True)
            # The other consumer's products go on meanwhile.
            a, b, c = warpgroup_mma_wait(0, (a, b, c))
            mbarrier.arrive(empty.index(slot), count=1)
            i += 1
        a = _exponentials(a, 0, TOKENS, layout_a)
        b = _exponentials(b, columns_a, TOKENS, layout_b)
        c = _exponentials(c, columns_a + columns_b, TOKENS, layout_c)
        whole = gl.sum(a, 1) + gl.convert_layout(gl.sum(b, 1), rows_a) + gl.convert_layout(gl.sum(c, 1), rows_a)
        if STAGE == 2:
            share = 1.0 / whole
            sums_a += a * share[:, None]
            sums_b += b * gl.convert_layout(share, rows_b)[:, None]
            sums_c += c * gl.convert_layout(share, rows_c)[:, None]
        else:
            mean = gl.sum(a * own_a.to(gl.float32), 1)
            mean += gl.convert_layout(gl.sum(b * own_b.to(gl.float32), 1), rows_a)
            mean += gl.convert_layout(gl.sum(c * own_c.to(gl.float32), 1), rows_a)
            gl.store(out + row * DIM + channel, mean / whole)
    if STAGE == 2:
        _store_sums(out, sums_a, channel, 0, TOKENS, DIM, layout_a)
        _store_sums(out, sums_b, channel_b, columns_a, TOKENS, DIM, layout_b)
        _store_sums(out, sums_c, channel_c, columns_a + columns_b, TOKENS, DIM, layout_c)
    else:
        for row in range(labelled + split, rows, splits):
            gl.store(out + row * DIM + channel, gl.zeros([HALF], gl.float32, rows_a))


@gluon.jit(do_not_specialize=["rows", "splits"])
def stage_kernel(
    patches,  # X [B, P, D]
    labels,  # T [C, D] in stage 1, V [B, C, D] in stage 2
    weight,  # W [D, D]
    count,  # int32: labels that are not padding
    rows,  # C
    splits,  # programs that share the labels of a picture and 128 channels
    out,  # out: S [B, C, D] fp32 in stage 1, Σ_c softmax over a split's labels [splits, B, P, D] fp32 in stage 2
    STAGE: gl.constexpr,
    TOKENS: gl.constexpr,
    DIM: gl.constexpr,
    COLUMNS_A: gl.constexpr,
    COLUMNS_B: gl.constexpr,
    COLUMNS_C: gl.constexpr,
    STEP: gl.constexpr,
    SLOTS: gl.constexpr,
    ROWS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):
    picture = gl.program_id(2).to(gl.int64)
    patches += picture * TOKENS * DIM
    if STAGE == 2:
        labels += picture * rows * DIM
        out += (gl.program_id(1) * gl.num_programs(2) + picture) * TOKENS * DIM
    else:
        out += picture * rows * DIM
    # The ring is written as pairs of values, and read as values.
    paired: gl.constexpr = gl.NVMMASharedLayout(2 * STEP, 32, 2)
    ring_a = gl.allocate_shared_memory(gl.int32, [SLOTS, COLUMNS_A, STEP // 2], paired)
    ring_b = gl.allocate_shared_memory(gl.int32, [SLOTS, COLUMNS_B, STEP // 2], paired)
    ring_c = gl.allocate_shared_memory(gl.int32, [SLOTS, COLUMNS_C, STEP // 2], paired)
    shared: gl.constexpr = gl.NVMMASharedLayout(2 * STEP, 16, 2)
    weights = gl.allocate_shared_memory(patches.dtype.element_ty, [2 * DIM // STEP, HALF, STEP], shared)
    ready = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(ready.index(i), count=1)
        mbarrier.init(empty.index(i), count=2)
    arguments = (patches, labels, weight, count, rows, splits, out)
    ring = (ring_a, ring_b, ring_c)
    barriers = (ready, empty)
    gl.warp_specialize(
        [
            (_consume, (0, arguments, weights, ring, barriers, TOKENS, DIM, STEP, STAGE)),
            (_consume, (1, arguments, weights, ring, barriers, TOKENS, DIM, STEP, STAGE)),
            (_produce, (0, arguments, ring, barriers, TOKENS, DIM, STEP, ROWS)),
            (_produce, (1, arguments, ring, barriers, TOKENS, DIM, STEP, ROWS)),
        ],
        [4, 4, 4],
        [CONSUMER_REGISTERS, PRODUCER_REGISTERS, PRODUCER_REGISTERS],
    )


@dataclass(frozen=True)
class HopperLaunch(Launch):
    """How `stage_kernel` is compiled for one model."""

    @property
    def name(self) -> str:
        """See `Launch.name`."""
        return f"Hopper, {self.constants['ROWS']} rows, {self.constants['PRODUCER_REGISTERS']} registers for producers"


def columns(tokens: int) -> tuple[int, int, int]:
    """Three powers of two, columns of the products, that together hold P patches: those with the least sum."""
    powers = (16, 32, 64, 128)
    found = [(a, b, c) for a in powers for b in powers for c in (8, *powers) if a >= b >= c and a + b + c >= tokens]
    return min(found, key=lambda three: (sum(three), -three[0]))


def candidates(tokens: int, dim: int, dtype: torch.dtype, capability: tuple[int, int]) -> tuple[HopperLaunch, ...]:
    """The launches that tuning tries for a model on a GPU; none where this kernel does not support them."""
    fits = tokens <= MOST_PATCHES and dim % (2 * HALF.value) == 0 and dim <= MOST_CHANNELS and dtype is not torch.float32
    if not fits or capability != CAPABILITY:
        return ()
    a, b, c = columns(tokens)
    model = {"TOKENS": tokens, "DIM": dim, "COLUMNS_A": a, "COLUMNS_B": b, "COLUMNS_C": c, "STEP": STEP, "SLOTS": SLOTS}
    tried = dict.fromkeys((min(rows, b), producer) for rows, producer in CANDIDATES)
    return tuple(
        HopperLaunch(model | {"ROWS": rows, "CONSUMER_REGISTERS": 256 - producer, "PRODUCER_REGISTERS": producer}, 4, 1)
        for rows, producer in tried
    )


def splits(rows: int, batch: int, dim: int) -> int:
    """How many programs share the C labels of a picture, for each block of output channels."""
    multiprocessors = torch.cuda.get_device_properties().multi_processor_count  # one program fills each
    return max(1, min(rows, multiprocessors // (dim // (2 * HALF.value) * batch)))


def run(stage: int, patches: Tensor, labels: Tensor, weight: Tensor, count: Tensor, out: Tensor, how: Launch) -> None:
    """Launch stage 1, X [B, P, D], T [C, D] → `out` S [B, C, D], or 2, V [B, C, D] → `out` partial sums [splits, B, P, D]."""
    (batch, _, dim), rows = patches.shape, labels.shape[-2]
    parts = splits(rows, batch, dim)
    stage_kernel[dim // (2 * HALF.value), parts, batch](
        patches, labels, weight, count, rows, parts, out, STAGE=stage, **how.constants, num_warps=how.warps, maxnreg=REGISTERS
    )
