"""8-bit products on a CPU: their results, that no picture's score depends on another picture, and what stays in fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper

from benchmarks.random_weights import label_embeddings
from sigrl_deploy import Recognizer
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.errors import UsageError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.graphs.cutting import GLOBAL, tower
from sigrl_deploy.graphs.functions import DOMAIN, OPSET, RUNTIME_DOMAIN, linear_function, svfr_function
from sigrl_deploy.graphs.quantising import LARGEST, LARGEST_WEIGHT, columns, digits, split_products
from sigrl_deploy.model.sigrl import SVFR
from tests.support.refusals import assert_refused

DIM = 512
ALL = (Precision.INT8, Precision.INT8X3, Precision.INT8_ALL)


@pytest.fixture(scope="module")
def int8_bundle(export_tiny: Callable[..., Path]) -> Path:
    return export_tiny(*ALL)


def test_columns_are_rounded_to_the_nearest_step() -> None:
    weight = torch.randn(40, 7, generator=torch.Generator().manual_seed(0))
    weight[:, 3] = 0
    steps, scale = columns(weight)
    assert steps.dtype is torch.int8
    assert int(steps.abs().max()) == LARGEST_WEIGHT
    assert (steps * scale * 127 - weight).abs().max() <= weight.abs().max() / LARGEST_WEIGHT / 2 * 1.001  # fp32


def quantised_in_float64(svfr: SVFR, inputs: list[torch.Tensor]) -> torch.Tensor:
    """SVFR in float64 but for the two roundings: tanh to steps of 1/127, W to the steps of its columns."""

    def attention(linear: torch.nn.Linear, labels: torch.Tensor) -> torch.Tensor:
        steps, scale = columns(linear.weight.T.float())
        rounded = (torch.tanh(patches[:, None] * labels[:, :, None]) * 127).round()
        return torch.softmax(rounded @ steps.double() * scale.double(), dim=2)

    patches, embedding, projection = inputs
    semantic = (attention(svfr.decouple, embedding[None]) * patches[:, None]).sum(2)
    v = svfr.between(semantic, embedding, projection)
    return patches * attention(svfr.reconstruct, v).sum(1)


@pytest.mark.parametrize(("batch", "tokens", "labels"), [(1, 25, 1), (2, 49, 7), (1, 25, 81)])
def test_svfr_rounds_twice_and_nothing_else(batch: int, tokens: int, labels: int) -> None:
    """A tanh on the edge between two steps may round either way in fp32, which changes one product by one step."""
    torch.manual_seed(0)
    svfr = SVFR(DIM).double().eval().requires_grad_(False)
    rng = np.random.default_rng(labels)
    inputs = {
        "patches": rng.standard_normal((batch, tokens, DIM), np.float32),
        "label_embedding": label_embeddings(labels, seed=1),
        "graph_projection": rng.standard_normal((labels, DIM), np.float32),
    }
    weights = {
        "decouple": svfr.decouple.weight.T,
        "fuse": svfr.fuse.weight[:, :DIM].T,
        "reconstruct": svfr.reconstruct.weight.T,
    }
    arrays = {"fuse": weights["fuse"].float()}
    for name in ("decouple", "reconstruct"):
        arrays[name], arrays[f"{name}_scale"] = columns(weights[name].float())
    order = ["decouple", "fuse", "reconstruct", "decouple_scale", "reconstruct_scale"]
    graph = helper.make_graph(
        [helper.make_node("SVFR", [*inputs, *order], ["out"], domain=DOMAIN)],
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in inputs.items()],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, inputs["patches"].shape)],
        [numpy_helper.from_array(arrays[name].contiguous().numpy(), name) for name in order],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid(RUNTIME_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[svfr_function(False, int8=True)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    (out,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, inputs)
    wide = [torch.from_numpy(value).double() for value in inputs.values()]
    rounded, exact = quantised_in_float64(svfr, wide).numpy(), svfr(*wide).numpy()
    own = np.linalg.norm(out - rounded) / np.linalg.norm(rounded)
    whole = np.linalg.norm(out - exact) / np.linalg.norm(exact)
    assert own < 0.2 * whole, (own, whole)
    assert whole < 0.02


def linear_in_ort(weight: np.ndarray, bias: np.ndarray | None, x: np.ndarray) -> np.ndarray:
    """x [..., K] by Wᵀ [K, N] through `sigrl::LinearInt8x3`."""
    constants = dict(zip(("high", "low", "scale"), digits(weight), strict=True)) | ({} if bias is None else {"bias": bias})
    graph = helper.make_graph(
        [helper.make_node("LinearInt8x3", ["x", *constants], ["y"], domain=DOMAIN)],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*x.shape[:-1], weight.shape[1]])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid(RUNTIME_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, functions=[linear_function()], ir_version=10)
    onnx.checker.check_model(model)
    (out,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return out


@pytest.mark.parametrize(("shape", "width"), [((1, 197, 96), 33), ((7, 5), 1), ((3, 1, 130), 64)])
@pytest.mark.parametrize("biased", [True, False])
def test_three_products_in_8_bits_err_by_no_more_than_their_roundings(shape: tuple[int, ...], width: int, biased: bool) -> None:
    """Both sides are rounded to half a step of their second digits; the product left out is of two halves of first steps."""
    rng = np.random.default_rng(width)
    x = rng.standard_normal(shape, np.float32) * np.exp(rng.standard_normal(shape[-1], np.float32))
    weight = rng.standard_normal((shape[-1], width), np.float32)
    bias = rng.standard_normal(width, np.float32) if biased else None
    exact = x.astype(np.float64) @ weight + (0 if bias is None else bias)
    step, scale = np.abs(x).max() / LARGEST, np.abs(weight).max(0) / LARGEST_WEIGHT
    finer = 2 * LARGEST_WEIGHT
    rounding = np.abs(weight).sum(0) * step / finer / 2 + np.abs(x).sum(-1)[..., None] * scale / finer / 2
    bound = rounding + shape[-1] * step * scale / 4
    slack = 1e-5 * (np.abs(x) @ np.abs(weight) + 1)  # of sums in fp32, and of what lies on an edge between two steps
    assert (np.abs(linear_in_ort(weight, bias, x) - exact) <= bound + slack).all()
    assert bound.max() < 2e-2 * np.abs(exact).max()


def test_three_products_of_nothing_are_the_bias() -> None:
    bias = np.array([1.5, -2], np.float32)
    assert np.array_equal(linear_in_ort(np.zeros((4, 2), np.float32), bias, np.ones((3, 4), np.float32)), [bias] * 3)
    assert np.array_equal(linear_in_ort(np.ones((4, 2), np.float32), bias, np.zeros((3, 4), np.float32)), [bias] * 3)


def model_of(*nodes: NodeProto, constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    """x [3, 4] → y, by these nodes."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1), helper.make_opsetid(RUNTIME_DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


