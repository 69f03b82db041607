"""Which of a bundle's precisions a backend runs."""

from __future__ import annotations

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.config import Backend, Device, Precision, runs
from sigrl_deploy.errors import BundleError, UsageError


def choose_precision(bundle: Bundle, backend: Backend, device: Device, asked: Precision | None) -> Precision:
    """The first of a bundle's precisions that a backend runs on a device, or the one that is asked for.

    Raises UsageError where the bundle does not hold the one asked for, where that does not run, and where PyTorch has no
    weights; BundleError where none of the bundle's runs.
    """
    held = bundle.precisions(asked)
    able = [precision for precision in held if runs(backend, precision, device)]
    where = "" if device is Device.AUTO else f" on {device.value}"
    if asked and not able:
        problem = f"{backend.full_name} does not run it{where}; {_others(bundle, asked, device)} does"
        raise UsageError(problem, argument="precision", value=asked.value)
    if not able:
        names = ", ".join(precision.value for precision in held)
        problem = f"holds only {names}, which {backend.full_name} does not run{where}; export it in fp32 too"
        raise BundleError(f"{bundle.path}: {problem}, or use {_others(bundle, held[0], device)}")
    if backend is not Backend.TORCH:
        return able[0]
    weights = [precision for precision in able if bundle.manifest.variants[precision].weights]
    if not weights:
        problem = f"{bundle.path} holds no weights for PyTorch; export it again with `weights`, or use another `backend`"
        raise UsageError(problem, argument="backend", value=backend.value)
    return weights[0]


def _others(bundle: Bundle, precision: Precision, device: Device) -> str:
    """The backends that run a bundle's precision, on this device or else on another, as a message names them."""
    usable = [b for b in Backend.named() if b is not Backend.TORCH or bundle.manifest.variants[precision].weights]
    able = [backend for backend in usable if runs(backend, precision, device)]
    if able:
        return " or ".join(f"`backend='{backend.value}'`" for backend in able)
    backend, other = next((b, d) for b in usable for d in Device.AUTO.candidates if runs(b, precision, d))
    return f"`backend='{backend.value}'` with `device='{other.value}'`"
