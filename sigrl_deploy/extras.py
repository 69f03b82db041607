"""Optional packages: what to install where one is missing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sigrl_deploy.errors import UsageError

_CHECKOUT = Path(__file__).resolve().parents[1]
_PACKAGES = {"lightning_fabric": "lightning-fabric", "open_clip": "open_clip_torch", "sklearn": "scikit-learn"}  # by module


def require(*modules: str, extra: str, argument: str = "", value: object = None) -> None:
    """Raise UsageError where a module's package is not installed; `extra` brings it. Imports none of them.

    `argument` and `value` say what needs them, as in `UsageError`.
    """
    for module in modules:
        if find_spec(module) is None:
            raise missing(module, extra, argument=argument, value=value)


def missing(module: str, extra: str, *, argument: str = "", value: object = None) -> UsageError:
    """The error for a module whose package is not installed."""
    problem = f"{package_of(module)} is not installed; {install_command(extra)}"
    return UsageError(problem, argument=argument, value=value, extra=extra)


def package_of(module: str) -> str:
    """The name by which pip knows a module."""
    return _PACKAGES.get(module, module)


def install_command(extra: str) -> str:
    """The command that installs an extra of this package, from its checkout where it runs from one."""
    if (_CHECKOUT / "pyproject.toml").is_file():
        return f"pip install -e '{_CHECKOUT}[{extra}]'"
    return f"pip install 'sigrl-deploy[{extra}]'"
