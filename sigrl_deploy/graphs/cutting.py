"""Cutting the visual graph at SVFR: the tower for an engine, and SVFR's weights for the kernels that run after it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.graphs.functions import DOMAIN

PATCHES = "patches"  # the tower's name for X [B, P, D], in the file's dtype
GLOBAL = "global_feature"
WEIGHTS = ("decouple", "fuse", "reconstruct")  # W1ᵀ, Waᵀ and W2ᵀ [D, D], SVFR's inputs after X, T and G Wbᵀ


def svfr_node(graph: GraphProto) -> NodeProto:
    """The graph's one SVFR node."""
    (node,) = (node for node in graph.node if node.domain == DOMAIN and node.op_type == "SVFR")
    return node


def tower(model: ModelProto) -> ModelProto:
    """A copy of the part before SVFR: pixels [B, 3, H, W] to `patches` X [B, P, D], and `global_feature` [B, D] in fp32."""
    graph, head = model.graph, svfr_node(model.graph)
    kept = _needed(graph, [head.input[0], GLOBAL])
    # Waᵀ has the dtype of the patches, even where the other two weights have 8 bits.
    dtype = next(tensor.data_type for tensor in graph.initializer if tensor.name == head.input[4])
    nodes = [*kept, onnx.helper.make_node("Identity", [head.input[0]], [PATCHES], "cut_at_svfr")]
    used = {name for node in nodes for name in node.input}
    cut = onnx.helper.make_graph(
        nodes,
        graph.name,
        [value for value in graph.input if value.name in used],
        [onnx.helper.make_tensor_value_info(PATCHES, dtype, ["batch", "patches", "dim"]), _named(graph, GLOBAL)],
        [tensor for tensor in graph.initializer if tensor.name in used],
    )
    domains = {node.domain for node in kept}
    opsets = [opset for opset in model.opset_import if opset.domain != DOMAIN or DOMAIN in domains]
    functions = [function for function in model.functions if function.name in {node.op_type for node in kept}]
    return onnx.helper.make_model(cut, opset_imports=opsets, functions=functions, ir_version=model.ir_version)


def svfr_weights(model: ModelProto, folder: Path) -> dict[str, FloatArray]:
    """W1ᵀ, Waᵀ and W2ᵀ [D, D] in fp32, by name. `folder` is the graph's own, where a file beside it may hold its weights."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    names = dict(zip(WEIGHTS, svfr_node(model.graph).input[3:], strict=True))
    return {name: _fp32(tensors[tensor], folder) for name, tensor in names.items()}


def _fp32(tensor: TensorProto, folder: Path) -> FloatArray:
    return numpy_helper.to_array(tensor, base_dir=str(folder)).astype(np.float32)


def _needed(graph: GraphProto, outputs: Collection[str]) -> list[NodeProto]:
    """The nodes that the given values depend on, in the graph's order."""
    wanted, kept = set(outputs), []
    for node in reversed(graph.node):  # ONNX keeps producers before consumers
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def _named(graph: GraphProto, name: str) -> onnx.ValueInfoProto:
    (value,) = (value for value in graph.output if value.name == name)
    return value
