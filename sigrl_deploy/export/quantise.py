"""8-bit products for CPUs: the two big weights of SVFR; the tower in int8-all, by ONNX Runtime's own quantiser, and in int8x3.

Scales of activations belong to one picture: what SVFR quantises lies within ±1; the tower's scales are found while it runs,
over one picture, since its graph then takes no more than one. A score therefore never depends on the batch.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, helper, numpy_helper
from torch import Tensor

from sigrl_deploy.export.functions import DOMAIN

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


def digits(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.float32]]:
    """Wᵀ [K, N] → high and low [K, N] and scale [N]: Wᵀ = scale (high + low / 126), both digits within ±63."""
    scale = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny) / LARGEST_WEIGHT
    high = np.rint(weight / scale)
    low = np.rint((weight / scale - high) * 2 * LARGEST_WEIGHT)
    return high.astype(np.int8), low.astype(np.int8), scale.astype(np.float32)


def split_products(proto: onnx.ModelProto) -> None:
    """Make every product of the graph by a constant matrix, with its bias, a `sigrl::LinearInt8x3` node."""
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    biases = _biases(graph)
    nodes, done = [], set()
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants:
            nodes += [] if node.output[0] in done else [node]
            continue
        name = node.input[1]
        weight = numpy_helper.to_array(constants[name])
        high, low, scale = digits(weight.T if node.op_type == "Gemm" else weight)
        output, bias = biases.get(node.output[0], (node.output[0], ""))
        if node.op_type == "Gemm":
            bias = node.input[2]
        done.add(output)
        parts: dict[str, NDArray[Any]] = {f"{name}.high": high, f"{name}.low": low, f"{name}.scale": scale}
        graph.initializer.extend(numpy_helper.from_array(part, part_name) for part_name, part in parts.items())
        inputs = [node.input[0], *parts, *([bias] if bias else [])]
        nodes.append(helper.make_node("LinearInt8x3", inputs, [output], node.name, domain=DOMAIN))
    _replace_nodes(graph, nodes)


def _biases(graph: GraphProto) -> dict[str, tuple[str, str]]:
    """By a value that is only used to add a constant to: the sum's name, and the constant's."""
    constants = {tensor.name for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    return {
        node.input[0]: (node.output[0], node.input[1])
        for node in graph.node
        if node.op_type == "Add" and node.input[1] in constants and uses[node.input[0]] == 1
    }


def _replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Put these in the place of all nodes, and drop the constants that none of them reads."""
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
