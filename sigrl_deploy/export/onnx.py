"""From a graph module to an ONNX file: PyTorch's exporter, and the functions that the SigRL ops stand for."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset20
from torch import Tensor, nn

from sigrl_deploy.config import Precision
from sigrl_deploy.export.graph_modules import TextGraph, VisualGraph
from sigrl_deploy.graphs.functions import EXP_LIMIT, OPSET, gmc_function, linear_function, svfr_function
from sigrl_deploy.graphs.quantising import quantised_tower, split_products
from sigrl_deploy.model.sigrl import SVFR, SigRL

DATA = ".data"  # added to a graph's file name: the file beside it, which holds weights too large for the graph's own file
_PROTOBUF_LIMIT = 2**31 - 2**26  # bytes of weights: protobuf's limit of 2 GiB, less room for the graph
_FP32 = onnx.TensorProto.FLOAT
op: Any = opset20  # its annotations allow tensors only, and not the Python values that `_attention` passes


def export_visual(model: SigRL, path: Path, precision: Precision) -> None:
    """Write the visual graph of a model whose weights are typed in `precision`.

    Batch size and label count are dynamic, but for the batch size where `precision.takes_one_picture`.
    """
    graph = VisualGraph(model, precision).eval()
    single = precision.takes_one_picture
    size, dim = model.config.vision.image_size, model.config.embed_dim
    vocabulary = [torch.zeros(3, dim) for _ in graph.input_names[1:]]  # one tensor given twice would become one input
    labels = torch.export.Dim("labels")
    batch = {} if single else {0: torch.export.Dim("batch")}
    dynamic = (batch, *([tuple({0: labels} for _ in vocabulary)] if vocabulary else []))
    pixels = torch.zeros(1 if single else 2, 3, size, size)
    proto = _export(graph, (pixels, *vocabulary), dynamic, graph.input_names, graph.output_names)
    if precision is Precision.INT8_ALL:
        proto = quantised_tower(proto)
    if precision is Precision.INT8X3:
        split_products(proto)
        _add_function(proto, linear_function())
    if model.svfr is not None:
        _add_function(proto, svfr_function(exponent_bound(model) > EXP_LIMIT, precision.is_int8))
    _save(proto, path)


def export_text(model: SigRL, path: Path) -> bool:
    """Write the text graph of a typed model; its row counts may be 0. Returns False where the model has none to write."""
    graph = TextGraph(model).eval()
    names = graph.input_names
    if not names:
        return False
    examples = {"cached_embedding": torch.zeros(3, model.config.embed_dim)}
    dims: dict[str, dict[int, Any]] = {"cached_embedding": {0: torch.export.Dim("cached", min=0)}}
    if model.config.text is not None:
        examples["token_ids"] = torch.zeros(2, 5, dtype=torch.int64)
        tokens = torch.export.Dim("tokens", max=model.config.text.context_length)
        dims["token_ids"] = {0: torch.export.Dim("labels", min=0), 1: tokens}
    dynamic = (tuple(dims[name] for name in names),)
    proto = _export(graph, tuple(examples[name] for name in names), dynamic, names, graph.output_names)
    if model.gmc is not None:
        _add_function(proto, gmc_function())
    _save(proto, path)
    return True


def exponent_bound(model: SigRL) -> float:
    """The largest that ln Σ_n exp(E) |X| can be for any picture and label (docs/method.md, identity 5).

    |E[n, c, d]| ≤ ‖W[d]‖₁, since |tanh| ≤ 1; and X = ln_post(x) proj is bounded, since a layer norm's output before its scale
    and shift has norm √width at most.
    """
    assert model.svfr is not None
    visual = model.vit
    proj = visual.proj.float()
    scaled = (visual.ln_post.weight.float()[:, None] * proj).norm(dim=0) * math.sqrt(proj.shape[0])
    largest_patch = (scaled + (visual.ln_post.bias.float() @ proj).abs()).max().item()
    patches = model.config.vision.grid**2
    return _largest_energy(model.svfr) + math.log(patches * max(largest_patch, 1.0))


def _largest_energy(svfr: SVFR) -> float:
    return max(linear.weight.float().abs().sum(1).max().item() for linear in (svfr.decouple, svfr.reconstruct))


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention with its softmax in fp32, whatever the dtype of its products. PyTorch's own translation keeps their dtype."""
    factor = op.CastLike(op.Constant(value_float=scale or 1 / math.sqrt(query.shape[-1])), query)
    energy = op.MatMul(op.Mul(query, factor), op.Transpose(key, perm=[0, 1, 3, 2]))
    if is_causal:
        length = op.Shape(query, start=2, end=3)
        later = op.Expand(op.CastLike(op.Constant(value_float=-math.inf), query), op.Concat(length, length, axis=0))
        energy = op.Add(energy, op.Trilu(later, op.Constant(value_int=1), upper=1))
    weights = op.Softmax(op.Cast(energy, to=_FP32), axis=-1)
    return op.MatMul(op.CastLike(weights, value), value)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress and deprecation messages of PyTorch's exporter. Its errors are exceptions, which still come through."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _export(
    graph: nn.Module, inputs: tuple[Tensor, ...], dynamic: Any, input_names: list[str], output_names: list[str]
) -> onnx.ModelProto:
    with quiet(), torch.inference_mode():
        program = torch.onnx.export(
            graph,
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic,
            custom_translation_table={torch.ops.aten.scaled_dot_product_attention.default: _attention},
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip_provenance(proto)
    return proto


def _add_function(proto: onnx.ModelProto, function: onnx.FunctionProto) -> None:
    """Add a function to the model, and import its domain and those of the ops it calls."""
    proto.functions.append(function)
    for opset in (onnx.helper.make_opsetid(function.domain, 1), *function.opset_import):
        if opset.domain not in {imported.domain for imported in proto.opset_import}:
            proto.opset_import.append(opset)


def _strip_provenance(proto: onnx.ModelProto) -> None:
    """Remove the exporter's stack traces and source paths, which name folders of the machine that exported."""
    proto.doc_string = proto.graph.doc_string = ""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    del proto.graph.value_info[:]
    for part in (*proto.graph.node, *proto.graph.initializer, *proto.graph.input, *proto.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]


def _save(proto: onnx.ModelProto, path: Path) -> None:
    external = _weights_bytes(proto) >= _PROTOBUF_LIMIT
    onnx.save(proto, path, save_as_external_data=external, location=f"{path.name}{DATA}" if external else None)
    onnx.checker.check_model(path)


def _weights_bytes(proto: onnx.ModelProto) -> int:
    return sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
