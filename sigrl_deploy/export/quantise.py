"""8-bit products for CPUs: the two big weights of SVFR and, in int8-all, the tower by ONNX Runtime's own quantiser.

Scales of activations belong to one picture: what SVFR quantises lies within ±1; the tower's scales are found while it runs,
over one picture, since its graph then takes no more than one. A score therefore never depends on the batch.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import onnx
import torch
from torch import Tensor

LARGEST = 127
LARGEST_WEIGHT = 63  # 7 bits: without VNNI, a CPU adds two products of 8 bits in 16, which would overflow


def columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Wᵀ [D_in, D_out] → the same in int8, symmetric for each column, and the columns' scales divided by 127 [D_out] fp32."""
    scale = weight.float().abs().amax(dim=0).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST_WEIGHT
    return (weight.float() / scale).round().to(torch.int8), scale / LARGEST


def quantised_tower(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its products by constant weights in 8 bits, scales of activations found at run time, weights by column."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(proto, before)
        quiet = logging.getLogger()
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # it advises a pre-processing that does not know custom domains
        try:
            quantize_dynamic(
                before, after, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True,
                weight_type=QuantType.QInt8,
            )  # fmt: skip
        finally:
            quiet.setLevel(level)
        return onnx.load(after)
