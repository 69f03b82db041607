"""What this machine can run, why not the rest, and the command that fixes it."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import platform
import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigrl_deploy.bundle.engine_records import EngineRecord, version_tuple
from sigrl_deploy.config import Backend, runs
from sigrl_deploy.errors import SigRLError, UsageError
from sigrl_deploy.extras import install_command, package_of
from sigrl_deploy.kernels.cpu.library import VARIABLE, find, is_built
from sigrl_deploy.machine.cache_folder import ENVIRONMENT, cached_files, require_private
from sigrl_deploy.machine.gpu import OLDEST_FUSED, Gpu, NoGpuError, gpu_at_hand, has_driver
from sigrl_deploy.tensorrt.library import installed, open_library
from sigrl_deploy.version import version_of

if TYPE_CHECKING:
    from sigrl_deploy.bundle.bundle import Bundle

_PACKAGES = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx-cu13"}
# Instructions as Linux calls them, on x86 and on ARM, best first.
_FAST = {
    "int8": ("amx_int8", "avx512_vnni", "avx_vnni", "i8mm", "asimddp"),
    "bf16": ("amx_bf16", "avx512_bf16", "bf16"),
}
# By extra: what needs it, and what it brings.
_EXTRAS = {
    "export": (
        "export, demo and evaluate --checkpoint",
        ("torch", "torchvision", "open_clip", "onnx", "onnxscript", "safetensors", "jinja2"),
    ),
    "evaluate": ("evaluate and calibrate", ("sklearn",)),
    "plots": ("calibrate --plot-precision and --plot-reliability", ("matplotlib",)),
    "serve": ("serve", ("fastapi", "uvicorn", "httptools", "python_multipart", "prometheus_client")),
    "train": ("train", ("lightning_fabric", "sklearn", "h5py")),
}
_TENSORRT = f"{install_command('tensorrt-rtx')}  # or the extra tensorrt, where pip finds NVIDIA's index"
BUNDLE = "bundle"
_BUILD = "apt-get install g++, or your system's C++ compiler; then install this package from its source again"
_CUDA_LIBRARIES = {"libcudart": (13, 12), "libcublasLt": (13, 12), "libcudnn": (9,)}  # and their major versions


@dataclass(frozen=True)
class Finding:
    """One thing that was checked: whether it is fine, what was found, and the command that fixes it where it is not."""

    about: str
    fine: bool
    found: str
    command: str | None = None


@dataclass(frozen=True)
class Report:
    """`backends` says which backends run here; `findings` is everything else."""

    backends: list[Finding]
    findings: list[Finding]

    @property
    def bundle_is_fine(self) -> bool:
        """Whether the bundle that was asked about, if any, can be used."""
        return all(finding.fine for finding in self.findings if finding.about == BUNDLE)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    def to_text(self) -> str:
        """One line per finding, and below it the command that fixes it. Equal findings share a line."""
        lines = []
        for title, findings in (("Backends", self.backends), ("Found", self.findings)):
            lines.append(title)
            alike: dict[tuple[bool, str, str | None], list[str]] = {}
            for finding in findings:
                alike.setdefault((finding.fine, finding.found, finding.command), []).append(finding.about)
            for (fine, found, command), abouts in alike.items():
                lines.append(f"  {'ok' if fine else '--'}  {', '.join(abouts)}: {found}")
                if command:
                    lines.append(f"        {command}")
        return "\n".join(lines) + "\n"


def examine(cache: Path, bundle: Path | None = None) -> Report:
    """Check this machine, and a bundle with its TensorRT engines where one is given. Imports what it checks, torch included.

    What only a GPU needs is checked only where there is one.
    """
    gpu, gpu_finding = _gpu()
    findings = [_cpu(), _cpu_kernel(), gpu_finding, _onnxruntime_packages(), *_cuda_libraries(gpu), *_torch(gpu), *_extras()]
    findings += [*_tensorrt(gpu), *_caches(cache, gpu)]
    if bundle is not None:
        findings += _bundle(bundle, gpu)
    return Report(list(_backends(gpu)), findings)


def _cpu() -> Finding:
    """Its name, the cores that this process may use, and its instructions for products in 8 bits and in bf16."""
    described = _cpuinfo()
    name = described.get("model name") or platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = f"{name}, {cores} core{'' if cores == 1 else 's'} for this process"
    flags = set((described.get("flags") or described.get("Features") or "").split())
    if flags:
        for what, known in _FAST.items():
            has = [flag for flag in known if flag in flags]
            found += f"; {what} products: {', '.join(has) or 'no instructions for them, so they may not be faster than fp32'}"
    return Finding("CPU", True, found)


def _cpu_kernel() -> Finding:
    """Whether SVFR runs in its native kernel, with which instruction set, and why."""
    try:
        found = find()
    except UsageError as error:
        return Finding("SVFR on the CPU", False, error.problem, f"unset {VARIABLE}")
    if found.chosen is not None:
        return Finding("SVFR on the CPU", True, f"in a native kernel with {found.chosen.full_name}, {found.reason}")
    # A choice, or a CPU that has no kernel, is no fault.
    fine = is_built() or platform.machine().lower() not in ("x86_64", "amd64", "aarch64", "arm64")
    return Finding(
        "SVFR on the CPU",
        fine,
        f"as an ONNX function, which is slower with many labels: {found.reason}",
        None if fine else _BUILD,
    )


def _cpuinfo() -> dict[str, str]:
    """What Linux says about the first core; {} elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}


