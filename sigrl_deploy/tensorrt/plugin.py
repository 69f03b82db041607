"""SVFR's two kernels as plugins of TensorRT, compiled ahead of time: an engine with them needs neither Python nor Triton.

`with_plugin` writes the graph: two plugin nodes, and the part between them as standard ops, in a model-local function like the
bundle's own. `kernel_ptx` compiles the kernels, and `register` registers them with TensorRT.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sigrl_deploy.bundle.engine_records import MOST_LABELS
from sigrl_deploy.config import Precision

if TYPE_CHECKING:
    from onnx import FunctionProto, ModelProto

    from sigrl_deploy.kernels.blocks import Launch

NAMESPACE = "sigrl"
SHARED_UNASKED = 48 * 1024  # bytes of shared memory that a program may use unless its launch asks for more
_ATTRIBUTES = f'<plugin_namespace = "{NAMESPACE}", plugin_version = "1", aot = 1>'

_SVFR = """
<domain: "sigrl", opset_import: ["": {opset}, "sigrl": 1]>
SVFR (patches, label_embedding, graph_projection, decouple, fuse, reconstruct) => (local)
{{
  zero = Constant <value_ints = [0]> ()
  one = Constant <value_ints = [1]> ()
  two = Constant <value_ints = [2]> ()
  three = Constant <value_ints = [3]> ()
  minus_one = Constant <value_ints = [-1]> ()
  float_zero = Constant <value_float = 0.0> ()
  float_one = Constant <value_float = 1.0> ()
  label_shape = Shape (label_embedding)
  labels = Slice (label_shape, zero, one)
  count = Cast <to = 6> (labels)
  label_rows = Identity (label_embedding)
  projection_rows = Cast <to = 1> (graph_projection)
  first = Transpose <perm = [1, 0]> (decouple)
  semantic = sigrl.svfr_decouple {attributes} (patches, label_embedding, first, count)
{between}
  second = Transpose <perm = [1, 0]> (reconstruct)
  partial = sigrl.svfr_reconstruct {attributes} (patches, fused, second, count)
  patch_weight = ReduceSum <keepdims = 0> (partial, zero)
  patches_fp32 = Cast <to = 1> (patches)
  local_fp32 = Mul (patches_fp32, patch_weight)
  local = CastLike (local_fp32, patches)
}}
"""


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: the name of its entry, its PTX, and threads, bytes of shared memory and channels per program."""

    name: str
    ptx: str
    threads: int
    shared: int
    channels: int


def svfr_function() -> FunctionProto:
    """`SVFR` with plugin nodes in place of both stages; inputs and outputs as in `graphs.functions.svfr_function`."""
    import onnx.parser

    from sigrl_deploy.graphs.functions import BETWEEN, OPSET

    return onnx.parser.parse_function(_SVFR.format(opset=OPSET, attributes=_ATTRIBUTES, between=BETWEEN))


def with_plugin(model: ModelProto) -> ModelProto:
    """A copy of a visual graph whose SVFR calls the plugins."""
    from onnx import ModelProto

    changed = ModelProto()
    changed.CopyFrom(model)
    (index,) = (i for i, function in enumerate(changed.functions) if function.name == "SVFR")
    changed.functions[index].CopyFrom(svfr_function())
    return changed


def kernel_ptx(stage: int, patches: int, dim: int, precision: Precision, capability: tuple[int, int]) -> Kernel:
    """Compile stage 1 or 2 for P patches and D channels on a GPU of this compute capability.

    The kernel's parameters are what TensorRT passes: inputs, then int32 scalars, then the output. The launch is the untuned
    one, or the nearest to it that spills no registers and needs no more than SHARED_UNASKED: TensorRT does not document whether
    it asks for more.
    """
    import torch

    from sigrl_deploy.kernels import svfr
    from sigrl_deploy.kernels.compile import Variant, compile_variant

    name = f"SVFR, stage {stage}"
    kernel, types = _arguments(stage, precision)
    needs: dict[tuple[int, int, int], Launch] = {}
    for how in _smaller(svfr.launch(patches, dim, getattr(torch, precision.torch_name), stage, capability)):
        variant = Variant(name, precision.value, kernel, types | dict.fromkeys(how.constants, "constexpr"), how)
        found = compile_variant(variant, 10 * capability[0] + capability[1])
        needs[max(found.shared, SHARED_UNASKED), found.code.spilled, len(needs)] = how
        if found.code.spilled == 0 and found.shared <= SHARED_UNASKED:
            break
    return _compile(kernel, types, needs[min(needs)], capability)


def _arguments(stage: int, precision: Precision) -> tuple[Any, dict[str, str]]:
    """The kernel of a stage, and the types of its arguments in order, without the constants."""
    from sigrl_deploy.kernels import svfr

    x = f"*{precision.value}"
    kernel, scalars = (svfr.decouple_kernel, ["rows"]) if stage == 1 else (svfr.reconstruct_kernel, ["rows", "splits"])
    types = {"patches": x, "labels": x, "weight": x, "count": "*i32"} | dict.fromkeys(scalars, "i32")
    types[kernel.arg_names[len(types)]] = "*fp32"
    return kernel, types


