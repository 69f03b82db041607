"""Kernels that keep one part of a GPU busy, for its measured limits."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def special_function(out, REPEATS: tl.constexpr, WHICH: tl.constexpr, BLOCK: tl.constexpr):
    """REPEATS dependent calls of one function on BLOCK values: tanh and exp2 of fp32, tanh of pairs of bf16."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = (i % 7).to(tl.float32) * 0.1
    for _ in range(REPEATS):
        if WHICH == "tanh":
            x = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
        elif WHICH == "exp2":
            x = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
        else:
            y = x.to(tl.bfloat16)
            y = tl.inline_asm_elementwise("tanh.approx.bf16x2 $0, $1;", "=r,r", [y], dtype=tl.bfloat16, is_pure=True, pack=2)
            x = y.to(tl.float32)
    tl.store(out + i, x)


@triton.jit
def read_again(source, out, SIZE: tl.constexpr, REPEATS: tl.constexpr, BLOCK: tl.constexpr):
    """Each program reads all SIZE values REPEATS times, past L1; each begins at another place."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    place = tl.program_id(0) * BLOCK
    for _ in range(REPEATS * (SIZE // BLOCK)):
        total += tl.load(source + tl.multiple_of(place % SIZE, BLOCK) + lane, cache_modifier=".cg")
        place += BLOCK
    tl.store(out + tl.program_id(0) * BLOCK + lane, total)