MATRIX, VECTOR = np.arange(8, dtype=np.float32).reshape(4, 2) - 3, np.array([10, -20], np.float32)
CASES = {
    "a product and a sum": ([("MatMul", ["x", "w"], "t", {}), ("Add", ["t", "b"], "y", {})], 1),
    "a sum that is used twice": (
        [("MatMul", ["x", "w"], "t", {}), ("Add", ["t", "b"], "s", {}), ("Add", ["s", "t"], "y", {})], 1,
    ),
    "a product and a sum with a scalar": ([("MatMul", ["x", "w"], "t", {}), ("Add", ["t", "one"], "y", {})], 1),
    "one matrix twice": (
        [("MatMul", ["x", "w"], "s", {}), ("MatMul", ["x", "w"], "t", {}), ("Add", ["s", "t"], "y", {})], 2,
    ),
    "Gemm": ([("Gemm", ["x", "w", "b"], "y", {})], 1),
    "Gemm of a transposed matrix": ([("Gemm", ["x", "wt", "b"], "y", {"transB": 1})], 1),
    "Gemm without a bias": ([("Gemm", ["x", "wt"], "y", {"transB": 1})], 1),
    "Gemm and a sum": ([("Gemm", ["x", "w", "b"], "t", {}), ("Add", ["t", "b"], "y", {})], 1),
    "Gemm that scales": ([("Gemm", ["x", "w", "b"], "y", {"alpha": 0.5})], 0),
    "Gemm with a matrix to add": ([("Gemm", ["x", "w", "b2"], "y", {})], 0),
    "a constant on the left": ([("MatMul", ["w3", "x"], "y", {})], 0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_split_computes_what_it_did(case: str) -> None:
    described, split = CASES[case]
    nodes = [helper.make_node(op, inputs, [output], **how) for op, inputs, output, how in described]
    constants = {"w": MATRIX, "wt": MATRIX.T.copy(), "b": VECTOR, "b2": VECTOR[None], "one": np.ones(1, np.float32)}
    constants["w3"] = np.ones((2, 3), np.float32)
    used = {name for node in nodes for name in node.input}
    model = model_of(*nodes, constants={name: value for name, value in constants.items() if name in used})
    x = np.random.default_rng(0).standard_normal((3, 4), np.float32)
    (expected,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    split_products(model)
    assert sum(node.op_type == "LinearInt8x3" for node in model.graph.node) == split
    model.functions.append(linear_function())
    (found,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()  # 14 bits, of sums that partly cancel


def test_int8x3_splits_every_product_of_the_tower_and_hardly_moves_scores(
    int8_bundle: Path, photos: list[Path], label_file: Path
) -> None:
    visual = onnx.load(int8_bundle / "visual-int8x3.onnx")
    assert sum(node.op_type == "LinearInt8x3" for node in visual.graph.node) == 9  # four per block, and the projection
    weights = {tensor.name for tensor in visual.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    assert not [node for node in visual.graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights]
    scores = {}
    for precision in ALL:
        recognizer = Recognizer(int8_bundle, device="cpu", precision=precision, cache_dir=False)
        scores[precision] = recognizer.scores(photos, recognizer.vocabulary(label_file))
    apart = {p: np.abs(scores[p] - scores[Precision.INT8]).max() for p in (Precision.INT8X3, Precision.INT8_ALL)}
    assert 0 < apart[Precision.INT8X3] < apart[Precision.INT8_ALL] / 10


def test_the_tower_of_int8x3_can_be_cut_off(int8_bundle: Path, photos: list[Path], label_file: Path) -> None:
    recognizer = Recognizer(int8_bundle, device="cpu", precision=Precision.INT8X3, cache_dir=False)
    pixels = recognizer.pixels(photos[0])[None]
    _, whole = recognizer.engine.encode(pixels, recognizer.vocabulary(label_file))
    cut = tower(onnx.load(int8_bundle / "visual-int8x3.onnx"))
    onnx.checker.check_model(cut)
    session = ort.InferenceSession(cut.SerializeToString(), providers=["CPUExecutionProvider"])
    assert np.array_equal(session.run([GLOBAL], {"pixels": pixels})[0], whole)


@pytest.mark.parametrize("precision", ALL)
def test_a_picture_does_not_depend_on_its_batch(
    int8_bundle: Path, photos: list[Path], label_file: Path, precision: Precision
) -> None:
    recognizer = Recognizer(int8_bundle, device="cpu", precision=precision, cache_dir=False)
    vocabulary = recognizer.vocabulary(label_file)
    pixels = np.stack([recognizer.pixels(path) for path in photos])
    together = recognizer.score_pixels(pixels, vocabulary)
    assert np.array_equal(together[1:2], recognizer.score_pixels(pixels[1:2], vocabulary))
    assert np.array_equal(together[::-1], recognizer.score_pixels(pixels[::-1], vocabulary))


def test_int8_all_takes_one_picture_and_keeps_norms_in_fp32(int8_bundle: Path) -> None:
    visual = onnx.load(int8_bundle / "visual-int8-all.onnx")
    assert visual.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    counts = {op: sum(node.op_type == op for node in visual.graph.node) for op in ("MatMulInteger", "LayerNormalization")}
    assert counts["MatMulInteger"] == 9  # four per block, and the projection
    types = {tensor.name: tensor.data_type for tensor in visual.graph.initializer}
    for node in visual.graph.node:
        if node.op_type == "LayerNormalization":
            assert {types[name] for name in node.input[1:]} == {TensorProto.FLOAT}
    assert {node.domain for node in visual.graph.node} == {"", "sigrl"}


def test_int8_leaves_the_tower_in_fp32_and_any_batch(int8_bundle: Path) -> None:
    visual = onnx.load(int8_bundle / "visual.onnx")
    assert visual.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    assert "MatMulInteger" not in {node.op_type for node in visual.graph.node}
    whole = {tensor.name for tensor in visual.graph.initializer if tensor.data_type == TensorProto.INT8}
    assert whole == set(next(node for node in visual.graph.node if node.domain == DOMAIN).input) & whole
    assert len(whole) == 2


def test_precisions_of_one_dtype_share_the_text_graph(int8_bundle: Path) -> None:
    names = sorted(path.name for path in int8_bundle.glob("*.onnx"))
    assert names == ["text.onnx", "visual-int8-all.onnx", "visual-int8x3.onnx", "visual.onnx"]
    manifest = Bundle(int8_bundle).manifest
    assert list(manifest.variants) == list(ALL)
    for variant in manifest.variants.values():
        assert variant.text == "text.onnx"
        assert variant.parity["cases"]


def test_a_precision_that_the_bundle_lacks_is_refused(int8_bundle: Path) -> None:
    assert_refused(lambda: Recognizer(int8_bundle, precision="fp32"), UsageError, "precision='fp32'", "int8, int8x3, int8-all")


def test_int8_of_a_model_without_svfr_is_refused(weights: Path, without_text: dict[str, Path], tmp_path: Path) -> None:
    options = ExportOptions(weights / "sigrl.pth", tmp_path / "out", arch=Arch.MKT, **without_text)
    assert_refused(lambda: export_bundle(replace(options, precisions=(Precision.INT8,))), UsageError, "int8", "int8x3")
    export_bundle(replace(options, precisions=(Precision.INT8X3, Precision.INT8_ALL)))


@pytest.mark.parametrize("precision", ALL)
def test_it_differs_from_fp32_by_no_more_than_its_tolerance(
    int8_bundle: Path, bundle: Path, photos: list[Path], label_file: Path, precision: Precision
) -> None:
    exact = Recognizer(bundle, device="cpu", cache_dir=False)
    rounded = Recognizer(int8_bundle, device="cpu", precision=precision, cache_dir=False)
    assert rounded.engine.precision is precision
    a, b = (r.scores(photos, r.vocabulary(label_file)) for r in (exact, rounded))
    assert 1e-6 < np.abs(a - b).max() < precision.tolerance