def _gpu() -> tuple[Gpu | None, Finding]:
    try:
        gpu = gpu_at_hand()
    except NoGpuError as error:
        # A card without a working driver can be fixed. Without a card, nothing is wrong.
        command = "nvidia-smi  # shows what the driver sees" if _has_card() else None
        advice = "" if has_driver() else "; to use a GPU, install it and then the extra gpu, tensorrt-rtx or export"
        return None, Finding("GPU", False, f"{error}{advice}; everything runs on the CPU", command)
    size = f"{gpu.memory / 1e9:.0f} GB"
    found = f"{gpu.name}, compute capability {gpu.compute_capability}, {size}, driver {gpu.driver}, which runs CUDA {gpu.cuda}"
    return gpu, Finding("GPU", True, found)


def _has_card() -> bool:
    """Whether the machine has an NVIDIA graphics card, with or without a driver."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = ((device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class"))
        except (OSError, ValueError):
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):
            return True
    return False


def _backends(gpu: Gpu | None) -> Iterator[Finding]:
    """Every backend, those that run on a CPU first."""
    providers = _providers()
    yield _onnxruntime(providers, "onnxruntime", "CPU", gpu)
    yield _backend(Backend.OPENVINO, Backend.OPENVINO.packages)
    on_cpu = "" if _torch_has_gpu() else ", on the CPU, without the fused kernels"
    yield _backend(Backend.TORCH, (*Backend.TORCH.packages, "safetensors"), on_cpu)
    yield _onnxruntime(providers, "onnxruntime --device cuda", "CUDA", gpu)
    yield _onnxruntime(providers, "onnxruntime-tensorrt", "Tensorrt", gpu)
    if gpu is None:
        yield Finding("tensorrt", False, "there is no GPU")
        return
    libraries = installed()
    if not libraries:
        yield Finding(Backend.TENSORRT.value, False, "TensorRT is not installed", _TENSORRT)
        return
    yield _backend(Backend.TENSORRT, (libraries[0], *Backend.TENSORRT.packages, "onnx"))


def _onnxruntime(providers: list[str] | str, name: str, provider: str, gpu: Gpu | None) -> Finding:
    if provider != "CPU" and gpu is None:
        return Finding(name, False, "there is no GPU")
    if isinstance(providers, str):
        return Finding(name, False, f"onnxruntime does not load ({providers})", "pip install --force-reinstall onnxruntime")
    if f"{provider}ExecutionProvider" not in providers:
        return Finding(name, False, f"this onnxruntime has no {provider} provider", _GPU_PACKAGE)
    return Finding(name, True, f"onnxruntime {version_of('onnxruntime') or version_of('onnxruntime-gpu')}")


_GPU_PACKAGE = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu  # both share a folder: one of them only"
)


def _backend(backend: Backend, modules: tuple[str, ...], how: str = "") -> Finding:
    for module in modules:
        if find_spec(module) is None:
            return Finding(backend.value, False, f"{module} is not installed", install_command(backend.extra))
    return Finding(backend.value, True, f"{modules[0]} {version_of(modules[0]) or 'is installed'}{how}")


def _reinstall_command(extra: str) -> str:
    return install_command(extra).replace("pip install", "pip install --force-reinstall", 1)


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
        found = "onnxruntime and onnxruntime-gpu are both installed and share a folder, so either may be broken"
        return Finding("ONNX Runtime", False, found, _GPU_PACKAGE)
    if not installed:
        return Finding("ONNX Runtime", False, "is not installed", "pip install onnxruntime")
    return Finding("ONNX Runtime", True, f"{installed[0]} {version_of(installed[0])}")


def _cuda_libraries(gpu: Gpu | None) -> list[Finding]:
    """The libraries that ONNX Runtime's CUDA provider loads. torch and TensorRT bring their own."""
    if gpu is None or not version_of("onnxruntime-gpu"):
        return []
    module = _imported("onnxruntime")
    if hasattr(module, "preload_dlls"):
        module.preload_dlls()  # as the engine does
    missing = [f"{name}.so" for name, majors in _CUDA_LIBRARIES.items() if not any(_loads(f"{name}.so.{m}") for m in majors)]
    if missing:
        command = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
        return [
            Finding("CUDA and cuDNN", False, f"{', '.join(missing)} cannot be loaded, and ONNX Runtime needs them", command)
        ]
    return [Finding("CUDA and cuDNN", True, "their libraries load")]


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
        return True
    except OSError:
        return False


