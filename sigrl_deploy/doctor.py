"""What this machine can run, why not the rest, and the command that mends it."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sigrl_deploy.cache import cached_files
from sigrl_deploy.errors import SigRLError
from sigrl_deploy.files import DamagedFileError
from sigrl_deploy.gpu import Gpu, NoGpuError, gpu_at_hand

OLDEST_FUSED = (8, 0)  # compute capability that the fused kernels need
_CUDA_LIBRARIES = ("libcudart.so", "libcublasLt.so", "libcudnn.so")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: whether it is fine, what was found, and the command that mends it, where it is not."""

    about: str
    fine: bool
    found: str
    command: str | None = None


@dataclass(frozen=True)
class Report:
    """`backends` says of each `--backend` whether it runs here; `findings` is everything else."""

    backends: list[Finding]
    findings: list[Finding]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def to_text(self) -> str:
        """A line a finding, and below it the command that mends it."""
        lines = []
        for title, findings in (("Backends", self.backends), ("Found", self.findings)):
            lines.append(title)
            for finding in findings:
                lines.append(f"  {'ok' if finding.fine else '--'}  {finding.about}: {finding.found}")
                if finding.command:
                    lines.append(f"        {finding.command}")
        return "\n".join(lines) + "\n"


def examine(cache: Path, bundle: Path | None = None) -> Report:
    """Look at this machine, and at a bundle's TensorRT engines where one is given. Imports what it looks at, torch too."""
    gpu, gpu_finding = _gpu()
    findings = [gpu_finding, _onnxruntime_packages(), *_cuda_libraries(gpu), _torch(gpu), *_tensorrt(), *_caches(cache, gpu)]
    if bundle is not None:
        findings += _bundle(bundle, gpu)
    return Report(list(_backends(gpu)), [finding for finding in findings if finding is not None])


def _gpu() -> tuple[Gpu | None, Finding]:
    try:
        gpu = gpu_at_hand()
    except NoGpuError as error:
        advice = "docker run --gpus all …" if os.path.exists("/.dockerenv") else "nvidia-smi"
        return None, Finding("GPU", False, f"{error}; on a CPU everything runs without one", advice)
    size = f"{gpu.memory / 1e9:.0f} GB"
    found = f"{gpu.name}, compute capability {gpu.compute_capability}, {size}, driver {gpu.driver}, which runs CUDA {gpu.cuda}"
    return gpu, Finding("GPU", True, found)


def _backends(gpu: Gpu | None) -> Iterator[Finding]:
    providers = _providers()
    for name, provider in (("onnxruntime", "CPU"), ("onnxruntime --device cuda", "CUDA"), ("onnxruntime-tensorrt", "Tensorrt")):
        if isinstance(providers, str):
            yield Finding(name, False, f"onnxruntime does not load ({providers})", "pip install --force-reinstall onnxruntime")
        elif provider != "CPU" and gpu is None:
            yield Finding(name, False, "there is no GPU")
        elif f"{provider}ExecutionProvider" not in providers:
            yield Finding(name, False, f"this onnxruntime has no {provider} provider", _GPU_PACKAGE)
        else:
            yield Finding(name, True, f"onnxruntime {version_of('onnxruntime') or version_of('onnxruntime-gpu')}")
    yield _backend("openvino", ["openvino", "onnx"], "'.[openvino]'", None)
    missing_gpu = None if gpu else "there is no GPU (on the CPU it runs unfused)"
    yield _backend("torch", ["torch", "triton", "open_clip"], "'.[export]'", None if _torch_runs() else missing_gpu)
    library = next((name for name in ("tensorrt", "tensorrt_rtx") if find_spec(name)), "tensorrt")
    extra = "'.[tensorrt-rtx]'" if library == "tensorrt_rtx" else "'.[tensorrt]'"
    yield _backend(
        "tensorrt", [library, "torch", "triton", "onnx"], extra, None if gpu else "there is no GPU; engines can be built"
    )


_GPU_PACKAGE = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu  # both share a folder: one of them only"
)


def _backend(name: str, modules: list[str], extra: str, hindrance: str | None) -> Finding:
    for module in modules:
        if find_spec(module) is None:
            return Finding(name, False, f"{module} is not installed", f"pip install {extra}")
    if hindrance:
        return Finding(name, False, hindrance)
    return Finding(name, True, f"{modules[0]} {version_of(modules[0]) or 'is installed'}")


def version_of(package: str) -> str | None:
    """The version of an installed distribution."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _providers() -> list[str] | str:
    """ONNX Runtime's providers, or why it does not load."""
    module = _imported("onnxruntime")
    return module if isinstance(module, str) else list(module.get_available_providers())


def _imported(name: str) -> Any | str:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a broken installation may raise anything
        return " ".join(str(error).split()) or type(error).__name__


def _onnxruntime_packages() -> Finding:
    installed = [name for name in ("onnxruntime", "onnxruntime-gpu") if version_of(name)]
    if len(installed) == 2:
        found = "onnxruntime and onnxruntime-gpu are both installed and share a folder, so that either may be broken"
        return Finding("ONNX Runtime", False, found, _GPU_PACKAGE)
    if not installed:
        return Finding("ONNX Runtime", False, "is not installed", "pip install onnxruntime")
    return Finding("ONNX Runtime", True, f"{installed[0]} {version_of(installed[0])}")


