"""What test_tensorrt_bindings.py asks of TensorRT's bindings, in a process of its own: `tensorrt_child.py LIBRARY CHECK …`.

LIBRARY is "tensorrt_rtx", or a folder with stubs of TensorRT's libraries for its bindings, which are on the path. The last line
that it prints is what the check finds, as JSON.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from tests.support.tensorrt_uses import Uses

STUBS = ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11")


def load(library: str) -> Any:
    """The module: TensorRT's bindings are a package of another name, which its own `tensorrt` passes on."""
    if library == "tensorrt_rtx":
        return importlib.import_module(library)
    for stub in STUBS:
        ctypes.CDLL(str(Path(library) / stub))
    sys.modules["tensorrt"] = importlib.import_module("tensorrt_bindings")
    return sys.modules["tensorrt"]


def uses(trt: Any, *files: str) -> dict[str, list[str]]:
    """Names that source files use, those that are wrong, and those that cannot be told."""
    found = Uses(map(Path, files), trt)
    return {"names": sorted(found.names), "wrong": sorted(found.wrong), "unknown": sorted(found.unknown)}


def callbacks(trt: Any) -> dict[str, Any]:
    """What our logger hears of the library, and what our monitor says of a build."""
    from sigrl_deploy.tensorrt.builder import _monitor
    from sigrl_deploy.tensorrt.library import Library

    heard: list[tuple[str, str]] = []
    logger = Library("tensorrt", trt.__version__, trt).logger(lambda severity, text: heard.append((severity, text)))
    for make in (trt.Builder, trt.Runtime):
        try:
            make(logger)
        except TypeError:
            continue  # the stub's is null
        raise AssertionError("a stub built something")
    monitor = _monitor(trt)
    monitor.phase_start("Building", None, 2)
    monitor.phase_start("Tactics", "Building", 5)
    goes_on = [monitor.step_complete("Tactics", 0), monitor.step_complete("Building", 0)]
    monitor.phase_finish("Building")
    return {
        "version": trt.__version__,
        "heard": heard,
        "monitors": isinstance(monitor, trt.IProgressMonitor),
        "goes_on": goes_on,
    }


class Number:
    """A dimension at run time, in the place of the library's expression of one: of this value, and no constant of the build."""

    def __init__(self, value: int) -> None:
        self.value = value

    def is_constant(self) -> bool:
        return False


class Numbers:
    """Computes with dimensions, in the place of the library's builder of expressions."""

    def __init__(self, trt: Any) -> None:
        self._known = {
            trt.DimensionOperation.SUM: lambda a, b: a + b,
            trt.DimensionOperation.SUB: lambda a, b: a - b,
            trt.DimensionOperation.PROD: lambda a, b: a * b,
            trt.DimensionOperation.MAX: max,
            trt.DimensionOperation.MIN: min,
            trt.DimensionOperation.FLOOR_DIV: lambda a, b: a // b,
            trt.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
        }

    def constant(self, value: int) -> Number:
        return Number(value)

    def operation(self, operation: Any, first: Number, second: Number) -> Number:
        return Number(self._known[operation](first.value, second.value))


class Registry:
    """Keeps what is registered, in the place of the library's registry."""

    def __init__(self) -> None:
        self.creators: dict[tuple[str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> None:
        self.creators[namespace, creator.name] = creator

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators[namespace, name]


class Sink:
    """Takes what a plugin tells the library of its launch: attributes, and scalars by number."""

    def __init__(self) -> None:
        self.scalars: dict[int, Any] = {}

    def __setitem__(self, index: int, value: Any) -> None:
        self.scalars[index] = value


def plugin(trt: Any, precision: str, batch: str, labels: str, patches: str, dim: str, *capability: str) -> dict[str, Any]:
    """Both plugins as an engine's build meets them: registered, created from the registry, and asked for types, shapes, launch
    and kernel. Only what is C++ in the library is replaced.
    """
    registry = Registry()
    trt.get_plugin_registry = lambda: registry
    # Read when `tensorrt.plugin` is imported: a list of dimensions, a dimension, and a scalar for a kernel.
    trt.DimsExprs, trt.IDimensionExpr, trt.ISymExpr = (lambda length: [None] * length), Number, type("ISymExpr", (), {})

    from sigrl_deploy.config import Precision
    from sigrl_deploy.tensorrt.plugin import register

    b, c, p, d = map(int, (batch, labels, patches, dim))
    register(trt, p, d, Precision(precision), (int(capability[0]), int(capability[1])))
    kind = {"fp32": trt.float32, "fp16": trt.float16, "bf16": trt.bfloat16}[precision]
    rows = {"svfr_decouple": (c, d), "svfr_reconstruct": (b, c, d)}
    found = {}
    for (namespace, name), creator in registry.creators.items():
        made = creator.create_plugin(
            name, namespace, trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD, trt.QuickPluginCreationRequest.STRICT_AOT
        )
        inputs = [((b, p, d), kind), (rows[name], kind), ((d, d), kind), ((1,), trt.int32)]
        found[f"{namespace}::{name}"] = built(trt, made, inputs)
    return found


def built(trt: Any, made: Any, inputs: list[tuple[tuple[int, ...], Any]]) -> dict[str, Any]:
    numbers = Numbers(trt)
    sizes = [[Number(size) for size in shape] for shape, _ in inputs]
    types = made.get_output_data_types([type_ for _, type_ in inputs], [len(shape) for shape, _ in inputs])
    outputs = made.get_output_shapes(sizes, [], numbers)
    described = [*inputs, *((tuple(size.value for size in shape), type_) for shape, type_ in zip(outputs, types, strict=True))]
    descs = [dynamic(trt, shape, type_) for shape, type_ in described]
    formats = made.get_supported_format_combinations(descs, len(inputs))
    made.configure_plugin(descs[: len(inputs)], descs[len(inputs) :])
    made.set_tactic(0)
    launch, scalars = Sink(), Sink()
    made.get_launch_params(sizes, descs, len(inputs), launch, scalars, numbers)
    name, ptx = made.get_kernel([desc.desc for desc in descs[: len(inputs)]], [desc.desc for desc in descs[len(inputs) :]])
    given = {name: getattr(launch, name).expr.value for name in vars(launch) if name != "scalars"}
    return {
        "outputs": [[shape, type_.name] for shape, type_ in described[len(inputs) :]],
        "formats": [[desc.type.name, desc.format.name] for desc in formats],
        "launch": given,
        "scalars": [[scalars.scalars[i].expr.value, scalars.scalars[i].dtype.name] for i in range(scalars.nbSymExprs)],
        "name": name if isinstance(name, str) else name.decode(),
        "ptx": ptx.decode(),
    }


def dynamic(trt: Any, shape: tuple[int, ...], type_: Any) -> Any:
    desc = trt.DynamicPluginTensorDesc()
    inner = trt.PluginTensorDesc()
    inner.dims, inner.type, inner.format = shape, type_, trt.TensorFormat.LINEAR
    desc.desc = inner
    desc.min = desc.opt = desc.max = shape
    return desc


if __name__ == "__main__":
    checks = {"uses": uses, "callbacks": callbacks, "plugin": plugin}
    print(json.dumps(checks[sys.argv[2]](load(sys.argv[1]), *sys.argv[3:])))
