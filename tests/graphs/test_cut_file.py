"""The visual graph cut at SVFR without the onnx package: the halves compute what the whole does, and damage is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.config import Precision
from sigrl_deploy.engines.onnx_graphs import inputs_of
from sigrl_deploy.engines.onnxruntime import open_session, providers_of
from sigrl_deploy.graphs.cut_file import GLOBAL, WEIGHTS, CutGraph, cut
from sigrl_deploy.graphs.cutting import svfr_weights, tower

FORMS = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.INT8X3, Precision.INT8_ALL)


@pytest.fixture(scope="module")
def graphs(export_tiny: Callable[..., Path]) -> dict[Precision, Path]:
    bundle = export_tiny(*FORMS)
    return {form: bundle / ("visual.onnx" if form is FORMS[0] else f"visual-{form.value}.onnx") for form in FORMS}


def features(graph: CutGraph, path: Path, pixels: FloatArray) -> tuple[FloatArray, FloatArray]:
    session = open_session(path, providers_of("cpu"), graph.tower)
    patches, global_feature = session.run([graph.patches, GLOBAL], {"pixels": pixels})
    return patches, global_feature


@pytest.mark.parametrize("form", FORMS)
def test_it_cuts_as_the_onnx_package_does(graphs: dict[Precision, Path], form: Precision) -> None:
    path = graphs[form]
    model, graph = onnx.load(path), cut(path)
    assert graph.inputs == inputs_of(model.graph)
    assert graph.has_int8 == form.is_int8
    assert len(graph.tower) < path.stat().st_size / 10  # the weights stay in the file
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    pixels = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
    other = ort.InferenceSession(tower(model).SerializeToString(), providers=["CPUExecutionProvider"])
    for mine, its in zip(features(graph, path, pixels), other.run(["patches", GLOBAL], {"pixels": pixels}), strict=True):
        assert mine.dtype == its.dtype
        assert np.array_equal(mine, its)


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_those_of_the_node(graphs: dict[Precision, Path], form: Precision) -> None:
    weights, model = cut(graphs[form]).weights, onnx.load(graphs[form])
    node = next(node for node in model.graph.node if node.op_type == "SVFR")
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    if form.is_int8:
        for name, steps, scale in zip(("decouple", "reconstruct"), (3, 5), (6, 7), strict=True):
            exact = constants[node.input[steps]].astype(np.float64) * constants[node.input[scale]] * 127
            assert np.abs(weights[name] - exact).max() <= 1e-6 * np.abs(exact).max()
        assert np.array_equal(weights["fuse"], constants[node.input[4]])
    else:
        for name, expected in svfr_weights(model, graphs[form].parent).items():
            assert np.array_equal(weights[name], expected)
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}


def test_weights_in_another_file_are_read_from_there(graphs: dict[Precision, Path], tmp_path: Path) -> None:
    path = tmp_path / "visual.onnx"
    onnx.save(onnx.load(graphs[FORMS[0]]), path, save_as_external_data=True, location="visual.onnx.data")
    inside, outside = cut(graphs[FORMS[0]]), cut(path)
    assert all(np.array_equal(inside.weights[name], outside.weights[name]) for name in WEIGHTS)
    size = inside.inputs["pixels"][1]
    assert isinstance(size, int)
    pixels = np.ones((2, 3, size, size), np.float32)
    for mine, its in zip(features(outside, path, pixels), features(inside, graphs[FORMS[0]], pixels), strict=True):
        assert np.array_equal(mine, its)


def test_a_graph_without_svfr_is_refused(graphs: dict[Precision, Path], tmp_path: Path) -> None:
    path = tmp_path / "tower.onnx"
    onnx.save(tower(onnx.load(graphs[FORMS[0]])), path)
    with pytest.raises(ValueError, match="no SVFR node"):
        cut(path)


def test_damage_is_an_error_of_one_kind(graphs: dict[Precision, Path], tmp_path: Path) -> None:
    """Cut short anywhere, and with bytes changed where it says what lies where."""
    whole, path = graphs[Precision.INT8].read_bytes(), tmp_path / "visual.onnx"
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(120):
        content = bytearray(whole)
        if i % 4 == 0:
            del content[rng.integers(len(content)) :]
        else:
            for place in rng.integers(0, 40_000, 3):
                content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            cut(path)
        except (OSError, ValueError):
            refused += 1
    assert refused > 30