def _torch_has_gpu() -> bool:
    torch = _imported("torch") if find_spec("torch") else "not installed"
    return not isinstance(torch, str) and torch.cuda.is_available()


def _torch(gpu: Gpu | None) -> Iterator[Finding]:
    """PyTorch, where it is installed."""
    if find_spec("torch") is not None:
        yield _installed_torch(gpu)


def _installed_torch(gpu: Gpu | None) -> Finding:
    torch = _imported("torch")
    if isinstance(torch, str):
        return Finding("PyTorch", False, f"does not load ({torch})", _reinstall_command("export"))
    if gpu is None:
        return Finding("PyTorch", True, torch.__version__)
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs only"
    found = f"{torch.__version__}, built for {built}"
    if torch.cuda.is_available():
        return Finding("PyTorch", True, found)
    if not torch.version.cuda:
        return Finding("PyTorch", False, f"{found}, though there is a GPU", _reinstall_command("export"))
    found += (
        f", which driver {gpu.driver} (CUDA {gpu.cuda}) does not support; update the driver, or install a torch for that CUDA"
    )
    return Finding("PyTorch", False, found)


def _extras() -> Iterator[Finding]:
    """Whether the packages of each extra that a command needs are installed."""
    for extra, (verbs, modules) in _EXTRAS.items():
        missing = [package_of(module) for module in modules if find_spec(module) is None]
        if missing:
            found = f"not installed: {', '.join(missing)}; for sigrl-deploy {verbs}"
            yield Finding(f"extra {extra}", False, found, install_command(extra))
        else:
            yield Finding(f"extra {extra}", True, "installed")


def _tensorrt(gpu: Gpu | None) -> Iterator[Finding]:
    if gpu is not None and not installed():
        yield Finding("TensorRT", False, "is not installed", _TENSORRT)
    for name in installed():
        try:
            yield Finding(name, True, open_library(name).version)
        except SigRLError as error:
            yield Finding(name, False, str(error), _reinstall_command(name.replace("_", "-")))


def _caches(folder: Path, gpu: Gpu | None) -> Iterator[Finding]:
    size, labels = "empty", 0
    if os.path.isdir(folder):
        size = f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.1f} MB"
        labels = sum(len(file.labels) for file in cached_files(folder) if file.kind == "labels")
    existing = next(place for place in (folder, *folder.absolute().parents) if os.path.exists(place))
    try:
        require_private(folder)
    except UsageError as error:
        yield Finding("cache", False, f"{folder}: {error.problem}", f"chmod go-w {shlex.quote(str(folder))}")
        return
    if os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK):
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
    state = "compiled and tuned for this GPU and driver" if here else "not compiled for this GPU yet; the first run does it"
    yield Finding("fused kernels", True, state)


def _tuned(path: Path) -> list[str]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return list(values["results"])
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _bundle(path: Path, gpu: Gpu | None) -> Iterator[Finding]:
    """Whether a bundle is complete, and what each of its TensorRT engines is for, if it is intact, and if it runs here."""
    from sigrl_deploy.bundle.bundle import Bundle

    try:
        bundle = Bundle(path)
    except SigRLError as error:  # whose line names the bundle, unless the argument does
        yield Finding(BUNDLE, False, f"{path}: {error.problem}" if error.argument else error.problem)
        return
    held = list(bundle.manifest.variants)
    yield Finding(BUNDLE, True, f"{path}: complete; {', '.join(precision.value for precision in held)}")
    command = f"sigrl-deploy export tensorrt {shlex.quote(str(path))}"
    if gpu is not None and not bundle.manifest.engines:
        can = any(runs(Backend.TENSORRT, precision) for precision in held)
        found = f"none; {command} builds them" if can else "none; TensorRT runs none of the bundle's precisions"
        yield Finding("engines", True, found)
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
    found = "; ".join([about, *(unfit or ["intact; not tried, since there is no GPU" if gpu is None else "runs here"])])
    return Finding(record.file, not unfit, found, command if unfit else None)
