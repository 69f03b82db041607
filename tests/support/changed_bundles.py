"""Changes to an exported bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sigrl_deploy.files import sha256_file


def mend_hashes(folder: Path, *more: str) -> None:
    """The manifest with the present hash of every listed file, and of `more`."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    values["files"] = {name: sha256_file(folder / name) for name in (*values["files"], *more)}
    path.write_text(json.dumps(values))


def edit_manifest(folder: Path, **changes: object) -> None:
    """Replace values of the manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_graph(folder: Path, name: str, change: Callable[[onnx.ModelProto], None]) -> None:
    model = onnx.load(folder / name)
    change(model)
    onnx.save(model, folder / name)
    mend_hashes(folder)


def nan_for_dark_pictures(model: onnx.ModelProto) -> None:
    """The logarithm of the brightest pixel, which is above 0 only where a picture is brighter than the mean."""
    graph = model.graph
    (node,) = (node for node in graph.node if "global_feature" in node.output)
    node.output[list(node.output).index("global_feature")] = "before"
    graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2, 3]), "inner_axes"))
    graph.node.extend(
        [
            helper.make_node("ReduceMax", ["pixels", "inner_axes"], ["brightest"], keepdims=0),
            helper.make_node("Log", ["brightest"], ["logarithm"]),
            helper.make_node("Mul", ["logarithm", "nothing"], ["zero_or_nan"]),
            helper.make_node("Unsqueeze", ["zero_or_nan", "last_axis"], ["column"]),
            helper.make_node("Add", ["before", "column"], ["global_feature"]),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "last_axis"))


def endless_for_white_and_broken_for_black(model: onnx.ModelProto) -> None:
    """A loop without a turn for most pictures and without an end for a white one; an index out of bounds for a black one."""
    # White is above 1.9 in each channel, black below -1.4.
    _constants(model, least=np.float32(1.5), none=np.int64(0), endless=np.int64(1 << 60))
    _constants(model, most=np.float32(-1.4), good=np.int64(0), bad=np.int64(9))
    _constants(model, inner=np.array([1, 2, 3]), table=np.zeros(1, np.float32), go_on=np.True_, first=np.float32(0))
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_too"]),
            helper.make_node("Identity", ["before"], ["after"]),
        ],
        "turn",
        [_value("turn", onnx.TensorProto.INT64), _value("go", onnx.TensorProto.BOOL), _value("before", onnx.TensorProto.FLOAT)],
        [_value("go_too", onnx.TensorProto.BOOL), _value("after", onnx.TensorProto.FLOAT)],
    )
    nodes = [
        helper.make_node("ReduceMin", ["pixels", "inner"], ["darkest"], keepdims=0),
        helper.make_node("ReduceMax", ["darkest"], ["darkest_of_one"], keepdims=0),
        helper.make_node("Greater", ["darkest_of_one", "least"], ["white"]),
        helper.make_node("Where", ["white", "endless", "none"], ["turns"]),
        helper.make_node("Loop", ["turns", "go_on", "first"], ["zero"], body=body),
        helper.make_node("ReduceMax", ["pixels", "inner"], ["brightest"], keepdims=0),
        helper.make_node("ReduceMin", ["brightest"], ["brightest_of_one"], keepdims=0),
        helper.make_node("Less", ["brightest_of_one", "most"], ["black"]),
        helper.make_node("Where", ["black", "bad", "good"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["another_zero"]),
        helper.make_node("Add", ["zero", "another_zero"], ["zeros"]),
    ]
    _add_to_global_feature(model, nodes, "zeros")


def broken_for_all(model: onnx.ModelProto) -> None:
    """An index that is out of bounds, which no optimiser sees."""
    _constants(model, table=np.zeros(1, np.float32), nine=np.array([9]))
    nodes = [
        helper.make_node("Shape", ["pixels"], ["shape"], start=0, end=1),
        helper.make_node("Add", ["shape", "nine"], ["place"]),
        helper.make_node("Gather", ["table", "place"], ["zeros"]),
    ]
    _add_to_global_feature(model, nodes, "zeros")


def _constants(model: onnx.ModelProto, **values: np.generic | np.ndarray) -> None:
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())


def _value(name: str, kind: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [])


def _add_to_global_feature(model: onnx.ModelProto, nodes: list[onnx.NodeProto], name: str) -> None:
    graph = model.graph
    (node,) = (node for node in graph.node if "global_feature" in node.output)
    node.output[list(node.output).index("global_feature")] = "unchanged_feature"
    graph.node.extend([*nodes, helper.make_node("Add", ["unchanged_feature", name], ["global_feature"])])
