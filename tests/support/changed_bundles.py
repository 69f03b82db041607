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
