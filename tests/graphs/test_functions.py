"""The functions `sigrl::SVFR` and `sigrl::GMC` in ONNX Runtime against float64, at sizes that do and do not fill a tile."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.random_weights import label_embeddings
from sigrl_deploy.config import GraphConfig
from sigrl_deploy.graphs.functions import DOMAIN, OPSET, gmc_function, svfr_function
from sigrl_deploy.model.sigrl import GMC, SVFR

DIM = 512
SHAPES = {"patches": ["B", "P", DIM], "label_embedding": ["C", DIM], "graph_projection": ["C", DIM]}
# Rounding of the inputs, weights and products: about 2e-7 relative in fp32, 5e-4 in fp16, over two chained stages.
TOLERANCE = {np.float32: 5e-6, np.float16: 1e-2}


def session(
    function: onnx.FunctionProto, inputs: list[str], weights: dict[str, np.ndarray], dtype: type
) -> ort.InferenceSession:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node(function.name, [*inputs, *weights], ["out"], domain=DOMAIN)
    graph = helper.make_graph(
        [node],
        "test",
        [helper.make_tensor_value_info(name, element, SHAPES[name]) for name in inputs],
        [helper.make_tensor_value_info("out", element, SHAPES[inputs[0]])],
        [numpy_helper.from_array(np.ascontiguousarray(value.astype(dtype)), name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def svfr() -> SVFR:
    torch.manual_seed(0)
    return SVFR(DIM).double().eval().requires_grad_(False)


def svfr_session(svfr: SVFR, dtype: type, shift: bool) -> ort.InferenceSession:
    weights = {"decouple": svfr.decouple.weight, "fuse": svfr.fuse.weight[:, :DIM], "reconstruct": svfr.reconstruct.weight}
    transposed = {name: weight.T.numpy() for name, weight in weights.items()}
    return session(svfr_function(shift), ["patches", "label_embedding", "graph_projection"], transposed, dtype)


def svfr_inputs(batch: int, patches: int, labels: int) -> list[np.ndarray]:
    rng = np.random.default_rng(labels)
    projection = rng.standard_normal((labels, DIM), np.float32)
    return [rng.standard_normal((batch, patches, DIM), np.float32), label_embeddings(labels, seed=1), projection]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("batch", "patches", "labels"), [(1, 25, 1), (2, 49, 7), (1, 25, 8), (3, 1, 81), (2, 25, 257)])
def test_svfr(svfr: SVFR, dtype: type, shift: bool, batch: int, patches: int, labels: int) -> None:
    inputs = [value.astype(dtype) for value in svfr_inputs(batch, patches, labels)]
    feeds = dict(zip(("patches", "label_embedding", "graph_projection"), inputs, strict=True))
    (out,) = svfr_session(svfr, dtype, shift).run(None, feeds)
    expected = svfr(*(torch.from_numpy(value).double() for value in inputs)).numpy()
    assert out.dtype == dtype
    assert np.abs(out - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max()


def test_svfr_shift_survives_weights_that_overflow_exp(svfr: SVFR) -> None:
    """Row norms of 800: exp overflows fp32 without the shift, and the shifted body still equals float64."""
    large = SVFR(DIM).double().requires_grad_(False)
    large.load_state_dict(svfr.state_dict())
    for linear in (large.decouple, large.reconstruct):
        linear.weight *= 800 / linear.weight.abs().sum(1).max()
    inputs = svfr_inputs(1, 25, 7)
    feeds = dict(zip(("patches", "label_embedding", "graph_projection"), inputs, strict=True))
    (plain,) = svfr_session(large, np.float32, shift=False).run(None, feeds)
    (shifted,) = svfr_session(large, np.float32, shift=True).run(None, feeds)
    expected = large(*(torch.from_numpy(value).double() for value in inputs)).numpy()
    assert not np.isfinite(plain).all()
    # Energies of several hundred carry an absolute fp32 error of 1e-4, which exp makes a relative one.
    assert np.abs(shifted - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_svfr_zero_rows_stay_zero(svfr: SVFR, dtype: type) -> None:
    """Label embeddings of zero make every row of R zero: 0/0 would be NaN, and an fp16 norm would underflow to it."""
    patches, _, projection = svfr_inputs(1, 25, 7)
    inputs = [value.astype(dtype) for value in (patches, np.zeros((7, DIM)), projection)]
    feeds = dict(zip(("patches", "label_embedding", "graph_projection"), inputs, strict=True))
    (out,) = svfr_session(svfr, dtype, shift=False).run(None, feeds)
    expected = svfr(*(torch.from_numpy(value).double() for value in inputs)).numpy()
    assert np.abs(out - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max()


@pytest.mark.parametrize(("patches_scale", "labels_scale"), [(1e-3, 1e-2), (1e-2, 1e-3), (4, 100)])
def test_svfr_in_fp16_keeps_norms_and_exp_in_fp32(svfr: SVFR, patches_scale: float, labels_scale: float) -> None:
    """Rows of Sᵀ T whose squares fp16 would round to 0 or overflow, and energies beyond ln 65504 = 11.1: an fp16 norm, exp or
    sum of weights would give NaN, infinities, or patches that are all the same.
    """
    large = SVFR(DIM).double().requires_grad_(False)
    large.load_state_dict(svfr.state_dict())
    for linear in (large.decouple, large.reconstruct):
        linear.weight *= 80 / linear.weight.abs().sum(1).max()
    patches, labels, projection = svfr_inputs(2, 25, 7)
    given = patches * patches_scale, labels * labels_scale, projection * labels_scale
    inputs = [value.astype(np.float16) for value in given]
    feeds = dict(zip(("patches", "label_embedding", "graph_projection"), inputs, strict=True))
    (out,) = svfr_session(large, np.float16, shift=False).run(None, feeds)
    wide = [torch.from_numpy(value).double() for value in inputs]
    expected = large(*wide).numpy()
    relation = large.decoupled(wide[0], wide[1].expand(2, -1, -1)).transpose(1, 2) @ wide[1]
    energy = linear(torch.tanh(wide[0][:, None] * wide[1][:, None])).abs().max()
    squares = relation.square().sum(-1)
    assert squares.min() < 6e-8 or (squares.max() > 65504 and energy > np.log(65504)), "it is no test of fp16's range"
    # An energy of up to 20 has an error of a hundredth in fp16, which exp makes a relative one.
    assert np.abs(out - expected).max() <= 4 * TOLERANCE[np.float16] * np.abs(expected).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("labels", [1, 2, 7, 81, 301])
def test_gmc(dtype: type, labels: int) -> None:
    torch.manual_seed(0)
    gmc = GMC((GraphConfig(DIM, 4, 32), GraphConfig(128, 1, DIM))).double().requires_grad_(False).eval()
    weights = {}
    for i, layer in enumerate(gmc.layers, start=1):
        layer.attention.normal_()
        weights |= {f"weight{i}": layer.linear.weight.T.numpy(), f"attention{i}": layer.attention.numpy()}
    embedding = label_embeddings(labels, seed=1).astype(dtype)
    (out,) = session(gmc_function(), ["label_embedding"], weights, dtype).run(None, {"label_embedding": embedding})
    expected = gmc(torch.from_numpy(embedding).double()).numpy()
    assert out.dtype == dtype
    assert np.abs(out - expected).max() <= TOLERANCE[dtype] * np.abs(expected).max()


def test_bodies_use_standard_ops_only() -> None:
    """Any runtime without a kernel can inline them."""
    for function in (svfr_function(shift=True), gmc_function()):
        assert {node.domain for node in function.node} == {""}
        for node in function.node:
            for attribute in node.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    assert {inner.domain for inner in attribute.g.node} == {""}
    assert TensorProto.FLOAT == 1  # the bodies write Cast <to = 1>
