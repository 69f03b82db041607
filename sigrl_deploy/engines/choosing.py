"""Which backend runs a bundle, where, and in which precision: decided before anything is opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.precisions import choose_precision
from sigrl_deploy.config import Backend, Device, Precision, runs
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from sigrl_deploy.extras import missing

_DOCTOR = "`sigrl-deploy doctor` says what to do"
_FUSED_HEAD = (*Backend.TORCH.packages, "onnx")  # what the kernels behind ONNX Runtime's tower need


class Machine(Protocol):
    """What the choice asks of a machine."""

    def has_package(self, name: str) -> bool:
        """Whether a package is installed."""

    def no_gpu(self, backend: Backend) -> str:
        """Why a backend has no GPU here; "" where it has one."""

    def runs_kernels(self) -> bool:
        """Whether the GPU is new enough for the fused kernels; asked only where PyTorch has a GPU."""


@dataclass(frozen=True)
class Choice:
    """What is opened. `kernels` are the ops of FUSED that run as kernels; on a CPU svfr, where its native kernel runs there.

    `reason` says why the model does not run on a GPU though nobody chose the CPU; "" where there is nothing to explain.
    """

    backend: Backend
    device: Device
    precision: Precision
    kernels: frozenset[str]
    reason: str


def choose(bundle: Bundle, options: EngineOptions, machine: Machine) -> Choice:
    """The backend, device and precision that a caller asks for, or the best that this machine has for the bundle.

    Raises UsageError, which names the option, for a backend that is not installed, a device that is not there or that the
    backend does not run on, an op in `unfused` that does not run as a kernel there, and what `choose_precision` raises.
    """
    backend = options.backend if options.backend is not Backend.AUTO else _backend(bundle, options, machine)
    for package in backend.packages:
        if not machine.has_package(package):
            raise missing(package, backend.extra, argument="backend", value=backend.value)
    device, reason = _device(backend, bundle, options, machine)
    kernels = _kernels(backend, device, bundle, options, machine)
    return Choice(backend, device, choose_precision(bundle, backend, device, options.precision), kernels, reason)


def _backend(bundle: Bundle, options: EngineOptions, machine: Machine) -> Backend:
    """PyTorch where it has a GPU and the bundle holds weights that it runs there, else ONNX Runtime."""
    torch = Backend.TORCH
    if options.device is Device.CPU or not all(machine.has_package(package) for package in torch.packages):
        return Backend.ONNXRUNTIME
    variants = bundle.manifest.variants
    weights = [p for p in bundle.precisions(options.precision) if variants[p].weights and runs(torch, p, Device.CUDA)]
    return torch if weights and not machine.no_gpu(torch) else Backend.ONNXRUNTIME


def _device(backend: Backend, bundle: Bundle, options: EngineOptions, machine: Machine) -> tuple[Device, str]:
    """The device, and the reason for a CPU that nobody asked for."""
    asked = options.device
    if not runs(backend, device=asked):
        other = next(d for d in Device.AUTO.candidates if runs(backend, device=d))
        problem = f"{backend.full_name} does not run there; use `device='{other.value}'`, or another `backend`"
        raise UsageError(problem, argument="device", value=asked.value)
    if asked is Device.CPU:
        return asked, ""
    if not runs(backend, device=Device.CUDA):
        return Device.CPU, ""
    reason = machine.no_gpu(backend)
    if asked is Device.CUDA:
        if reason:
            raise UsageError(f"{reason}; {_DOCTOR}, or use `device='cpu'`", argument="device", value=asked.value)
        return asked, ""
    if not runs(backend, device=Device.CPU):
        if reason:
            raise UsageError(f"{reason}; {_DOCTOR}, or use another `backend`", argument="backend", value=backend.value)
        return Device.CUDA, ""
    held = bundle.precisions(options.precision)
    if not reason and not any(runs(backend, precision, Device.CUDA) for precision in held):
        reason = f"{', '.join(precision.value for precision in held)} runs there only"
    return (Device.CPU, reason) if reason else (Device.CUDA, "")


def _kernels(backend: Backend, device: Device, bundle: Bundle, options: EngineOptions, machine: Machine) -> frozenset[str]:
    """The ops that run as kernels. Raises UsageError for an op in `unfused` that would not run as one anyway."""
    able = backend.kernels if device is Device.CUDA and _has_kernels(backend, bundle, machine) else frozenset()
    native = backend is Backend.ONNXRUNTIME and device is Device.CPU and bundle.manifest.arch.has_graph
    on_cpu = frozenset({"svfr"}) if native else frozenset()
    for op in options.unfused:
        if op in able | on_cpu:
            continue
        problem = f"{backend.full_name} has no kernel for it, and runs it in its own ops" if able else "nothing is fused here"
        raise UsageError(f"{problem}; leave it out, or use `backend='torch'` on a GPU", argument="unfused", value=op)
    found = (able | on_cpu) - options.unfused
    # Behind ONNX Runtime's tower matching alone gains nothing: the whole graph then runs in ONNX Runtime.
    return frozenset() if backend is Backend.ONNXRUNTIME and "svfr" not in found else found


def _has_kernels(backend: Backend, bundle: Bundle, machine: Machine) -> bool:
    """Whether a backend on a GPU can hand over to the kernels, which run in PyTorch."""
    if backend is Backend.ONNXRUNTIME:
        packages = all(machine.has_package(package) for package in _FUSED_HEAD)
        if not bundle.manifest.arch.has_graph or not packages or machine.no_gpu(Backend.TORCH):
            return False
    return bool(backend.kernels) and machine.runs_kernels()
