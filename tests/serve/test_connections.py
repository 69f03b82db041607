"""What clients may do to a connection: nothing that they send, leave out or do not read costs the others anything."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import resource
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from http.client import HTTPResponse
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from PIL import Image

from sigrl_deploy.serve.guard import Guard
from sigrl_deploy.serve.metrics import Metrics
from tests.support.servers import Served, serving

_SECONDS = 120  # for anything, on machines that are slow
_LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def hasty(bundle: Path, label_file: Path) -> Iterator[Served]:
    """Waits a second or two for anything, and may have 128 files open."""
    options = ["--labels", f"everyday={label_file}", "--header-seconds", "1", "--body-seconds", "2"]
    few = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (128, 128))
    env = os.environ | {"KEEP_ALIVE": "1"}
    with serving(bundle, *options, module="tests.support.changed_service", env=env, preexec_fn=few) as server:
        yield server


@pytest.fixture(scope="module")
def keyed(bundle: Path, label_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Wants a key, and has room for one body of 20 MB."""
    key = tmp_path_factory.mktemp("key") / "key"
    key.write_text("sesame\n")
    options = ["--labels", f"everyday={label_file}", "--api-key-file", key, "--in-flight-mb", "20", "--body-seconds", _SECONDS]
    with serving(bundle, *options) as server:
        yield server


def connect(served: Served, room: int | None = None) -> socket.socket:
    """A connection; `room` bytes of answers fit into the client's side, about."""
    connection = socket.socket()
    if room:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    connection.settimeout(_SECONDS)
    connection.connect(("127.0.0.1", int(served.url.rsplit(":", 1)[1])))
    return connection


def head(length: int, *headers: str, path: str = "/v1/tag") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: image/jpeg", f"Content-Length: {length}", *headers]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def answers(served: Served, data: bytes) -> bytes:
    """All that comes until the server closes."""
    with connect(served) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def connections(served: Served) -> int:
    found = 0
    for link in Path(f"/proc/{served.process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found += os.readlink(link).startswith("socket:")
    return found


def wait_for_connections(served: Served, most: int) -> None:
    deadline = time.monotonic() + _SECONDS
    while connections(served) > most:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def by_urllib(served: Served, body: bytes, **headers: str) -> tuple[int, str]:
    """Status and Retry-After, for a client that sends all of its body before it reads, over a connection of its own."""
    request = urllib.request.Request(f"{served.url}/v1/tag", body, {"Content-Type": "image/jpeg", **headers})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
            assert isinstance(answer, HTTPResponse)
            return answer.status, ""
    except urllib.error.HTTPError as error:
        error.read()
        return error.code, error.headers.get("Retry-After", "")


@pytest.mark.parametrize("kind", ["image/jpeg", "text/plain"])
def test_a_request_that_wants_another_protocol_is_one_request(served: Served, photos: list[Path], kind: str) -> None:
    """Its body is never taken for a request, whether somebody reads it or not."""
    inner = _LIVE if kind == "text/plain" else photos[0].read_bytes()
    upgrade = head(len(inner), "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AA")
    closing = _LIVE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    found = answers(served, upgrade.replace(b"image/jpeg", kind.encode()) + inner + closing)
    assert re.findall(rb"HTTP/1.1 (\d+)", found) == [b"200" if kind == "image/jpeg" else b"415", b"200"]
    assert found.endswith(b"live\n")


def test_curl_that_would_like_http_2(served: Served, photos: list[Path]) -> None:
    command = ["curl", "-sS", "--http2", "--data-binary", f"@{photos[0]}", "-H", "Content-Type: image/jpeg"]
    done = subprocess.run([*command, f"{served.url}/v1/tag"], capture_output=True, check=True)
    assert json.loads(done.stdout)["tags"]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"BREW / HTTP/1.1\r\n\r\n", 400),
        (b"CONNECT example.org:80 HTTP/1.1\r\nHost: example.org:80\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (head(3, "Transfer-Encoding: chunked"), 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a:b\r\n" * 13_200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 66_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 66_000, 431),
        (b"GET /" + b"a" * 66_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
    ],
)
def test_what_is_no_request(served: Served, data: bytes, status: int) -> None:
    found = answers(served, data)
    assert found.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"].keys() == {"code", "message"}


