"""The folder that a bundle is written to: a temporary one beside it, which takes its place once it is complete."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sigrl_deploy.bundle.manifest import LOCK, MANIFEST
from sigrl_deploy.errors import ExportError, UsageError

_ENGINE = re.compile(r"\.?(visual|text)-[\w-]+\.engine(\.[0-9a-f]+\.tmp)?")


def check_out(out: Path, force: bool) -> None:
    """Raise UsageError where `out` exists without `force`, and where replacing it would delete anything but a bundle."""
    if not os.path.exists(out) or (os.path.isdir(out) and not os.listdir(out)):
        return
    strangers = _strangers(out)
    if strangers:
        raise UsageError(
            f"holds {strangers[0]}, which is not part of a bundle; choose another folder", argument="out", value=out
        )
    if not force:
        raise UsageError("exists already; choose another folder, or add `force` to replace it", argument="out", value=out)


def _strangers(out: Path) -> list[str]:
    """Names in `out` that its manifest does not list: all of them, where it holds no manifest of a bundle."""
    if not os.path.isdir(out):
        return [out.name]
    names = sorted(os.listdir(out))
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        known = {MANIFEST, *manifest["files"]} if isinstance(manifest["format_version"], int) else set()
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    # Lock files, engines whether recorded or not, and leftovers of a killed build are part of a bundle too.
    return [name for name in names if name not in known and not (known and (name.startswith(LOCK) or _ENGINE.fullmatch(name)))]


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, which takes its place when the block ends, and is removed when the block raises.

    Raises ExportError where it cannot be written. Then nothing is left behind, and a bundle that was at `out` still is.
    """
    parents = [parent for parent in out.parents if not os.path.exists(parent)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name[:40]}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        problem = f"cannot be created ({error.strerror}); choose a folder that can be written"
        raise ExportError(problem, argument="out", value=out) from None
    try:
        temporary.chmod(0o755)
        yield temporary
        _put_in_place(temporary, out)
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error}); nothing was left behind"
        raise ExportError(problem, argument="out", value=out) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not out.exists():
            with suppress(OSError):  # a new parent stays where somebody has put a file into it
                for parent in parents:
                    parent.rmdir()


def _put_in_place(temporary: Path, out: Path) -> None:
    if not out.exists():
        temporary.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name[:40]}.", suffix=".old", dir=out.parent))
    out.replace(old / out.name)
    try:
        temporary.replace(out)
    except BaseException:
        (old / out.name).replace(out)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
