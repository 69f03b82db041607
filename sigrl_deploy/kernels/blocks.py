"""What the kernels share: block sizes, tanh, exp2, and the precision of matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigrl_deploy.errors import UsageError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PACKED_FROM = {torch.float16: (7, 5), torch.bfloat16: (9, 0)}  # compute capabilities with tanh of two values at a time
MIN_BLOCK = 16  # of a matrix product's sides, in Triton


@dataclass(frozen=True)
class Launch:
    """How a kernel is compiled: constants by name, warps and software-pipelining stages."""

    constants: dict[str, Any]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        """Distinguishes a kernel's launches at one size."""
        blocks = [f"{name} {value}" for name, value in self.constants.items() if name.startswith("BLOCK_")]
        bounded = ["no maximum"] if self.constants.get("BOUNDED") else []
        return ", ".join([*blocks, f"{self.warps} warps", f"{self.stages} stages", *bounded])

    def altered(self, warps: int, stages: int, **constants: int) -> Launch:
        """A copy with other constants."""
        return Launch(self.constants | constants, warps, stages)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def block(size: int, largest: int = 1 << 30) -> int:
    """The smallest power of two that is at least `size`, between MIN_BLOCK and `largest`."""
    return min(largest, max(MIN_BLOCK, triton.next_power_of_2(size)))


def depth_block(dim: int, block_p: int, dtype: torch.dtype) -> int:
    """The depth of a step of a product over D: the patches' operand takes 64 KiB, and a row of the other 128 bytes."""
    return block(dim, max(MIN_BLOCK, min(128, 65536 // block_p) // dtype.itemsize))


def precision(dtype: torch.dtype, capability: tuple[int, int] | None = None) -> dict[str, Any]:
    """Constants of a kernel for inputs of `dtype`, by where it runs: a GPU of `capability`, by default the current one.

    TANH is 0 for fp32's accuracy, 1 for the GPU's approximation of fp32 values, whose error of 2^-11 is that of rounding to
    fp16, 2 for its approximation of two 16-bit values at a time. WIDE_DOT says that this is the interpreter, which knows no
    PTX, and widens the operands of products, since its bf16 product is wrong.
    """
    if interpreted() or dtype is torch.float32:
        tanh = 0
    else:
        packed = PACKED_FROM[dtype] <= (capability or torch.cuda.get_device_capability())
        tanh = 2 if packed else 1
    return {"TANH": tanh, "WIDE_DOT": interpreted()}


def check(name: str, *tensors: Tensor) -> None:
    """Raise UsageError unless all tensors have one supported dtype, and lie on one device that kernels run on."""
    first = tensors[0]
    if first.dtype not in DTYPES or any((x.dtype, x.device) != (first.dtype, first.device) for x in tensors):
        kinds = ", ".join(f"{x.dtype} on {x.device}" for x in tensors)
        raise UsageError(f"{name}: got {kinds}; expected fp32, fp16 or bf16, all the same, on one device")
    if first.device.type != ("cpu" if interpreted() else "cuda"):
        raise UsageError(f"{name}: tensors are on {first.device}; kernels run on a GPU (on a CPU with TRITON_INTERPRET=1)")
    if first.is_cuda and first.get_device() != torch.cuda.current_device():  # Triton would launch on the current GPU
        raise UsageError(f"{name}: tensors are on {first.device}, which is not the current GPU; use torch.cuda.device")


@triton.jit
def tanh(x):
    """tanh of fp32 values to fp32 accuracy."""
    # Near 0 the quotient of exponentials cancels, so a series takes its place: x - x³/3 + 2x⁵/15 - …
    square = x * x
    tail = 0.021869488536155203 + square * (-0.008863235529902197 + square * 0.003592128036572481)
    tail = -0.3333333333333333 + square * (0.13333333333333333 + square * (-0.05396825396825397 + square * tail))
    series = x + x * square * tail
    decay = tl.exp(-2.0 * tl.abs(x))
    quotient = (1.0 - decay) / (1.0 + decay)
    return tl.where(tl.abs(x) < 0.3, series, tl.where(x < 0, -quotient, quotient))


@triton.jit
def bounded_tanh(x, t, TANH: tl.constexpr):
    """tanh(x ⊙ t) of the operands' dtype, t broadcast; `TANH` as `precision` gives it."""
    if TANH == 2:
        pair: tl.constexpr = "bf16x2" if x.dtype == tl.bfloat16 else "f16x2"
        code: tl.constexpr = "mul.rn." + pair + " $0, $1, $2; tanh.approx." + pair + " $0, $0;"
        t = tl.broadcast_to(t, x.shape)
        value = tl.inline_asm_elementwise(code, "=r,r,r", [x, t], dtype=x.dtype, is_pure=True, pack=2)
    elif TANH == 1:
        wide = x.to(tl.float32) * t.to(tl.float32)
        value = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [wide], dtype=tl.float32, is_pure=True, pack=1).to(
            x.dtype
        )
    else:
        # One rounding less than in pairs, since the interpreter cuts values to bf16 where a GPU rounds them.
        value = tanh(x.to(tl.float32) * t.to(tl.float32)).to(x.dtype)
    return value


@triton.jit
def exp2(x, WIDE_DOT: tl.constexpr):
    """2^x of fp32 values in one instruction; results below 2^-126 are 0."""
    if WIDE_DOT:
        value = tl.exp2(x)
    else:
        value = tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return value


@triton.jit
def product(a, b, sum_in, WIDE_DOT: tl.constexpr):
    """sum_in + a b, accumulated in fp32; the product of fp32 operands is three of TF32, which keeps 21 bits or more of each."""
    if WIDE_DOT:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum_in, input_precision="tf32x3")
