"""Starts the real `tritonserver` that nvidia-pytriton carries, where the environment variable names its virtual environment.

That server has the Python backend only, so Python models stand in for those of ONNX Runtime.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.paths import SUPPORT

VENV = "SIGRL_TRITONSERVER"
_LONGEST_START = 120  # seconds


@dataclass(frozen=True)
class Server:
    http: str
    grpc: str
    process: subprocess.Popen[bytes]
    log: Path

    def status(self, path: str) -> int:
        """HTTP status of a GET."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0


def environment() -> Path | None:
    """The virtual environment with nvidia-pytriton and this package, or None."""
    named = os.environ.get(VENV)
    return Path(named) if named else None


def site_packages(venv: Path) -> Path:
    return next((venv / "lib").glob("python3.*")) / "site-packages"


def with_stand_ins(repository: Path) -> None:
    """Put Python models in the place of ONNX Runtime's, with the rest of their configuration as it is."""
    for config in repository.glob("*/config.pbtxt"):
        text = config.read_text(encoding="utf-8")
        if 'backend: "onnxruntime"' not in text:
            continue
        text = text.replace('backend: "onnxruntime"', 'backend: "python"').replace('"model.onnx"', '"model.py"')
        config.write_text(text.replace("KIND_AUTO", "KIND_CPU"), encoding="utf-8")
        shutil.copy(SUPPORT / "triton_stand_in.py", config.parent / "1" / "model.py")


@contextmanager
def running(repository: Path, work: Path, venv: Path, **variables: str) -> Iterator[Server]:
    """A server of `repository` that is ready. `work` is an empty folder for its backends and its log."""
    packages = site_packages(venv)
    python = packages.parent.name  # such as python3.11
    carried = packages / "pytriton" / "tritonserver"
    backends = work / "backends"
    shutil.copytree(carried / "backends", backends)
    stub = carried / "python_backend_stubs" / python.removeprefix("python") / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    base = Path(os.path.realpath(venv / "bin" / "python")).parents[1] / "lib"
    libraries = f"{base}:{packages / 'nvidia_pytriton.libs'}"
    path = f"{venv / 'bin'}:{os.environ['PATH']}"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SIGRL_", "TRITON_", "PYTEST_"))}
    http, grpc = _free_ports(2)
    command = [carried / "bin" / "tritonserver", f"--model-repository={repository}", f"--backend-directory={backends}"]
    command += ["--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}"]
    command += ["--allow-metrics=false", "--exit-timeout-secs=10"]
    log = work / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*map(str, command)],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that its stubs can be ended with it
            # A stub takes its packages from the Python that it finds first, and looks at no PYTHONPATH.
            env=inherited | {"LD_LIBRARY_PATH": libraries, "PATH": path, "OMP_NUM_THREADS": "1"} | variables,
        )
    server = Server(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", process, log)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def stubs(server: Server, model: str) -> list[int]:
    """The processes of a Python model."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    found = [line.split(None, 2) for line in listed.splitlines() if "triton_python_backend_stub" in line]
    own = [(pid, args) for pid, parent, args in found if int(parent) == server.process.pid]
    return [int(pid) for pid, args in own if re.search(rf"/{model}/\d+/model\.py", args)]


def _wait_until_ready(server: Server) -> None:
    latest = time.monotonic() + _LONGEST_START
    while server.status("/v2/health/ready") != 200:
        if server.process.poll() is not None or time.monotonic() > latest:
            raise AssertionError(server.log.read_text(errors="replace")[-4000:])
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