def test_clients_read_why_a_body_was_not_taken(served: Served, keyed: Served) -> None:
    large = bytes(21_000_000)
    assert [by_urllib(served, large) for _ in range(3)] == [(413, "")] * 3
    assert [by_urllib(keyed, large[:9_000_000]) for _ in range(3)] == [(401, "")] * 3
    assert by_urllib(keyed, large, authorization="bearer sesame")[0] == 413
    with connect(keyed) as other:
        other.sendall(head(19_500_000, "Authorization: Bearer sesame") + large[:19_000_000])
        while "sigrl_bytes_in_flight 1.9e+07" not in _metrics(keyed):
            time.sleep(0.02)
        assert [by_urllib(keyed, large[:9_000_000], authorization="BEARER sesame") for _ in range(3)] == [(429, "1")] * 3
    while "sigrl_bytes_in_flight 0.0" not in _metrics(keyed):
        time.sleep(0.02)
    assert 'sigrl_requests_total{method="POST",route="/v1/tag",status="401"} 3.0' in _metrics(keyed)


def _metrics(served: Served) -> str:
    return httpx.get(f"{served.url}/metrics", headers={"authorization": "Bearer sesame"}, timeout=_SECONDS).text


def test_a_client_that_asks_first_need_not_send(served: Served) -> None:
    found = answers(served, head(21_000_000, "Expect: 100-continue"))
    assert found.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in found


def test_a_connection_outlives_a_body_that_was_not_read(served: Served) -> None:
    with httpx.Client(base_url=served.url, timeout=_SECONDS) as client:
        streams = []
        for kind in ("text/plain", "image/jpeg"):
            answer = client.post("/v1/tag", content=bytes(21_000_000), headers={"content-type": kind})
            streams.append(answer.extensions["network_stream"].get_extra_info("client_addr"))
        assert streams[0] == streams[1]


def test_announced_bytes_take_no_room(keyed: Served, photos: list[Path]) -> None:
    with ExitStack() as stack:
        for _ in range(13):
            connection = stack.enter_context(connect(keyed))
            connection.sendall(head(19_999_000, "Authorization: Bearer sesame") + b"abc")
        while "sigrl_bytes_in_flight 39.0" not in _metrics(keyed):
            time.sleep(0.02)
        assert by_urllib(keyed, photos[0].read_bytes(), authorization="Bearer sesame")[0] == 200


