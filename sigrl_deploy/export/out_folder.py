"""Where a bundle is written: in a folder beside its place, and put there whole."""

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
    """Raise UsageError where `out` may not be replaced: without `force`, or where anything but a bundle would be lost."""
    if not os.path.exists(out) or (os.path.isdir(out) and not os.listdir(out)):
        return
    strangers = _strangers(out)
    if strangers:
        raise UsageError(f"--out {out}: holds {strangers[0]}, which is no part of a bundle; choose another folder")
    if not force:
        raise UsageError(f"--out {out}: exists already; choose another folder, or replace the bundle with --force")


def _strangers(out: Path) -> list[str]:
    """What is in `out` and not in its manifest: all of it, where the manifest is not one of ours."""
    if not os.path.isdir(out):
        return [out.name]
    names = sorted(os.listdir(out))
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        known = {MANIFEST, *manifest["files"]} if isinstance(manifest["format_version"], int) else set()
    except (OSError, ValueError, KeyError, TypeError):
        known = set()
    # Engines too, with or without a record, and what a killed build left.
    return [name for name in names if name not in known and not (known and (name.startswith(LOCK) or _ENGINE.fullmatch(name)))]


@contextmanager
def replaced_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`, put in its place when the block ends well and removed when it does not.

    Raises ExportError where it cannot be written; then nothing is left behind, and a bundle that was at `out` still is.
    """
    parents = [parent for parent in out.parents if not os.path.exists(parent)]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name[:40]}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise ExportError(f"--out {out}: cannot be created ({error.strerror}); choose a folder that can be written") from None
    try:
        temporary.chmod(0o755)
        yield temporary
        _put_in_place(temporary, out)
    except OSError as error:
        raise ExportError(f"--out {out}: cannot be written ({error.strerror or error}); nothing was left behind") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if not out.exists():
            with suppress(OSError):  # somebody else's file in a new parent keeps it
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
