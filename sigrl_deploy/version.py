"""The version of this package, and those of what it runs with."""

from __future__ import annotations

__version__ = "0.1.0"


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def tool_versions(*distributions: str) -> dict[str, str]:
    """By name, the versions of this package, whether it is installed or only on the path, of Python, and of those that are
    installed.
    """
    import platform

    found = {name: version_of(name) for name in distributions}
    own = {"sigrl-deploy": __version__, "python": platform.python_version()}
    return own | {name: version for name, version in found.items() if version is not None}
