"""How the service starts, fails and ends: with which exit status, which answers to those who wait, and which lines."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from sigrl_deploy.cli.main import main
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.server import Server, bound
from tests.support.changed_bundles import broken_for_all, change_graph, endless_for_white_and_broken_for_black
from tests.support.processes import interruptible
from tests.support.refusals import refused
from tests.support.servers import Served, serving
from tests.support.watched_engine import picture

_SECONDS = 120  # for anything, on machines that are slow
HEAD = b"POST /v1/tag HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
BLACK, GREY, WHITE = (picture(brightness) for brightness in (0, 128, 255))


def ask(served: Served, body: bytes) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/tag", content=body, headers={"content-type": "image/png"}, timeout=_SECONDS)


class Asked(threading.Thread):
    """A request that waits on a thread of its own; `answer` is there at its end."""

    def __init__(self, served: Served, body: bytes) -> None:
        super().__init__(daemon=True)
        self._served, self._body = served, body
        self.answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self.answer = ask(self._served, self._body)

    def answered(self) -> httpx.Response:
        self.join(_SECONDS)
        assert self.answer is not None
        return self.answer


def wait_until(served: Served, line: str) -> None:
    """Wait for a line of the metrics."""
    deadline = time.monotonic() + _SECONDS
    while line not in httpx.get(f"{served.url}/metrics", timeout=_SECONDS).text.splitlines():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_engine_that_dies(bundle: Path, label_file: Path, tmp_path: Path) -> None:
    """What waits is answered with 503, and the process ends with exit status 3, soon, although a client still sends."""
    gate, options = tmp_path / "gate", ["--labels", f"everyday={label_file}", "--threads", "1", "--body-seconds", "3600"]
    env = os.environ | {"GATE": str(gate)}
    with serving(bundle, *options, "--host", "::1", module="tests.support.changed_service", breaks=True, env=env) as server:
        assert server.url.startswith("http://[::1]:")
        assert ask(server, GREY).status_code == 200
        port = int(server.url.rsplit(":", 1)[1])
        with socket.create_connection(("::1", port)) as slow, socket.create_connection(("::1", port), _SECONDS) as waiting:
            slow.sendall(HEAD % 9 + b"abc")
            fatal = Asked(server, WHITE)
            wait_until(server, "sigrl_batch_pictures_count 3.0")  # the one before it listened, the grey one, the white one
            waiting.sendall(HEAD % len(GREY) + GREY + b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
            wait_until(server, "sigrl_waiting_pictures 1.0")
            gate.touch()
            assert fatal.answered().status_code == 503
            found = b"".join(iter(lambda: waiting.recv(1 << 16), b""))
            assert server.process.wait(_SECONDS) == 3
    assert found.count(b"HTTP/1.1 503 ") == 2, found
    assert b'"code":"stopped"' in found
    assert found.endswith(b"not ready\n")
    assert server.said[-1] == "the engine failed, so the service ends: the engine no longer runs (the device is lost)\n"


def test_what_waits_for_ever_and_a_second_interrupt(bundle: Path, label_file: Path, tmp_path: Path) -> None:
    """An engine that hangs costs its picture a 504, one that fails at a picture a 500; Ctrl-C twice ends all of it at once."""
    changed = tmp_path / "bundle"
    shutil.copytree(bundle, changed)
    change_graph(changed, "visual.onnx", endless_for_white_and_broken_for_black)
    options = ["--labels", f"everyday={label_file}", "--threads", "2", "--answer-seconds", "5", "--host", "0.0.0.0"]
    with serving(changed, *options, breaks=True, preexec_fn=interruptible) as server:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        assert any(line.startswith("whoever reaches --host 0.0.0.0 can use the service") for line in server.said)
        assert httpx.get(f"{server.url}/info", headers={"host": "example.org"}).status_code == 200
        broken = ask(server, BLACK)
        assert (broken.status_code, broken.json()["error"]["code"]) == (500, "engine")
        assert ask(server, GREY).status_code == 200
        late = ask(server, WHITE)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "too-late")
        with socket.create_connection(("127.0.0.1", int(server.url.rsplit(":", 1)[1])), _SECONDS) as waiting:
            waiting.sendall(HEAD % 9 + b"abc")
            server.process.send_signal(signal.SIGINT)
            while _accepts(server):
                time.sleep(0.02)
            before = len(server.said)
            assert server.stop(signal.SIGINT) == 130
            found = b"".join(iter(lambda: waiting.recv(1 << 16), b""))
        assert found.startswith(b"HTTP/1.1 503 ")
        assert "Traceback" not in "".join(server.said[before:])


def _accepts(served: Served) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(served.url.rsplit(":", 1)[1]))).close()
    except ConnectionRefusedError:
        return False
    return True


def test_an_engine_that_fails_at_the_start(bundle: Path, label_file: Path, tmp_path: Path) -> None:
    changed = tmp_path / "bundle"
    shutil.copytree(bundle, changed)
    change_graph(changed, "visual.onnx", broken_for_all)
    command = [sys.executable, "-m", "sigrl_deploy", "serve", "--bundle", str(changed), "--port", "0"]
    done = subprocess.run([*command, "--labels", f"everyday={label_file}"], capture_output=True, text=True)
    assert done.returncode == 3
    engine, line = done.stderr.splitlines()
    assert engine.startswith("engine: ")
    assert line.startswith(f"error: {changed}: fails at a picture (")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """It is known before anything is loaded: here there is no bundle."""
    with bound("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "sigrl_deploy", "serve", "--bundle", str(tmp_path), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: --port {port}: ")


@pytest.mark.parametrize("host", ["300.1.1.1", "no.such.name.invalid", "192.0.2.1", "a" * 70 + ".org", "1:2:3"])
def test_a_host_that_is_not_here(host: str) -> None:
    def bind() -> None:
        with bound(host, 0):
            pass

    assert refused(bind) == ("host", host)


@pytest.mark.parametrize("option", ["--in-flight-mb", "--body-mb", "--answer-seconds"])
@pytest.mark.parametrize("value", ["nan", "inf"])
def test_numbers_that_are_none(tmp_path: Path, option: str, value: str) -> None:
    done = CliRunner().invoke(main, ["serve", "--bundle", str(tmp_path), option, value])
    assert done.exit_code == 2
    assert option in done.output
    assert "Traceback" not in done.output


def test_the_time_to_end_is_no_less_than_that_to_answer() -> None:
    async def app(*_: object) -> None:
        pass

    server = Server(app, Limits(answer_seconds=0.5, body_seconds=0.4))
    assert server.config.timeout_graceful_shutdown == 1
