"""Which engine is taken, of every kind of machine: nothing is opened, and no GPU is needed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from sigrl_deploy.architectures import Contract
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import Manifest, Variant
from sigrl_deploy.config import FUSED, Arch, Backend, Device, Precision, runs
from sigrl_deploy.engines.choosing import Choice, choose
from sigrl_deploy.engines.engine import UnavailableError
from sigrl_deploy.engines.opening import open_engine
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import BundleError, UsageError
from sigrl_deploy.pictures.preprocess import Preprocess
from tests.support.refusals import assert_refused

NO_GPU = "there is no GPU: NVIDIA's driver is not there"


@dataclass
class Described:
    """A machine: the packages that it lacks, and the backends that have a GPU there."""

    lacks: tuple[str, ...] = ()
    on_gpu: tuple[Backend, ...] = ()
    new: bool = True

    def has_package(self, name: str) -> bool:
        return name not in self.lacks

    def no_gpu(self, backend: Backend) -> str:
        return "" if backend in self.on_gpu else NO_GPU

    def runs_kernels(self) -> bool:
        return self.new


NOTHING = Described(lacks=("torch", "triton", "openvino", "onnx"))
LAPTOP = Described()
SERVER = Described(on_gpu=tuple(Backend))
TORCH_ONLY = Described(on_gpu=(Backend.TORCH,))


class Held(Bundle):
    """A bundle of some precisions without its files."""

    def __init__(self, *precisions: Precision, weights: bool = True, arch: Arch = Arch.SIGRL) -> None:
        variants = {
            p: Variant("visual.onnx", "text.onnx", "weights" if weights and not p.is_int8 else None) for p in precisions
        }
        preprocess = Preprocess.for_contract(Contract.ZERO_SHOT, 224)
        self.path = Path("held")
        files = dict.fromkeys(("tokenizer.json", "visual.onnx", "text.onnx", "weights"), "0" * 64)
        self.manifest = Manifest(arch, 512, 224, 16, 16, "{label}", 77, preprocess, variants, files, {}, {}, "")


FP32, FP16, BF16, INT8 = Precision.FP32, Precision.FP16, Precision.BF16, Precision.INT8


def chosen(bundle: Bundle, machine: Described, backend: str = "auto", device: str = "auto", **options: object) -> Choice:
    return choose(bundle, EngineOptions(Backend(backend), Device(device), **options), machine)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bundle", "machine", "asked", "expected"),
    [
        (Held(FP32), NOTHING, {}, ("onnxruntime", "cpu", FP32)),
        (Held(FP32), LAPTOP, {}, ("onnxruntime", "cpu", FP32)),
        (Held(FP32), SERVER, {}, ("torch", "cuda", FP32)),
        (Held(FP32), TORCH_ONLY, {}, ("torch", "cuda", FP32)),
        (Held(FP32), SERVER, {"device": "cpu"}, ("onnxruntime", "cpu", FP32)),
        (Held(FP32, weights=False), SERVER, {}, ("onnxruntime", "cuda", FP32)),
        (Held(FP32, weights=False), TORCH_ONLY, {}, ("onnxruntime", "cpu", FP32)),
        (Held(FP32), Described(lacks=("triton",), on_gpu=tuple(Backend)), {}, ("onnxruntime", "cuda", FP32)),
        # A precision that the preferred backend, or device, does not run.
        (Held(INT8, FP32), SERVER, {}, ("torch", "cuda", FP32)),
        (Held(INT8, FP32), SERVER, {"precision": INT8}, ("onnxruntime", "cpu", INT8)),
        (Held(INT8), SERVER, {}, ("onnxruntime", "cpu", INT8)),
        (Held(BF16, FP16), LAPTOP, {}, ("onnxruntime", "cpu", FP16)),
        (Held(BF16, FP16, weights=False), SERVER, {}, ("onnxruntime", "cuda", BF16)),
        (Held(BF16), LAPTOP, {"backend": "openvino"}, ("openvino", "cpu", BF16)),
        (Held(INT8, BF16), LAPTOP, {"backend": "torch"}, ("torch", "cpu", BF16)),
        (Held(INT8, FP16), SERVER, {"backend": "tensorrt"}, ("tensorrt", "cuda", FP16)),
        (Held(FP16), SERVER, {"backend": "onnxruntime-tensorrt"}, ("onnxruntime-tensorrt", "cuda", FP16)),
    ],
)
def test_the_best_that_runs_is_taken(
    bundle: Bundle, machine: Described, asked: dict[str, object], expected: tuple[str, str, Precision]
) -> None:
    choice = chosen(bundle, machine, **asked)  # type: ignore[arg-type]
    assert (choice.backend.value, choice.device.value, choice.precision) == expected


@pytest.mark.parametrize(
    ("bundle", "machine", "asked", "argument"),
    [
        (Held(FP32), LAPTOP, {"device": "cuda"}, "device"),
        (Held(FP32), LAPTOP, {"backend": "torch", "device": "cuda"}, "device"),
        (Held(FP32), SERVER, {"backend": "openvino", "device": "cuda"}, "device"),
        (Held(FP32), SERVER, {"backend": "tensorrt", "device": "cpu"}, "device"),
        (Held(FP32), LAPTOP, {"backend": "tensorrt"}, "backend"),
        (Held(FP32), LAPTOP, {"backend": "onnxruntime-tensorrt"}, "backend"),
        (Held(FP32), NOTHING, {"backend": "torch"}, "backend"),
        (Held(FP32), NOTHING, {"backend": "openvino"}, "backend"),
        (Held(FP32, weights=False), LAPTOP, {"backend": "torch"}, "backend"),
        (Held(INT8, FP32), LAPTOP, {"backend": "openvino", "precision": INT8}, "precision"),
        (Held(BF16), LAPTOP, {"precision": BF16}, "precision"),
        (Held(INT8), SERVER, {"device": "cuda", "precision": INT8}, "precision"),
    ],
)
def test_what_cannot_be_is_refused_and_names_the_option(
    bundle: Bundle, machine: Described, asked: dict[str, object], argument: str
) -> None:
    with pytest.raises(UsageError) as refused:
        chosen(bundle, machine, **asked)  # type: ignore[arg-type]
    assert refused.value.argument == argument


@pytest.mark.parametrize(
    ("held", "asked"),
    [(BF16, {}), (INT8, {"backend": "openvino"}), (INT8, {"device": "cuda"}), (INT8, {"backend": "tensorrt"})],
)
def test_a_bundle_of_which_nothing_runs_is_refused(held: Precision, asked: dict[str, str]) -> None:
    choosing = partial(chosen, Held(held, weights=False), LAPTOP if held is BF16 else SERVER, **asked)
    assert_refused(choosing, BundleError, "held: ", held.value, "`backend='o")


def test_advice_names_a_backend_that_does_run_it() -> None:
    on_laptop = partial(chosen, Held(BF16), LAPTOP, "onnxruntime", "cpu", precision=BF16)
    assert_refused(on_laptop, UsageError, "`backend='torch'` or `backend='openvino'`")
    on_server = partial(chosen, Held(INT8), SERVER, "torch", "cuda", precision=INT8)
    assert_refused(on_server, UsageError, "`backend='onnxruntime'` with `device='cpu'`")


@pytest.mark.parametrize(
    ("backend", "unfused", "kernels"),
    [
        ("torch", (), FUSED),
        ("torch", ("gmc", "tower"), ("svfr", "match")),
        ("onnxruntime", (), ("svfr", "match")),
        ("onnxruntime", ("match",), ("svfr",)),
        ("onnxruntime", ("svfr",), ()),
        ("tensorrt", ("svfr",), ("match",)),
        ("onnxruntime-tensorrt", (), ()),
    ],
)
def test_kernels_run_on_a_gpu_unless_they_are_switched_off(
    backend: str, unfused: tuple[str, ...], kernels: tuple[str, ...]
) -> None:
    assert chosen(Held(FP32), SERVER, backend, unfused=frozenset(unfused)).kernels == frozenset(kernels)


def test_no_kernels_run_where_they_cannot() -> None:
    assert not chosen(Held(FP32), LAPTOP, "torch").kernels
    assert not chosen(Held(FP32), Described(on_gpu=tuple(Backend), new=False), "torch").kernels
    # Behind ONNX Runtime's tower they are for SVFR, and run in PyTorch on the same GPU.
    assert not chosen(Held(FP32, arch=Arch.CLIP), SERVER, "onnxruntime").kernels
    assert not chosen(Held(FP32), Described(lacks=("triton",), on_gpu=tuple(Backend)), "onnxruntime").kernels
    assert not chosen(Held(FP32), Described(on_gpu=(Backend.ONNXRUNTIME,)), "onnxruntime").kernels


@pytest.mark.parametrize(
    ("backend", "device", "op"),
    [
        ("onnxruntime", "cuda", "gmc"),
        ("onnxruntime", "cuda", "tower"),
        ("onnxruntime", "cpu", "match"),
        ("tensorrt", "cuda", "tower"),
        ("torch", "cpu", "svfr"),
        ("openvino", "cpu", "match"),
    ],
)
def test_only_a_kernel_can_be_switched_off(backend: str, device: str, op: str) -> None:
    with pytest.raises(UsageError) as refused:
        chosen(Held(FP32), SERVER, backend, device, unfused=frozenset({op}))
    assert (refused.value.argument, refused.value.value) == ("unfused", op)


def test_svfr_runs_as_a_kernel_on_a_cpu_unless_it_is_switched_off() -> None:
    assert chosen(Held(FP32), LAPTOP).kernels == {"svfr"}
    assert not chosen(Held(FP32), LAPTOP, unfused=frozenset({"svfr"})).kernels
    assert not chosen(Held(FP32, arch=Arch.MKT), LAPTOP).kernels
    assert not chosen(Held(FP32), LAPTOP, "openvino").kernels


def test_it_says_why_a_model_is_not_on_a_gpu() -> None:
    assert chosen(Held(FP32), LAPTOP).reason == NO_GPU
    assert chosen(Held(FP32), LAPTOP, device="cpu").reason == ""
    assert chosen(Held(FP32), SERVER).reason == ""
    assert "int8" in chosen(Held(INT8), SERVER).reason


def test_an_engine_that_does_not_start_is_an_error_only_where_its_device_was_asked_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime's CUDA provider may be installed and still not start, which shows when a graph is opened."""

    def fails(*arguments: object) -> None:
        raise UnavailableError("the CUDA provider did not start", "check it", argument="device", value="cuda")

    monkeypatch.setattr("sigrl_deploy.engines.opening.ThisMachine", lambda: Described(on_gpu=tuple(Backend)))
    monkeypatch.setattr("sigrl_deploy.engines.onnxruntime_fused.OnnxRuntimeFusedEngine", fails)
    engine = open_engine(Bundle(bundle), EngineOptions())
    assert engine.device == "cpu"
    assert "the CUDA provider did not start" in engine.description
    with pytest.raises(UnavailableError):
        open_engine(Bundle(bundle), EngineOptions(device=Device.CUDA))


def test_every_precision_runs_somewhere_without_a_gpu() -> None:
    """So that a bundle in any precision can be checked on any machine."""
    for precision in Precision:
        assert any(runs(backend, precision, Device.CPU) for backend in Backend.named()), precision
