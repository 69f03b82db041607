"""What the code asks of TensorRT, held against the Python bindings of TensorRT 11.4, which are on PyPI without its libraries.

Nothing is built or run. The bindings load over stubs of the libraries, in a process of their own, and know every class, member
and signature; their `tensorrt.plugin` is Python, and takes the plugin through everything up to the launch of its kernels.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sigrl_deploy
from tests.support.paths import SUPPORT

BINDINGS = os.environ.get("SIGRL_TENSORRT_BINDINGS")
TESTS = SUPPORT
PACKAGE = Path(sigrl_deploy.__file__).parent
FILES = (*sorted((PACKAGE / "tensorrt").glob("*.py")), PACKAGE / "engines" / "tensorrt.py")

# What TensorRT for RTX alone has. The code asks for each before it uses it.
RTX = {
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "ComputeCapability",
    "DynamicShapesKernelSpecializationStrategy",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "IRuntimeConfig.create_runtime_cache",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
    "IRuntimeConfig.set_runtime_cache",
}
# Where the chains of calls end, so that none is lost on the way.
ENDS = {
    "IExecutionContext.execute_async_v3",
    "ILogger.Severity.name",
    "IOptimizationProfile.set_shape",
    "IProgressMonitor.step_complete",
    "ITensor.name",
    "ITimingCache.serialize",
    "ParserError.node_operator",
    "Runtime.engine_host_code_allowed",
    "TensorIOMode.INPUT",
    "bfloat16",
}

pytestmark = [
    pytest.mark.skipif(
        not BINDINGS, reason="SIGRL_TENSORRT_BINDINGS names no folder with TensorRT's bindings; `make test` does"
    ),
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler `cc`, which makes stubs of TensorRT's libraries"),
]


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    for name in ("libnvinfer.so.11", "libnvinfer_plugin.so.11", "libnvonnxparser.so.11"):
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, TESTS / "tensorrt_stub.c"]
        subprocess.run(command, check=True)
    return folder


def check(library: Path | str, name: str, *arguments: object) -> tuple[Any, list[str]]:
    """What a check of tensorrt_child.py finds, and the lines that it prints before."""
    path = os.pathsep.join([str(PACKAGE.parent), str(BINDINGS)])
    # Triton's interpreter compiles nothing.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"PYTHONPATH": path}
    command = [sys.executable, TESTS / "tensorrt_child.py", library, name, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    return json.loads(last), lines


def test_tensorrt_has_everything_that_the_code_uses(stubs: Path) -> None:
    """Classes, members, methods with these parameters, and properties that can be set; the same for TensorRT for RTX."""
    full, _ = check(stubs, "uses", *FILES)
    rtx, _ = check("tensorrt_rtx", "uses", *FILES)
    assert set(full["names"]) >= ENDS
    assert rtx["wrong"] == []
    assert set(full["wrong"]) == RTX
    # plugin.py is run below, all of it.
    assert [use for use in full["unknown"] if use in rtx["unknown"] and not use.startswith("plugin.py")] == []


def test_what_tensorrt_has_not_is_found(stubs: Path, tmp_path: Path) -> None:
    source = """
class Monitor(trt.IProgressMonitor):
    def phase_start(self, name, steps): ...
    def phase_end(self, name): ...

class Engine:
    def __init__(self, library: Library, path):
        self.runtime = library.trt.Runtime(None)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())

    def run(self):
        run_context(self.engine.create_execution_context(strategy=1), None)

def run_context(context: Any, other: Any):
    context.execute_async_v2(1)
    context.set_tensor_address("pixels")
    other.shape

def build(trt: Any, logger):
    config = trt.Builder(logger, 1).create_builder_config()
    config.set_flag(trt.BuilderFlag.FP16)
    config.set_timing_cache(None, ignore=False)
    config.num_optimization_profiles = 1
    for index in range(2):
        trt.OnnxParser(network=1, logger=logger).get_error(index).node_nam()
