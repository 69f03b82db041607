"""The two other forms of SVFR in a graph, cut off after the tower and as plugin nodes, run without TensorRT."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import triton
from onnx import numpy_helper
from onnx.inliner import inline_local_functions
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from sigrl_deploy.config import Precision
from sigrl_deploy.graphs.cutting import WEIGHTS, svfr_weights, tower
from sigrl_deploy.graphs.functions import svfr_function
from sigrl_deploy.kernels import svfr
from sigrl_deploy.model.sigrl import SVFR
from sigrl_deploy.tensorrt.plugin import with_plugin, without_scratch

LABELS = (1, 7)
SPLITS = 3


@pytest.fixture(scope="module", params=[Precision.FP32, Precision.FP16])
def visual(request: pytest.FixtureRequest, export_tiny: Callable[..., Path]) -> Path:
    return export_tiny(request.param) / "visual.onnx"


def session(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        str(model) if isinstance(model, Path) else model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def vocabulary(labels: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(labels)
    return {name: rng.normal(size=(labels, 512)).astype(np.float32) for name in ("label_embedding", "graph_projection")}


@pytest.mark.parametrize("labels", LABELS)
def test_tower_and_head_are_the_whole(visual: Path, labels: int) -> None:
    """The cut tower, followed by SVFR in PyTorch with the weights from the file, against the exported graph."""
    model = onnx.load(visual)
    cut = tower(model)
    onnx.checker.check_model(cut)
    assert {value.name for value in cut.graph.output} == {"patches", "global_feature"}
    assert not {node.domain for node in cut.graph.node} - {""}
    pixels = np.random.default_rng(0).normal(size=(3, 3, 80, 80)).astype(np.float32)
    rows = vocabulary(labels)
    patches, global_feature = session(cut).run(["patches", "global_feature"], {"pixels": pixels})
    local, expected_global = session(visual).run(["local_feature", "global_feature"], {"pixels": pixels, **rows})
    half = patches.dtype == np.float16
    assert np.array_equal(global_feature, expected_global) or half
    module = SVFR(512)
    weights = svfr_weights(model, visual.parent)
    with torch.inference_mode():
        module.decouple.weight.data = torch.from_numpy(weights["decouple"].T.copy())
        module.reconstruct.weight.data = torch.from_numpy(weights["reconstruct"].T.copy())
        module.fuse.weight.data[:, :512] = torch.from_numpy(weights["fuse"].T.copy())
        found = module(torch.from_numpy(patches).float(), *(torch.from_numpy(values) for values in rows.values()))
    # fp16 rounds each product's result, of up to a few units; fp32 differs in the order of sums only.
    assert np.abs(found.numpy() - local).max() < (2e-2 if half else 1e-5) * np.abs(local).max()


def test_the_cut_changes_nothing_of_the_model(visual: Path) -> None:
    model = onnx.load(visual)
    before = model.SerializeToString(deterministic=True)
    tower(model)
    with_plugin(model)
    assert model.SerializeToString(deterministic=True) == before


class Decouple(OpRun):
    """The plugin's first kernel, in Triton's interpreter."""

    op_domain = "sigrl"

    def _run(self, patches, labels, weight, count, **attributes):  # type: ignore[no-untyped-def]
        x, t, w = (torch.from_numpy(np.ascontiguousarray(array)) for array in (patches, labels, weight))
        assert int(count[0]) == len(labels)
        return (svfr.decouple(x, t, w).numpy(),)


class Reconstruct(OpRun):
    """The second: sums over SPLITS parts of the labels, which the graph adds."""

    op_domain = "sigrl"

    def _run(self, patches, labels, weight, count, **attributes):  # type: ignore[no-untyped-def]
        x, v, w = (torch.from_numpy(np.ascontiguousarray(array)) for array in (patches, labels, weight))
        (batch, tokens, dim), how = x.shape, svfr.launch(x.shape[1], x.shape[2], x.dtype, accumulators=2)
        partial = torch.full((SPLITS, batch, tokens, dim), torch.nan)
        blocks = -(-dim // how.constants["BLOCK_O"])
        rows = torch.tensor(int(count[0]), dtype=torch.int32)
        svfr.reconstruct_kernel[blocks, SPLITS, batch](
            x, v, w, rows, int(count[0]), SPLITS, partial, **how.constants, num_warps=how.warps, num_stages=how.stages
        )
        return (partial.numpy(),)


Decouple.__name__, Reconstruct.__name__ = "svfr_decouple", "svfr_reconstruct"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_plugin_s_graph_computes_the_same(dtype: type[np.floating], labels: int) -> None:
    """A small SVFR in onnx's reference evaluator, whose plugin nodes run the kernels in Triton's interpreter, against
    the standard function in ONNX Runtime.
    """
    rng, patches, dim = np.random.default_rng(labels), 9, 48
    shapes = {"x": (2, patches, dim), "t": (labels, dim), "g": (labels, dim)}
    values = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    weights = [numpy_helper.from_array((rng.normal(size=(dim, dim)) / dim**0.5).astype(dtype), name) for name in WEIGHTS]

    def lone(function: onnx.FunctionProto) -> onnx.ModelProto:
        """A model of an SVFR node alone."""
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        call = onnx.helper.make_node("SVFR", ["x", "t", "g", *WEIGHTS], ["y"], domain="sigrl")
        given = [onnx.helper.make_tensor_value_info(name, kind, shape) for name, shape in shapes.items()]
        graph = onnx.helper.make_graph([call], "g", given, [onnx.helper.make_tensor_value_info("y", kind, None)], weights)
        opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("sigrl", 1)]
        return onnx.helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=10)

    exported = lone(svfr_function(shift=False))
    (expected,) = session(exported).run(None, values)
    changed = inline_local_functions(with_plugin(exported))  # as TensorRT's parser does
    assert {node.op_type for node in changed.graph.node if node.domain} == {"svfr_decouple", "svfr_reconstruct"}
    (found,) = ReferenceEvaluator(changed, new_ops=[Decouple, Reconstruct]).run(None, values)
    # As above: fp16 rounds the results of products, fp32 only sums in another order.
    assert np.abs(found.astype(np.float32) - expected).max() < (2e-2 if dtype is np.float16 else 1e-5) * np.abs(expected).max()


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_kernels_compile_to_ptx_with_the_parameters_that_tensorrt_passes(stage: int, capability: tuple[int, int]) -> None:
    """In a process without Triton's interpreter, which compiles nothing; NVIDIA's assembler takes the PTX."""
    code = (
        "from sigrl_deploy.config import Precision; from sigrl_deploy.tensorrt.plugin import kernel_ptx; "
        f"k = kernel_ptx({stage}, 196, 512, Precision.BF16, {capability}); print(k.name, k.threads, k.shared); print(k.ptx)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    head, _, ptx = done.stdout.partition("\n")
    name, threads, shared = head.split()
    assert (name, threads) == ("decouple_kernel" if stage == 1 else "reconstruct_kernel", "256")
    assert int(shared) <= 48 * 1024  # what a launch may have unasked (CUDA C Programming Guide)
    entry = ptx[ptx.index(".entry") : ptx.index(")", ptx.index(".entry"))]
    kinds = [line.split()[1] for line in entry.splitlines()[1:] if ".param" in line]
    assert kinds == [".u64"] * 4 + [".u32"] * stage + [".u64"]
    with tempfile.NamedTemporaryFile(suffix=".ptx") as file:
        file.write(ptx.encode())
        file.flush()
        assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
        arch = f"sm_{10 * capability[0] + capability[1]}{'a' if capability >= (9, 0) else ''}"
        subprocess.run([assembler, "-arch", arch, file.name, "-o", "/dev/null"], check=True)


def test_a_kernel_that_uses_scratch_memory_is_refused() -> None:
    ptx = ".visible .entry k(\n\t.param .u64 k_param_0,\n\t.param .u64 k_param_1\n)\n{ ld.param.b64 %r, [k_param_1]; }"
    with pytest.raises(ValueError, match="k uses"):
        without_scratch(ptx, 1)
    assert without_scratch(ptx, 2) == ptx
