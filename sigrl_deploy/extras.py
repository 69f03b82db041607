"""Optional packages: what to install where one is missing."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from sigrl_deploy.errors import UsageError

_CHECKOUT = Path(__file__).resolve().parents[1]


def require(*packages: str, extra: str, argument: str = "", value: object = None) -> None:
    """Raise UsageError where a package is not installed; `extra` brings it. Imports none of them.

    `argument` and `value` say what needs them, as in `UsageError`.
    """
    for package in packages:
        if find_spec(package) is None:
            raise missing(package, extra, argument=argument, value=value)


def missing(package: str, extra: str, *, argument: str = "", value: object = None) -> UsageError:
    """The error for a package that is not installed."""
    problem = f"{package} is not installed; {install_command(extra)}"
    return UsageError(problem, argument=argument, value=value, extra=extra)


def install_command(extra: str) -> str:
    """The command that installs an extra of this package, from its checkout where it runs from one."""
    if (_CHECKOUT / "pyproject.toml").is_file():
        return f"pip install -e '{_CHECKOUT}[{extra}]'"
    return f"pip install 'sigrl-deploy[{extra}]'"