def _smaller(how: Launch) -> Iterator[Launch]:
    """A launch, then those with smaller blocks, by how much work they repeat: each block of channels computes every tanh."""
    from sigrl_deploy.kernels.blocks import MIN_BLOCK

    channels, depth = how.constants["BLOCK_O"], how.constants["BLOCK_K"]
    while channels >= MIN_BLOCK:
        for divisor in (1, 2):
            yield how.altered(how.warps, how.stages, BLOCK_O=channels, BLOCK_K=max(MIN_BLOCK, depth // divisor))
        channels //= 2


def _compile(kernel: Any, types: dict[str, str], how: Launch, capability: tuple[int, int]) -> Kernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # Triton makes loads asynchronous only where it knows that they are aligned. TensorRT requires its inputs to be at multiples
    # of 256 bytes; this assumes that it passes tensors between ops at multiples of 16 at least.
    aligned = {(i,): [["tt.divisibility", 16]] for i, type_ in enumerate(types.values()) if type_.startswith("*")}
    source = ASTSource(kernel, types | dict.fromkeys(how.constants, "constexpr"), how.constants, aligned)
    target = GPUTarget("cuda", 10 * capability[0] + capability[1], 32)
    compiled = triton.compile(source, target=target, options={"num_warps": how.warps, "num_stages": how.stages})
    ptx = without_scratch(compiled.asm["ptx"], len(types))
    return Kernel(compiled.metadata.name, ptx, 32 * how.warps, compiled.metadata.shared, how.constants["BLOCK_O"])


def without_scratch(ptx: str, parameters: int) -> str:
    """PTX whose entry has only the first `parameters`: Triton adds pointers to scratch memory, which TensorRT does not pass.

    Raises ValueError where the kernel uses them.
    """
    entry = re.search(r"\.entry (\w+)\(\n(.*?)\n\)", ptx, re.DOTALL)
    if entry is None:
        raise ValueError("the PTX has no entry")
    name, declared = entry[1], entry[2].split(",\n")
    for extra in range(parameters, len(declared)):
        if f"[{name}_param_{extra}" in ptx:
            raise ValueError(f"{name} uses scratch memory, which TensorRT does not give a kernel")
    return ptx.replace(entry[2], ",\n".join(declared[:parameters]), 1)


def register(trt: Any, patches: int, dim: int, precision: Precision, capability: tuple[int, int]) -> None:
    """Register both stages as plugins of TensorRT (`trt`), with kernels for one size of model and compute capability."""
    trtp = importlib.import_module("tensorrt.plugin")

    from sigrl_deploy.kernels import svfr

    first, second = (kernel_ptx(stage, patches, dim, precision, capability) for stage in (1, 2))
    # The same for every batch size, since it is part of a shape. One picture fills the GPU with it, where latency matters most.
    splits = svfr.splits(MOST_LABELS, 1, -(-dim // second.channels))
    Desc = trtp.TensorDesc

    # TensorRT reads annotations, and expects classes. This module's annotations are strings, and are replaced below.
    def describe_first(patches: Any, labels: Any, weight: Any, count: Any) -> Any:
        return trtp.from_shape_expr((patches.shape_expr[0], labels.shape_expr[0], dim), dtype=trt.float32)

    def describe_second(patches: Any, labels: Any, weight: Any, count: Any) -> Any:
        return trtp.from_shape_expr((splits, patches.shape_expr[0], patches.shape_expr[1], dim), dtype=trt.float32)

    def compile_first(patches: Any, labels: Any, weight: Any, count: Any, outputs: Any, tactic: Any) -> Any:
        launch = trtp.KernelLaunchParams()
        launch.grid_x = labels.shape_expr[0] * -(-dim // first.channels)
        launch.grid_y = patches.shape_expr[0]
        return _compiled(trtp, first, launch, [labels.shape_expr[0]])

    def compile_second(patches: Any, labels: Any, weight: Any, count: Any, outputs: Any, tactic: Any) -> Any:
        launch = trtp.KernelLaunchParams()
        launch.grid_x = -(-dim // second.channels)
        launch.grid_y = splits
        launch.grid_z = patches.shape_expr[0]
        return _compiled(trtp, second, launch, [labels.shape_expr[1], splits])

    for name, describe, compiled in (
        ("svfr_decouple", describe_first, compile_first),
        ("svfr_reconstruct", describe_second, compile_second),
    ):
        describe.__annotations__ = dict.fromkeys(("patches", "labels", "weight", "count", "return"), Desc)
        result: Any = tuple[bytes, bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]  # type: ignore[name-defined]
        compiled.__annotations__ = {"return": result}
        trtp.register(f"{NAMESPACE}::{name}")(describe)
        trtp.aot_impl(f"{NAMESPACE}::{name}")(compiled)


def _compiled(trtp: Any, kernel: Kernel, launch: Any, scalars: list[Any]) -> tuple[bytes, bytes, Any, Any]:
    launch.block_x, launch.shared_mem = kernel.threads, kernel.shared
    arguments = trtp.SymIntExprs.from_tuple([trtp.SymInt32(value) for value in scalars])
    return kernel.name.encode(), kernel.ptx.encode(), launch, arguments
