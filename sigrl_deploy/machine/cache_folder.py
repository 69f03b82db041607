"""The cache folder on disk: where it is, who may write to it, and what it holds."""

from __future__ import annotations

import os
import re
import shlex
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import DamagedFileError, read_arrays, read_bounded

ENVIRONMENT = "SIGRL_DEPLOY_CACHE"
ABOUT = "about.txt"
PRIVATE = 0o644  # mode of what is written: others may read it
_MOST_ABOUT_BYTES = 1 << 12
_OWN_FILE = re.compile(r"[0-9a-f]{32}/\.?((labels|vocabulary)-[0-9a-f]{32}\.npz|about\.txt)(\.[0-9a-f]+\.tmp)?")


def default_cache_dir() -> Path:
    """$SIGRL_DEPLOY_CACHE, or the user's cache folder."""
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(chosen)
    from platformdirs import user_cache_path

    return user_cache_path("sigrl-deploy")


def make_private(folder: Path) -> None:
    """Create a folder and its parents, where missing, so that other users can read them at most. Raises OSError."""
    if not folder.parent.exists():
        make_private(folder.parent)
    folder.mkdir(mode=0o755, exist_ok=True)


def require_private(folder: Path) -> None:
    """Raise UsageError for a cache folder that others can write to: they could run code here, or change scores."""
    try:
        status = folder.stat()
    except OSError:
        return  # missing, or not readable, which whoever needs it will report
    if not hasattr(os, "getuid"):  # on Windows, modes say nothing about other users
        return
    remedy = "or choose another folder, which may lie in it"
    if status.st_uid not in (0, os.getuid()):
        problem = f"belongs to another user, who could change results; make it yours, {remedy}"
        raise UsageError(problem, argument="cache_dir", value=folder)
    shared = stat.S_IWOTH if _is_own_group(status.st_gid) else stat.S_IWOTH | stat.S_IWGRP
    if status.st_mode & shared:
        command = f"chmod go-w {shlex.quote(str(folder))}"
        problem = f"other users can write to it, and so change results; run {command}, {remedy}"
        raise UsageError(problem, argument="cache_dir", value=folder)


def _is_own_group(gid: int) -> bool:
    """Whether a group is the user's private one. Most Linux systems create these, and let them write by default."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(gid), pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return user.pw_gid == gid and group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def require_writable(folder: Path) -> None:
    """Create a cache folder where it is missing. Raises UsageError where it cannot be written."""
    try:
        make_private(folder)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        problem = f"cannot be written ({error.strerror}); choose another folder"
        raise UsageError(problem, argument="cache_dir", value=folder) from None


@dataclass(frozen=True)
class CachedFile:
    """One file of the cache: `kind` is "labels" (tier 1) or "vocabulary" (tier 2)."""

    path: Path
    kind: str
    labels: tuple[str, ...]


def cached_files(folder: Path) -> Iterator[CachedFile]:
    """Every readable file of a cache folder that holds labels."""
    for path in _own_files(folder):
        if path.suffix != ".npz":
            continue
        try:
            labels = read_arrays(path, ("labels",))["labels"]
        except (OSError, DamagedFileError):
            continue
        if labels.ndim == 1 and labels.dtype.kind == "U":
            yield CachedFile(path, path.name.partition("-")[0], tuple(labels.tolist()))


def about(folder: Path) -> str:
    """What the folder of a bundle's embeddings says about that bundle, or ""."""
    try:
        return read_bounded(folder / ABOUT, _MOST_ABOUT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def clear_cache(folder: Path) -> int:
    """Remove every cached file, and nothing else, from the folder. Returns how many files were removed."""
    paths = _own_files(folder)
    for path in paths:
        path.unlink(missing_ok=True)
    for sub in {path.parent for path in paths}:
        with suppress(OSError):  # it stays where it holds other files
            sub.rmdir()
    return sum(path.suffix != ".txt" for path in paths)


def _own_files(folder: Path) -> list[Path]:
    """Files that this cache wrote, finished or not. The folder may hold other files too."""
    # Links are not followed, since they lead out of the cache.
    folders = [sub for sub in entries(folder) if not sub.is_symlink()]
    paths = [path for sub in folders for path in entries(sub)]
    return [path for path in paths if _OWN_FILE.fullmatch(f"{path.parent.name}/{path.name}")]


def entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted by name; none where it cannot be listed."""
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except OSError:
        return []