def _cuda_libraries(gpu: Gpu | None) -> list[Finding]:
    """What ONNX Runtime's CUDA provider loads; torch and TensorRT bring their own."""
    if gpu is None or not version_of("onnxruntime-gpu"):
        return []
    missing = [name for name in _CUDA_LIBRARIES if not _loads(name)]
    if missing:
        command = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        return [Finding("CUDA and cuDNN", False, f"{', '.join(missing)} cannot be loaded; ONNX Runtime needs them", command)]
    return [Finding("CUDA and cuDNN", True, "their libraries load")]


def _loads(name: str) -> bool:
    """Whether the system finds a library, or a package of NVIDIA's holds it."""
    for major in ("", ".12", ".13", ".9"):
        try:
            ctypes.CDLL(name + major)
            return True
        except OSError:
            continue
    return any(Path(folder).glob(f"nvidia/*/lib/{name}*") for folder in sys.path if folder)


def _torch_runs() -> bool:
    torch = _imported("torch") if find_spec("torch") else "not installed"
    return not isinstance(torch, str) and torch.cuda.is_available()


def _torch(gpu: Gpu | None) -> Finding:
    command = "pip install '.[export]'"
    if find_spec("torch") is None:
        return Finding("PyTorch", False, "is not installed; export, training and the fused kernels need it", command)
    torch = _imported("torch")
    if isinstance(torch, str):
        return Finding("PyTorch", False, f"does not load ({torch})", f"{command} --force-reinstall")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
    found = f"{torch.__version__}, built for {built}"
    if gpu is None or torch.cuda.is_available():
        return Finding("PyTorch", True, found)
    if not torch.version.cuda:
        return Finding("PyTorch", False, f"{found}, though there is a GPU", f"{command} --force-reinstall")
    found += f", which driver {gpu.driver} (CUDA {gpu.cuda}) does not run"
    return Finding("PyTorch", False, found, "update NVIDIA's driver, or install a torch built for an older CUDA")


def _tensorrt() -> Iterator[Finding]:
    from sigrl_deploy.tensorrt.library import installed, open_library

    if not installed():
        yield Finding("TensorRT", False, "is not installed", "pip install '.[tensorrt]'  # or '.[tensorrt-rtx]'")
    for name in installed():
        try:
            yield Finding(name, True, open_library(name).version)
        except SigRLError as error:
            yield Finding(name, False, str(error), f"pip install --force-reinstall {name.replace('_', '-')}")


def _caches(folder: Path, gpu: Gpu | None) -> Iterator[Finding]:
    writable = os.access(folder if folder.exists() else folder.parent, os.W_OK)
    labels = [file for file in cached_files(folder) if file.kind == "labels"] if folder.is_dir() else []
    size = (
        f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB"
        if folder.is_dir()
        else "empty"
    )
    found = f"{folder}: {size}, {sum(len(file.labels) for file in labels)} labels encoded"
    command = None if writable else f"SIGRL_DEPLOY_CACHE=/another/folder  # {folder} cannot be written"
    yield Finding("cache", writable, found, command)
    if gpu is None:
        return
    if tuple(map(int, gpu.compute_capability.split("."))) < OLDEST_FUSED:
        yield Finding("fused kernels", False, f"{gpu.name} is too old for them; PyTorch's own run instead")
        return
    known = _tuned(folder / "kernels" / "tuning.json")
    here = [key for key in known if key.startswith(f"{gpu.name},") and f"driver {gpu.driver}," in key]
    if here:
        yield Finding("fused kernels", True, "compiled and tuned for this GPU and driver")
    else:
        yield Finding(
            "fused kernels", True, "not compiled for this GPU yet; the first run with --backend torch does it and says so"
        )


def _tuned(path: Path) -> list[str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return list(values.get("results", values)) if isinstance(values, dict) else []
    except (OSError, ValueError, DamagedFileError):
        return []


def _bundle(path: Path, gpu: Gpu | None) -> Iterator[Finding]:
    """Of each of a bundle's TensorRT engines, whether it runs here."""
    from sigrl_deploy.bundle import Bundle
    from sigrl_deploy.tensorrt.library import installed, open_library

    bundle = Bundle(path)
    yield Finding(f"bundle {path}", True, f"whole; {', '.join(precision.value for precision in bundle.manifest.variants)}")
    command = f"sigrl-deploy export tensorrt {path}"
    if not bundle.manifest.engines:
        yield Finding("engines", True, f"none; {command} builds them")
    for record in bundle.manifest.engines:
        variant = bundle.manifest.variants[record.key.precision]
        name = variant.visual if record.key.graph == "visual" else variant.text
        if gpu is None or not installed():
            yield Finding(record.file, False, "there is no GPU" if gpu is None else "TensorRT is not installed")
            continue
        unfit = record.key.unfit(bundle.manifest.files[name or ""], open_library().full_name, gpu)
        yield Finding(record.file, not unfit, "; ".join(unfit) or "runs here", command if unfit else None)
