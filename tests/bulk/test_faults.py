"""Workers and drivers that are killed: no row is lost, and none is there twice."""

from __future__ import annotations

import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sigrl_deploy.bulk.options import BulkOptions, Shard
from sigrl_deploy.bulk.run import run_bulk
from sigrl_deploy.config import Device
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from tests.support.bulk_runs import (
    SECONDS,
    about,
    assert_equal,
    bulk,
    expected,
    kill_worker,
    rows,
    started,
    wait_for_parts,
)
from tests.support.refusals import assert_refused

Options = list[str | Path]
COPIES = 12


@pytest.fixture(scope="module")
def many(tenth_broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480 pictures, which take seconds: the forty under twelve names each."""
    folder = tmp_path_factory.mktemp("many")
    for copy in range(COPIES):
        for path in sorted(tenth_broken.glob("*/*.jpg")):
            os.link(path, folder / f"{copy:02}-{path.name}")
    return folder


@pytest.fixture(scope="module")
def wanted(bundle: Path, labels: Path, many: Path) -> dict[str, dict[str, Any]]:
    return expected(many, "--bundle", bundle, "--labels", labels, "--device", "cpu")


TWO = ["--workers", "2", "--cpus-per-worker", "1"]


def test_a_killed_worker_costs_no_row(options: Options, many: Path, wanted: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """On two CPUs: with as many workers as CPUs, Ray Data would wait for ever if anything else had to run."""
    out = tmp_path / "out"
    run = started(many, *options, "--out", out, *TWO)
    wait_for_parts(run, out, 2)
    kill_worker(run.pid)
    _, error = run.communicate(timeout=SECONDS)
    assert run.returncode == 1, error.decode()
    assert b"480 pictures, 48 of them with an error" in error
    assert_equal(rows(out), wanted)
    assert len(list(out.glob("part-*"))) == 16  # eight for each worker
    assert b"raylet" not in error
    assert b"Traceback" not in error


def test_a_killed_driver_goes_on_with_the_same_command(
    options: Options, many: Path, wanted: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [many, *options, "--out", out, *TWO]
    run = started(*command)
    wait_for_parts(run, out, 4)
    run.kill()
    run.communicate()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert 4 <= len(kept) < 16
    # What only seems to be done: a file that was cut, as some file systems leave it.
    cut = min(kept)
    cut.write_bytes(cut.read_bytes()[:-100])
    done = sum(about(path)["rows"] for path in kept if path != cut)
    again = bulk(*command, status=1)
    assert f"480 pictures, {done} of them done before".encode() in again.stderr
    assert_equal(rows(out), wanted)
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items() if path != cut)
    given = BulkOptions((str(many),), str(out), Path(options[1]), Path(options[3]), engine=EngineOptions(device=Device.CPU))
    _refuses_what_differs(given, tmp_path)


def _refuses_what_differs(given: BulkOptions, folder: Path) -> None:
    """A finished run, of which another is refused before anything starts."""
    other = folder / "other.txt"
    other.write_text("cat\ndog\n")
    before = sorted(Path(given.out).iterdir())
    for more, said in (
        ({"top": 2}, "was begun with other options"),
        ({"labels": other}, "was begun with other labels"),
        ({"crop": "pad"}, "was begun with another backend, precision, preprocessing or crop"),
        ({"column": "a"}, "was begun with another source, column or key"),
        ({"shard": Shard(1, 2)}, "was begun with no shards"),
    ):
        assert_refused(lambda more=more: run_bulk(replace(given, **more)), UsageError, said)
    assert run_bulk(given) == 48  # without starting Ray
    assert sorted(Path(given.out).iterdir()) == before


def test_a_stopped_run_says_how_to_go_on(options: Options, many: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", _in_temporary_folder()
    run = started(many, *options, "--out", out, *TWO)
    wait_for_parts(run, out, 2)
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=SECONDS)
    assert run.returncode == 130, error.decode()
    assert error.splitlines()[-2:] == [f"the same command goes on with the rows that are in {out}".encode(), b"interrupted"]
    assert b"Traceback" not in error
    assert _in_temporary_folder() <= before


def _in_temporary_folder() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("sigrl-ray-*"))
