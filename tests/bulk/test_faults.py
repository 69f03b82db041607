"""Workers and drivers that are killed: no row is lost, and none is there twice."""

from __future__ import annotations

import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from sigrl_deploy.bulk.options import BulkOptions, Shard
from sigrl_deploy.bulk.run import run_bulk
from sigrl_deploy.config import Device
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from tests.support.bulk_runs import (
    SECONDS,
    Wanted,
    about,
    assert_equal,
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


ROWS, FILES = 16, 30
TWO = ["--workers", "2", "--cpus-per-worker", "1"]


def test_runs_that_are_killed_stopped_and_go_on(
    address: str, options: Options, many: Path, wanted: Wanted, tmp_path: Path
) -> None:
    """On two CPUs: with as many workers as CPUs, Ray Data would wait for ever if anything else had to run."""
    out, before = tmp_path / "out", _in_temporary_folder()
    command = [many, *options, "--out", out, *TWO]

    # The driver is killed.
    run = started(*command, "--address", address)
    wait_for_parts(run, out, 3)
    run.kill()
    run.communicate()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert 3 <= len(kept) < FILES
    # What only seems to be done: a file that was cut, as some file systems leave it.
    cut = min(kept)
    cut.write_bytes(cut.read_bytes()[:-100])
    done = sum(about(path)["rows"] for path in kept if path != cut)

    # The same command goes on, here without a cluster, and is stopped.
    run = started(*command)
    wait_for_parts(run, out, len(kept) + 2)
    run.send_signal(signal.SIGINT)
    _, error = run.communicate(timeout=SECONDS)
    assert run.returncode == 130, error.decode()
    assert f"480 pictures, {done} of them done before".encode() in error
    assert error.splitlines()[-2:] == [b"the same command goes on where this one stopped", b"interrupted"]
    assert b"Traceback" not in error
    assert _in_temporary_folder() <= before
    again = {path for path in out.glob("part-*") if path.stat().st_mtime_ns != kept.get(path)}
    assert cut in again

    # It goes on, and a worker is killed, which costs no row.
    done = sum(about(path)["rows"] for path in out.glob("part-*"))
    run = started(*command, "--address", address)
    wait_for_parts(run, out, done // ROWS + 2)
    kill_worker(os.getpid())  # the cluster is below this process
    _, error = run.communicate(timeout=SECONDS)
    assert run.returncode == 1, error.decode()
    assert f"480 pictures, {done} of them done before".encode() in error
    assert f"{480 - done} pictures".encode() in error
    assert b"raylet" not in error
    assert b"Traceback" not in error
    assert_equal(rows(out), {f"{copy:02}-{name}": record for copy in range(COPIES) for name, record in wanted.items()})
    assert len(list(out.glob("part-*"))) == FILES
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
        ({"column": "a"}, "was begun with another source, column, key or endpoint"),
        ({"shard": Shard(1, 2)}, "was begun with no shards"),
    ):
        assert_refused(lambda more=more: run_bulk(replace(given, **more)), UsageError, said)
    assert run_bulk(given) == 48  # without starting Ray
    assert sorted(Path(given.out).iterdir()) == before


def _in_temporary_folder() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("sigrl-ray-*"))