def test_uploads_stay_in_memory(keyed: Served, photos: list[Path]) -> None:
    """A form of 3 MB is read by a process that can write no byte to a file."""
    picture = photos[0].read_bytes() + bytes(3_000_000)
    before = resource.prlimit(keyed.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    try:
        files, key = {"picture": ("a.jpg", picture, "image/jpeg")}, {"authorization": "Bearer sesame"}
        assert httpx.post(f"{keyed.url}/v1/tag", files=files, headers=key, timeout=_SECONDS).status_code == 200
    finally:
        resource.prlimit(keyed.process.pid, resource.RLIMIT_FSIZE, before)


def test_later_requests_have_a_time_too(hasty: Served) -> None:
    with connect(hasty) as connection:
        connection.sendall(_LIVE)
        assert connection.makefile("rb").readline() == b"HTTP/1.1 200 OK\r\n"
        connection.sendall(_LIVE[:20])
        while connection.recv(1 << 16):  # until it is closed
            pass


@pytest.mark.parametrize("stray", [b"\r\n", b"a body that nobody reads"])
def test_stray_bytes_keep_no_connection(hasty: Served, stray: bytes) -> None:
    """A byte now and then, and none of them begins a request."""
    with connect(hasty) as connection:
        connection.sendall(_LIVE if stray == b"\r\n" else head(1_000_000, path="/nothing"))
        deadline = time.monotonic() + _SECONDS
        connection.settimeout(0.2)
        while time.monotonic() < deadline:
            try:
                connection.sendall(stray)
                if connection.recv(1 << 16) == b"":
                    return
            except TimeoutError:
                continue
            except ConnectionError:
                return
    raise AssertionError("the connection is open still")


def test_answers_that_nobody_reads_are_dropped(hasty: Served) -> None:
    """Each is more than the system keeps for a connection; they go after --body-seconds, although their clients stay."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), np.uint8)).save(file, "JPEG")
    pictures = [base64.b64encode(file.getvalue()).decode()] * 8
    body = json.dumps({"pictures": pictures, "top": 40, "heatmaps": True}).encode()
    before = connections(hasty)
    with ExitStack() as stack:
        for kind in ("close", "keep-alive"):  # the first waits for its end to be read, the second for all of it
            connection = stack.enter_context(connect(hasty, room=4096))
            asked = head(len(body), f"Connection: {kind}", path="/v1/tags").replace(b"image/jpeg", b"application/json")
            connection.sendall(asked + body)
            assert connection.recv(12) == b"HTTP/1.1 200"
        wait_for_connections(hasty, before)


def test_connections_without_end(hasty: Served) -> None:
    """More than the process may have files: the others get in as soon as their time is up, and the log stays short."""
    said = len(hasty.said)
    with ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(connect(hasty)).sendall(b"GET")
        deadline = time.monotonic() + _SECONDS
        while True:
            try:
                assert httpx.get(f"{hasty.url}/health/ready", timeout=_SECONDS).status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    assert len(hasty.said) <= said + 1, hasty.said[said:]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "[::1]:8000", "192.0.2.7:80"])
def test_hosts_that_nobody_can_fake(client: httpx.Client, host: str) -> None:
    assert client.get("/info", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["example.org", "localhost.example.org:8000", "127.0.0.1.example.org", "[::1].example.org"])
def test_names_of_other_machines_are_refused_here(client: httpx.Client, host: str) -> None:
    """A page of such a name, which its owner lets lead here, would be of this origin to a browser."""
    answer = client.get("/info", headers={"host": host})
    assert (answer.status_code, answer.json()["error"]["code"]) == (421, "host")


def test_a_service_with_a_key_has_any_name(keyed: Served) -> None:
    headers = {"host": "example.org", "authorization": "Bearer sesame"}
    assert httpx.get(f"{keyed.url}/info", headers=headers).status_code == 200


def test_headers_for_browsers(client: httpx.Client) -> None:
    for path in ("/", "/page/page.js", "/info", "/nothing"):
        found = client.get(path).headers
        assert found["x-content-type-options"] == "nosniff"
        policy = found["content-security-policy"].split("; ")
        assert {"default-src 'self'", "form-action 'none'", "frame-ancestors 'none'"} <= set(policy)
        assert found.get("cache-control") == (None if path in ("/info", "/nothing") else "no-cache")


@pytest.mark.parametrize("path", ["/", "/health/live", "/health/ready"])
def test_head(client: httpx.Client, path: str) -> None:
    found, expected = client.head(path), client.get(path)
    assert (found.status_code, found.content) == (200, b"")
    assert found.headers["content-length"] == str(len(expected.content))


def test_files_of_the_page_are_counted_together(client: httpx.Client) -> None:
    client.get("/page/page.js")
    assert 'sigrl_requests_total{method="GET",route="/page",status="200"}' in client.get("/metrics").text


def test_a_bug_is_an_answer_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    """With its headers, its status in the metrics, and one traceback in the log."""
    app, metrics = FastAPI(), Metrics()
    app.add_middleware(Guard, metrics=metrics, body_seconds=1.0, api_key=None, local=True)

    @app.get("/bug")
    async def bug() -> None:
        raise KeyError("a bug")

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            return await client.get("/bug")

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "bug")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert 'sigrl_requests_total{method="GET",route="/bug",status="500"} 1.0' in metrics.text(0, 0).decode()
    assert 'sigrl_errors_total{code="bug"} 1.0' in metrics.text(0, 0).decode()
    logged = [record.message for record in caplog.records if record.name != "sigrl_deploy.access"]
    assert logged == ["a request failed"]
