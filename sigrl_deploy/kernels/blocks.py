"""What the kernels share: block sizes, tanh, and the precision of matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sigrl_deploy.errors import UsageError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MIN_BLOCK = 16  # of a matrix product's sides, in Triton


@dataclass(frozen=True)
class Launch:
    """How a kernel is compiled: constants by name, warps and software-pipelining stages."""

    constants: dict[str, Any]
    warps: int
    stages: int

    @property
    def name(self) -> str:
        """Tells a kernel's launches at one size apart."""
        blocks = [f"{name} {value}" for name, value in self.constants.items() if name.startswith("BLOCK_")]
        return ", ".join([*blocks, f"{self.warps} warps", f"{self.stages} stages"])

    def altered(self, warps: int, stages: int, **constants: int) -> Launch:
        """The same with other blocks."""
        return Launch(self.constants | constants, warps, stages)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)


def block(size: int, largest: int = 1 << 30) -> int:
    """The power of two that covers `size`, between MIN_BLOCK and `largest`."""
    return min(largest, max(MIN_BLOCK, triton.next_power_of_2(size)))


def depth_block(dim: int, block_p: int, dtype: torch.dtype) -> int:
    """How deep a step of a product over D is: 64 KiB hold the patches' side of it, and 128 bytes a row of the other side."""
    return block(dim, max(MIN_BLOCK, min(128, 65536 // block_p) // dtype.itemsize))


def precision(dtype: torch.dtype) -> dict[str, Any]:
    """Constants of a kernel for inputs of `dtype`, by where it runs.

    FAST_TANH is the GPU's own approximation, whose error of 2^-11 is that of rounding to fp16. WIDE_DOT widens the
    operands of products, since the interpreter's bf16 product is wrong.
    """
    return {"FAST_TANH": dtype is not torch.float32 and not interpreted(), "WIDE_DOT": interpreted()}


def check(name: str, *tensors: Tensor) -> None:
    """Raise UsageError unless all are of one supported dtype and device, the device one that kernels run on."""
    first = tensors[0]
    if first.dtype not in DTYPES or any((x.dtype, x.device) != (first.dtype, first.device) for x in tensors):
        kinds = ", ".join(f"{x.dtype} on {x.device}" for x in tensors)
        raise UsageError(f"{name}: got {kinds}; expected fp32, fp16 or bf16, all the same, on one device")
    if first.device.type != ("cpu" if interpreted() else "cuda"):
        raise UsageError(f"{name}: tensors are on {first.device}; kernels run on a GPU (on a CPU with TRITON_INTERPRET=1)")
    if first.is_cuda and first.get_device() != torch.cuda.current_device():  # Triton would launch on the current one
        raise UsageError(f"{name}: tensors are on {first.device}, which is not the current GPU; use torch.cuda.device")


@triton.jit
def tanh(x, FAST_TANH: tl.constexpr):
    """tanh of fp32 values to fp32 accuracy, or the hardware's approximation."""
    if FAST_TANH:
        result = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        # Near 0 the quotient of exponentials cancels, so a series takes its place: x - x³/3 + 2x⁵/15 - …
        square = x * x
        tail = 0.021869488536155203 + square * (-0.008863235529902197 + square * 0.003592128036572481)
        tail = -0.3333333333333333 + square * (0.13333333333333333 + square * (-0.05396825396825397 + square * tail))
        series = x + x * square * tail
        decay = tl.exp(-2.0 * tl.abs(x))
        quotient = (1.0 - decay) / (1.0 + decay)
        result = tl.where(tl.abs(x) < 0.3, series, tl.where(x < 0, -quotient, quotient))
    return result


@triton.jit
def product(a, b, sum_in, WIDE_DOT: tl.constexpr):
    """sum_in + a b, accumulated in fp32; the product of fp32 operands is three of TF32, which keeps 21 bits or more of each."""
    if WIDE_DOT:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sum_in, input_precision="tf32x3")
