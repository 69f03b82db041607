"""What this machine can run, why not the rest, and the command that mends it."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigrl_deploy.cache_folder import ENVIRONMENT, cached_files
from sigrl_deploy.errors import SigRLError
from sigrl_deploy.gpu import OLDEST_FUSED, Gpu, NoGpuError, gpu_at_hand
from sigrl_deploy.tensorrt.key import EngineRecord, version_tuple
from sigrl_deploy.tensorrt.library import installed, open_library
from sigrl_deploy.version import version_of

if TYPE_CHECKING:
    from sigrl_deploy.bundle import Bundle

_PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13"}
_CUDA_LIBRARIES = {"libcudart": (13, 12), "libcublasLt": (13, 12), "libcudnn": (9,)}  # and their major versions


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
    return Report(list(_backends(gpu)), findings)


def _gpu() -> tuple[Gpu | None, Finding]:
    try:
        gpu = gpu_at_hand()
    except NoGpuError as error:
        return None, Finding(
            "GPU", False, f"{error}; on a CPU everything runs without one", "nvidia-smi  # says what the driver sees"
        )
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
    yield _backend("torch", ["torch", "triton", "safetensors"], "'.[export]'", None if _torch_runs() else missing_gpu)
    library = next(iter(installed()), "tensorrt")
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
    module = _imported("onnxruntime")
    if hasattr(module, "preload_dlls"):
        module.preload_dlls()  # as the engine does
    missing = [f"{name}.so" for name, majors in _CUDA_LIBRARIES.items() if not any(_loads(f"{name}.so.{m}") for m in majors)]
    if missing:
        command = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        return [Finding("CUDA and cuDNN", False, f"{', '.join(missing)} cannot be loaded; ONNX Runtime needs them", command)]
    return [Finding("CUDA and cuDNN", True, "their libraries load")]


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
        return True
    except OSError:
        return False


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
    found += f", which driver {gpu.driver} (CUDA {gpu.cuda}) does not run; update the driver, or take a torch for that CUDA"
    return Finding("PyTorch", False, found)


def _tensorrt() -> Iterator[Finding]:
    if not installed():
        yield Finding("TensorRT", False, "is not installed", "pip install '.[tensorrt]'  # or '.[tensorrt-rtx]'")
    for name in installed():
        try:
            yield Finding(name, True, open_library(name).version)
        except SigRLError as error:
            extra = name.replace("_", "-")
            yield Finding(name, False, str(error), f"pip install --force-reinstall '.[{extra}]'")


def _caches(folder: Path, gpu: Gpu | None) -> Iterator[Finding]:
    size, labels = "empty", 0
    if folder.is_dir():
        size = f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB"
        labels = sum(len(file.labels) for file in cached_files(folder) if file.kind == "labels")
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        yield Finding("cache", True, f"{folder}: {size}, {labels} labels encoded")
    else:
        yield Finding("cache", False, f"{folder}: cannot be written", f"export {ENVIRONMENT}=$HOME/sigrl-cache")
    if gpu is None:
        return
    if version_tuple(gpu.compute_capability) < OLDEST_FUSED:
        yield Finding("fused kernels", False, f"{gpu.name} is too old for them; none of them runs")
        return
    known = _tuned(folder / "kernels" / "tuning.json")
    here = any(key.startswith(f"{gpu.name},") and f"driver {gpu.driver}," in key for key in known)
    state = (
        "compiled and tuned for this GPU and driver"
        if here
        else "not compiled for this GPU yet; the first run does it, and says so"
    )
    yield Finding("fused kernels", True, state)


def _tuned(path: Path) -> list[str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return list(values["results"])
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _bundle(path: Path, gpu: Gpu | None) -> Iterator[Finding]:
    """Whether a bundle is whole, and of each of its TensorRT engines what it is for, whether it is whole, and runs here."""
    from sigrl_deploy.bundle import Bundle

    try:
        bundle = Bundle(path)
    except SigRLError as error:
        yield Finding(f"bundle {path}", False, str(error))
        return
    yield Finding(f"bundle {path}", True, f"whole; {', '.join(precision.value for precision in bundle.manifest.variants)}")
    command = f"sigrl-deploy export tensorrt {shlex.quote(str(path))}"
    if not bundle.manifest.engines:
        yield Finding("engines", True, f"none; {command} builds them")
    for record in bundle.manifest.engines:
        yield _engine(bundle, record, gpu, command)


def _engine(bundle: Bundle, record: EngineRecord, gpu: Gpu | None, command: str) -> Finding:
    from sigrl_deploy.tensorrt.find import damage

    key, variant = record.key, bundle.manifest.variants.get(record.key.precision)
    place = key.gpu or f"compute capability {' '.join(key.compute_capabilities)}"
    about = f"for {place}, {key.library}, batch {key.profile.batch}, labels {key.profile.labels}"
    name = None if variant is None else variant.visual if key.graph == "visual" else variant.text
    unfit = damage(bundle, record)
    if name is None or bundle.manifest.files.get(name) != key.onnx:
        unfit.append(f"it was built from another {key.graph} graph")
    elif gpu is not None:
        # The library that built it, as far as it is here: others may be installed beside it.
        here = [f"{library} {version_of(_PACKAGES[library])}" for library in installed()]
        full_name = key.library if key.library in here else (here or [key.library])[0]
        unfit += key.unfit(key.onnx, full_name, gpu)
    found = "; ".join([about, *(unfit or ["whole; not tried, since there is no GPU" if gpu is None else "runs here"])])
    return Finding(record.file, not unfit, found, command if unfit else None)
