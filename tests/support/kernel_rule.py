"""How exact a kernel has to be, and what every test of kernels needs.

The rule: the error against float64 is at most twice that of plain PyTorch at the same dtype. Errors are norms over all
elements, since the largest of a few elements is luck.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
MANY_LABELS = 1006 if DEVICE == "cuda" else 131  # Triton's interpreter takes half a minute for 1006
FP32_FLOOR = 1e-6  # of the largest value
ON_GPU = [pytest.mark.gpu] if DEVICE == "cuda" else []
MARKS = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("no_gradients"), *ON_GPU]


def distance(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm())


def check(got: Tensor, plain: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    assert got.isfinite().all()
    # A product of three TF32 keeps 21 bits of its operands where fp32 keeps 24: of short sums it errs by some 1e-7 of the
    # largest, which is more than twice plain fp32 and far below what a score needs.
    if dtype is torch.float32 and float((got.double() - exact).abs().max() / exact.abs().max()) <= FP32_FLOOR:
        return
    # Half a rounding of the result: below it one of the two being luckier says nothing.
    floor = torch.finfo(dtype).eps / 2
    assert distance(got, exact) <= max(2 * distance(plain, exact), floor), (distance(got, exact), distance(plain, exact))


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def in_float64(module: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(module).double()
