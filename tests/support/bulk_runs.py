"""How tests run `sigrl-deploy bulk`, what its rows are held against, and the servers that it talks to."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.processes import infer, interruptible, records

Wanted = dict[str, dict[str, Any]]  # records of `infer` by file name

BULK = [sys.executable, "-m", "sigrl_deploy", "bulk"]
WORKER = b"ray::MapWorker(MapBatches(TagPictures)"
# As many CPUs as the runs of two workers want, whatever a parallel run of the tests leaves to each.
CPUS = {"OMP_NUM_THREADS": "2"}
# A token, or Ray would keep one in the home folder; and what moto takes for credentials, for workers, too.
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789" * 7}
ENVIRONMENT |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
SECONDS = 400  # a busy machine takes a minute to start Ray


def bulk(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[bytes]:
    """One run of `sigrl-deploy bulk`, which must exit with `status`, and say what it says in lines of its own."""
    command = [*BULK, *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False, env=os.environ | ENVIRONMENT | CPUS)
    assert run.returncode == status, run.stderr.decode()
    assert run.stdout == b""
    for unwanted in (b"Traceback", b"Exception ignored", b"raylet", b"ray.io", b"Warning"):
        assert unwanted not in run.stderr, run.stderr.decode()
    return run


def started(*arguments: str | Path) -> subprocess.Popen[bytes]:
    """A run that the test is going to disturb."""
    command = [*BULK, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=interruptible, env=os.environ | ENVIRONMENT | CPUS)


def wait_for_parts(process: subprocess.Popen[bytes], out: Path, count: int) -> None:
    """Wait until a run has written so many files."""
    end = time.monotonic() + SECONDS
    while len(list(out.glob("part-*"))) < count:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < end, f"no {count} files in {SECONDS} s"
        time.sleep(0.01)


def kill_worker(above: int) -> None:
    """End one of the workers below a process at once."""
    (pid, *_) = [pid for pid in below(above) if WORKER in command_of(pid)]
    os.kill(pid, signal.SIGKILL)


def below(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            parents.setdefault(_parent(int(entry)), []).append(int(entry))
    found, waiting = [], [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return -1


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def rows(out: str | Path, filesystem: Any = None) -> list[dict[str, Any]]:
    """What a run wrote, in no order."""
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = pq.read_table(out, filesystem=filesystem).to_pylist()
    return found


def expected(pictures: Path, *options: str | Path, status: int = 1) -> Wanted:
    """By file name, the records of `infer` over a folder."""
    found = records(infer(pictures, *options, "--format", "jsonl", status=status).stdout)
    return {Path(record["path"]).name: record for record in found}


def assert_equal(found: list[dict[str, Any]], wanted: Wanted, same_run: bool = True) -> None:
    """Rows are records, to the last bit of their scores; each picture has one."""
    names = [re.split(r"[/#]", row["path"])[-1] for row in found]
    assert sorted(names) == sorted(wanted)
    for name, row in zip(names, found, strict=True):
        record = wanted[name]
        assert row["error"] == record.get("error"), name
        assert row["run"] == record["run"] or not same_run
        tags = record.get("tags")
        if tags is None:
            assert row["labels"] is row["scores"] is row["thresholds"] is None
            continue
        assert row["labels"] == [tag["label"] for tag in tags]
        assert row["scores"] == [float(np.float32(tag["score"])) for tag in tags], name
        limits = [None if limit is None else np.float32(limit) for limit in row["thresholds"]]
        assert limits == [np.float32(tag["threshold"]) if "threshold" in tag else None for tag in tags]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@contextmanager
def cluster(folder: Path, cpus: int) -> Iterator[str]:
    """The address of a Ray cluster of one node, whose processes are gone at the end. It wants the token of ENVIRONMENT.

    It takes itself to have a GPU, so that runs go the way of those that have.
    """
    environment = os.environ | ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0"}
    port = free_port()
    command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={port}", f"--num-cpus={cpus}"]
    more = ["--include-dashboard=false", "--object-store-memory=200000000", f"--temp-dir={folder}", "--num-gpus=1"]
    head = subprocess.Popen([*command, *more], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        assert head.stdout is not None
        for line in head.stdout:
            if b"Ray runtime started" in line:
                break
        else:
            raise AssertionError("Ray did not start")
        yield f"127.0.0.1:{port}"
    finally:
        # At once: Ray takes half a minute to say goodbye.
        for pid in [*below(head.pid), head.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.communicate(timeout=60)


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of moto's S3."""
    port = free_port()
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert server.poll() is None, "moto's server has ended"
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=60)


def about(part: Path) -> dict[str, Any]:
    """What a file of rows says about itself."""
    import pyarrow.parquet as pq

    found: dict[str, Any] = json.loads(pq.read_metadata(part).metadata[b"sigrl_deploy"])
    return found
