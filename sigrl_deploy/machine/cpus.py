"""How many threads this process should compute with."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

VARIABLE = "OMP_NUM_THREADS"  # PyTorch, OpenMP and numpy's BLAS read it too
_ROOT = Path("/")


def threads() -> int:
    """$OMP_NUM_THREADS, or else one per CPU that this process may use, given its affinity and its control groups' quotas."""
    asked = os.environ.get(VARIABLE, "").partition(",")[0]  # after the comma: nested OpenMP regions
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(known, quota() or known)


def quota(root: Path = _ROOT) -> int | None:
    """How many CPUs Linux control groups, version 1 or 2, allow this process, rounded up; None without a limit."""
    limits = [limit for folder in _groups(root) for limit in (_limit_2(folder), _limit_1(folder)) if limit]
    return max(1, math.ceil(min(limits))) if limits else None


def _groups(root: Path) -> Iterator[Path]:
    """The folders of this process's groups and of their parents, whose limits apply too."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = PurePosixPath(path.lstrip("/"))
        for mount in {controllers, "cpu" if controllers else ""}:
            # In a container the path may be the host's, of which only the end is mounted. A missing folder sets no limit.
            yield from (root / "sys/fs/cgroup" / mount / folder for folder in (group, *group.parents))


def _limit_2(folder: Path) -> float | None:
    return _share(_word(folder / "cpu.max", 0), _word(folder / "cpu.max", 1))


def _limit_1(folder: Path) -> float | None:
    return _share(_word(folder / "cpu.cfs_quota_us", 0), _word(folder / "cpu.cfs_period_us", 0))


def _word(path: Path, index: int) -> str:
    try:
        return path.read_text().split()[index]
    except (OSError, IndexError):
        return ""


def _share(quota: str, period: str) -> float | None:
    """Without a limit the quota is `max`, or -1."""
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(quota) and int(period) else None
