"""The machine: what it is, how fast its matrix products and copies are, and the least time that a picture can take on it.

python -m benchmarks.machine cpu       # or cuda; prints JSON
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sigrl_deploy.config import ModelConfig, Precision
from sigrl_deploy.kernels.cpu.library import find
from sigrl_deploy.machine import cpus
from sigrl_deploy.version import version_of

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "triton", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "open_clip_torch", "numpy")
REPEATS = 5
SLOW = 10.0  # times slower than fp32, in a product an eighth as large each way


def cores() -> int:
    return cpus.threads()


def describe(device: str) -> dict[str, Any]:
    """Hardware, versions, date, and the measured rates that `floor_ms` takes."""
    return identity(device) | {"gemm_gflops": gemm_gflops(device), "copy_gb_per_s": copy_gb_per_s(device)}


def identity(device: str) -> dict[str, Any]:
    """Hardware, versions and date."""
    return {
        "cpu": _processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "versions": {name: found for name in PACKAGES if (found := version_of(name))},
        **({"cpu_kernel": _kernel()} if device == "cpu" else {"gpu": _gpu()}),
    }


def _kernel() -> str:
    """The instruction set of SVFR's native kernel, "none" where it does not run."""
    chosen = find().chosen
    return "none" if chosen is None else chosen.full_name


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _gpu() -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(0)
    capability = f"{found.major}.{found.minor}"
    return {"name": found.name, "capability": capability, "memory_bytes": found.total_memory, "cuda": torch.version.cuda}


def gemm_gflops(device: str) -> dict[str, float]:
    """The best of several square products by precision, in GFLOP/s (int8: billions of operations/s).

    On a CPU those of PyTorch and ONNX Runtime: neither is the faster everywhere.
    """
    import torch

    size = 2048 if device == "cpu" else 8192
    torch.set_num_threads(cores())
    rates: dict[str, float] = {}
    for name, dtype in (("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        if device == "cpu" and name == "fp16":
            continue  # no CPU backend computes in it
        # CPUs without instructions for bf16 take a hundred times as long for it.
        slow = device == "cpu" and name != "fp32" and _product_gflops(size // 8, dtype, device) < rates["fp32"] / SLOW
        rates[name] = _product_gflops(size // 8 if slow else size, dtype, device)
    if device == "cpu":
        rates["fp32"] = max(rates["fp32"], *(_onnx_gflops(each, "fp32") for each in (size, size // 4)))
        rates["int8"] = max(_onnx_gflops(each, "int8") for each in (size, size // 4))
    elif torch.cuda.get_device_capability() >= (8, 0):
        a = torch.randn(size, size, device=device)
        torch.set_float32_matmul_precision("high")
        rates["tf32"] = 2 * size**3 / _best_seconds(lambda: a @ a, device) / 1e9
        torch.set_float32_matmul_precision("highest")
        rates["fp32"] = max(rates["fp32"], rates["tf32"] / 3)  # three of these make one of fp32, which the kernels do
    return {name: round(rate, 1) for name, rate in rates.items()}


def _product_gflops(size: int, dtype: torch.dtype, device: str) -> float:
    import torch

    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / _best_seconds(lambda: a @ a, device) / 1e9


def _onnx_gflops(size: int, precision: str) -> float:
    """ONNX Runtime's product, of floats or of unsigned by signed integers."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    rng, whole = np.random.default_rng(0), precision == "int8"
    right = rng.integers(-63, 64, (size, size), np.int8) if whole else rng.standard_normal((size, size), np.float32)
    left = rng.integers(0, 255, (size, size), np.uint8) if whole else rng.standard_normal((size, size), np.float32)
    types = (TensorProto.UINT8, TensorProto.INT32) if whole else (TensorProto.FLOAT, TensorProto.FLOAT)
    given, made = (helper.make_tensor_value_info(name, kind, [size, size]) for name, kind in zip("ac", types, strict=True))
    node = helper.make_node("MatMulInteger" if whole else "MatMul", ["a", "b"], ["c"])
    graph = helper.make_graph([node], "product", [given], [made], [numpy_helper.from_array(right, "b")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = cores()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return 2 * size**3 / _best_seconds(lambda: session.run(None, {"a": left}), "cpu") / 1e9


def copy_gb_per_s(device: str) -> float:
    """Bytes read and written by a copy of 256 MiB (4 GiB on a GPU), per second, in GB."""
    import torch

    count = 2**26 if device == "cpu" else 2**30
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    return round(2 * 4 * count / _best_seconds(lambda: target.copy_(source), device) / 1e9, 1)


def _best_seconds(run: Callable[[], Any], device: str) -> float:
    import torch

    times = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def vit_flop(config: ModelConfig) -> float:
    """FLOP of the visual encoder for one picture."""
    vision, patches = config.vit, config.vit.grid**2
    tokens, width = patches + 1, vision.width
    block = 2 * tokens * (4 + 2 * vision.mlp_ratio) * width**2 + 4 * tokens**2 * width
    return vision.layers * block + 2 * patches * 3 * vision.patch_size**2 * width + 2 * tokens * width * config.embed_dim


def svfr_flop(config: ModelConfig, labels: int) -> float:
    """FLOP of the two stages' products for one picture: 2·2·P·C·D²."""
    return 4 * config.vision.grid**2 * labels * config.embed_dim**2


def rest_flop(config: ModelConfig, labels: int) -> float:
    """FLOP between the stages (three products with [D, D]) and of the match, for one picture."""
    dim = config.embed_dim
    return 6 * labels * dim**2 + 2 * (config.vision.grid**2 + 1) * labels * dim


def least_bytes(config: ModelConfig, labels: int, batch: int, itemsize: int) -> float:
    """Bytes that no implementation avoids: each weight, picture, label row and score once, S and V written and read."""
    vision, dim = config.vit, config.embed_dim
    weights = vision.layers * (4 + 2 * vision.mlp_ratio) * vision.width**2 + 3 * dim**2
    rows = 2 * labels * dim
    per_picture = 3 * vision.image_size**2 * 4 + labels * 4 + 4 * labels * dim * 4
    return (weights + rows) * itemsize + batch * per_picture


def floor_ms(config: ModelConfig, labels: int, batch: int, precision: Precision, machine: dict[str, Any]) -> float:
    """The least time for a batch: its products at the machine's measured rates, or its least bytes at its copy rate."""
    rates = machine["gemm_gflops"]
    own = {"int8": "fp32", "int8x3": "fp32", "int8-all": "int8"}.get(precision.value, precision.value)
    plain = max(rates.get(own, 0), rates["fp32"])  # what has no instructions of its own can be computed in fp32
    stages = rates["int8"] if precision.is_int8 else plain
    tower = max(rates["int8"] / 3, plain) if precision is Precision.INT8X3 else plain
    flop = vit_flop(config) / tower + rest_flop(config, labels) / plain + svfr_flop(config, labels) / stages
    itemsize = {"fp32": 4, "int8": 4, "int8-all": 1}.get(precision.value, 2)
    moved = least_bytes(config, labels, batch, itemsize) / machine["copy_gb_per_s"]
    return max(batch * flop, moved) / 1e6


if __name__ == "__main__":
    print(json.dumps(describe(sys.argv[1])))