"""
    (tmp_path / "wrong.py").write_text(source)
    found, _ = check(stubs, "uses", tmp_path / "wrong.py")
    assert {wrong.partition(":")[0] for wrong in found["wrong"]} == {
        "IProgressMonitor.phase_start", "IProgressMonitor.phase_end", "IExecutionContext.execute_async_v2",
        "context.set_tensor_address('pixels')", "trt.Builder(logger, 1)", "BuilderFlag.FP16",
        "config.set_timing_cache(None, ignore=False)", "IBuilderConfig.num_optimization_profiles", "ParserError.node_nam",
    }  # fmt: skip
    assert found["unknown"] == ["wrong.py.run_context: other.shape"]


def test_the_library_calls_our_logger_and_a_monitor_constructs(stubs: Path) -> None:
    found, lines = check(stubs, "callbacks")
    assert found["version"].startswith("11.4.")
    assert found["heard"] == [["ERROR", "these are no libraries"]] * 2
    assert found["monitors"] is True
    assert found["goes_on"] == [True, True]
    assert [json.loads(line) for line in lines] == [{"phase": "Building", "step": step, "of": 2} for step in (0, 1, 2)]


@pytest.mark.parametrize(
    ("precision", "batch", "labels", "patches", "dim", "capability"),
    [("bf16", 3, 7, 196, 512, (9, 0)), ("fp16", 1, 1, 25, 96, (8, 0))],
)
def test_tensorrt_s_plugin_module_takes_both_kernels(
    stubs: Path, precision: str, batch: int, labels: int, patches: int, dim: int, capability: tuple[int, int]
) -> None:
    """Registered, created from the registry, and asked as a build asks: for types, shapes, launch, scalars and kernel."""
    found, _ = check(stubs, "plugin", precision, batch, labels, patches, dim, *capability)
    first, second = found["sigrl::svfr_decouple"], found["sigrl::svfr_reconstruct"]
    splits = second["outputs"][0][0][0]
    assert first["outputs"] == [[[batch, labels, dim], "FLOAT"]]
    assert second["outputs"] == [[[splits, batch, patches, dim], "FLOAT"]]
    assert first["scalars"] == [[labels, "INT32"]]
    assert second["scalars"] == [[labels, "INT32"], [splits, "INT32"]]
    grids = [[stage["launch"][f"grid_{axis}"] for axis in "xyz"] for stage in (first, second)]
    blocks = [grids[0][0] // labels, grids[1][0]]
    assert grids == [[blocks[0] * labels, batch, 1], [blocks[1], splits, batch]]
    kind = {"bf16": "BF16", "fp16": "HALF"}[precision]
    for stage, name, own in ((first, "decouple_kernel", blocks[0]), (second, "reconstruct_kernel", blocks[1])):
        assert stage["formats"] == [[type_, "LINEAR"] for type_ in (kind, kind, kind, "INT32", "FLOAT")]
        launch, ptx = stage["launch"], stage["ptx"]
        assert stage["name"] == name
        assert launch["shared_mem"] <= 48 * 1024  # what a launch may have unasked (CUDA C Programming Guide)
        head = re.search(rf"\.entry {name}\((.*?)\)\s*\.(?:req|max)ntid (\d+)", ptx, re.DOTALL)
        assert head is not None
        assert [launch["block_x"], launch["block_y"], launch["block_z"]] == [int(head[2]), 1, 1]
        assert re.findall(r"\.param \.(\w+)", head[1]) == ["u64"] * 4 + ["u32"] * len(stage["scalars"]) + ["u64"]
        assert "cp.async" in ptx  # loads that do not wait
        if capability == (9, 0):
            (width,) = {int(width) for width in re.findall(r"wgmma\.mma_async\S*\.m64n(\d+)k16", ptx)}
            assert own * width == dim  # channels are the columns of Hopper's product
