"""8-bit matrix products for CPUs: SVFR's two large weights, and the tower's, in two ways (int8-all and int8x3).

A score never depends on the other pictures of a batch: what SVFR quantises lies within ±1, and a graph whose tower is
quantised, with scales computed while it runs, takes one picture at a time.
"""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.graphs.functions import DOMAIN

LARGEST = 127
LARGEST_WEIGHT = 63  # 7 bits: without VNNI a CPU adds two 8-bit products in 16 bits, which 8-bit weights would overflow


def columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Wᵀ [D_in, D_out] to int8, symmetric in each column, and the scales of the columns divided by 127 [D_out] fp32."""
    scale = weight.float().abs().amax(dim=0).clamp(min=torch.finfo(torch.float32).tiny) / LARGEST_WEIGHT
    return (weight.float() / scale).round().to(torch.int8), scale / LARGEST


def quantised_tower(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its products by constant weights in 8 bits: weights scaled by column, activations at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(proto, before)
        quiet = logging.getLogger()
        level = quiet.level
        quiet.setLevel(logging.ERROR)  # it recommends a preprocessing step that does not support custom domains
        try:
            quantize_dynamic(
                before, after, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, reduce_range=True,
                weight_type=QuantType.QInt8,
            )  # fmt: skip
        finally:
            quiet.setLevel(level)
        return onnx.load(after)


def digits(weight: FloatArray) -> tuple[NDArray[np.int8], NDArray[np.int8], FloatArray]:
    """Wᵀ [K, N] fp32 to `high` and `low` [K, N] int8 within ±63 and `scale` [N] fp32: Wᵀ = scale (high + low / 126)."""
    scale = np.maximum(np.abs(weight).max(axis=0), np.finfo(np.float32).tiny) / LARGEST_WEIGHT
    high = np.rint(weight / scale)
    low = np.rint((weight / scale - high) * 2 * LARGEST_WEIGHT)
    return high.astype(np.int8), low.astype(np.int8), scale.astype(np.float32)


def split_products(proto: onnx.ModelProto) -> None:
    """Replace each product by a constant matrix on the right, with its bias, by a `sigrl::LinearInt8x3` node."""
    graph = proto.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    sums = _sums(graph, constants)
    nodes: list[NodeProto] = []
    parts: dict[str, NDArray[Any]] = {}
    folded = set()
    for node in graph.node:
        if node.output[0] in folded:
            continue
        if not _is_linear(node, constants):
            nodes.append(node)
            continue
        name, output, bias = node.input[1], node.output[0], next(iter(node.input[2:]), "")
        weight = numpy_helper.to_array(constants[name])
        if node.op_type == "Gemm" and _attributes(node).get("transB"):
            name, weight = f"{name}.T", weight.T
        if not bias and sums.get(output, ("", "", 0))[2] == weight.shape[1]:
            output, bias, _ = sums[output]
            folded.add(output)
        own: dict[str, NDArray[Any]] = dict(zip((f"{name}.high", f"{name}.low", f"{name}.scale"), digits(weight), strict=True))
        parts |= own
        inputs = [node.input[0], *own, *filter(None, [bias])]
        nodes.append(helper.make_node("LinearInt8x3", inputs, [output], node.name, domain=DOMAIN))
    graph.initializer.extend(numpy_helper.from_array(part, part_name) for part_name, part in parts.items())
    _replace_nodes(graph, nodes)


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _is_linear(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a node is x W, x W + b, x Wᵀ or x Wᵀ + b, with a constant matrix and vector."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in constants or len(constants[node.input[1]].dims) != 2:
        return False
    how = _attributes(node)
    if how.get("alpha", 1) != 1 or how.get("beta", 1) != 1 or how.get("transA", 0):
        return False
    columns = constants[node.input[1]].dims[0 if how.get("transB", 0) else 1]
    return all(name in constants and list(constants[name].dims) == [columns] for name in filter(None, node.input[2:]))


def _sums(graph: GraphProto, constants: Mapping[str, TensorProto]) -> dict[str, tuple[str, str, int]]:
    """For each value whose only use is to have a constant vector added: the names of the sum and the vector, and its length."""
    uses = Counter([*(name for node in graph.node for name in node.input), *(value.name for value in graph.output)])
    return {
        node.input[0]: (node.output[0], node.input[1], constants[node.input[1]].dims[0])
        for node in graph.node
        if node.op_type == "Add" and uses[node.input[0]] == 1
        if node.input[1] in constants and len(constants[node.input[1]].dims) == 1
    }


def _replace_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Replace all nodes of a graph by `nodes`, and remove the constants that none of them reads."""
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
