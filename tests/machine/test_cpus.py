"""How many threads: what OpenMP's variable, the affinity and the control groups of a process say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sigrl_deploy.machine import cpus


def _root(tmp_path: Path, groups: str, files: dict[str, str]) -> Path:
    for name, content in {"proc/self/cgroup": groups, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


V1 = "sys/fs/cgroup/cpu,cpuacct/docker/abc/cpu.cfs"


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ("0::/\n", {}, None),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": "5000 100000\n"}, 1),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "max 100000\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/cpu.max": "100000 50000\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 2),
        # In a container the process may be shown the host's path, and the container's mount begins behind it.
        ("0::/docker/abc\n", {"sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        ("4:memory:/x\n3:cpu,cpuacct:/docker/abc\n", {f"{V1}_quota_us": "250000\n", f"{V1}_period_us": "100000\n"}, 3),
        ("3:cpu,cpuacct:/docker/abc\n", {f"{V1}_quota_us": "-1\n", f"{V1}_period_us": "100000\n"}, None),
        (
            "3:cpuacct,cpu:/\n",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
            1,
        ),
        ("0::/\n", {"sys/fs/cgroup/cpu.max": ""}, None),
    ],
)
def test_the_quota_is_the_tightest_of_a_group_and_those_around_it(
    tmp_path: Path, groups: str, files: dict[str, str], expected: int | None
) -> None:
    assert cpus.quota(_root(tmp_path, groups, files)) == expected


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cpus.quota(tmp_path) is None


@pytest.mark.parametrize(("value", "expected"), [("7", 7), ("3,2", 3), ("0", None), ("many", None), ("", None)])
def test_openmps_variable_comes_first(monkeypatch: pytest.MonkeyPatch, value: str, expected: int | None) -> None:
    monkeypatch.setenv(cpus.VARIABLE, value)
    usable = len(os.sched_getaffinity(0))
    assert cpus.threads() == (expected or min(usable, cpus.quota() or usable))
