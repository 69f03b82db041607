"""The service when everything comes at once: crowds, broken pictures, slow and vanishing clients, signals."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.servers import Served, serving

_SECONDS = 300  # for anything to be answered, on machines that are slow


@pytest.fixture
def crowded(bundle: Path, label_file: Path, kitchen: Path) -> Iterator[Served]:
    options = ["--labels", f"everyday={label_file}", "--labels", f"kitchen={kitchen}", "--queue", "40"]
    with serving(bundle, *options, "--answer-seconds", str(_SECONDS)) as server:
        yield server


async def ask(served: Served, body: bytes, path: str = "/v1/tag") -> tuple[int, bytes]:
    """POST a picture over a connection of its own → status and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(served.url.rsplit(":", 1)[1]))
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: image/jpeg\r\n"
        head += f"Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = await asyncio.wait_for(reader.read(), _SECONDS)
    finally:
        writer.close()
    head, _, rest = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), rest


async def crowd(served: Served, bodies: list[bytes]) -> list[tuple[int, bytes]]:
    return await asyncio.gather(*(ask(served, body) for body in bodies))


def resident(served: Served) -> int:
    """Bytes in memory."""
    lines = Path(f"/proc/{served.process.pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def figure(served: Served, name: str) -> float:
    lines = httpx.get(f"{served.url}/metrics", timeout=_SECONDS).text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).rsplit(" ", 1)[1])


def test_a_thousand_at_once(crowded: Served, photos: list[Path]) -> None:
    """Each is answered: with tags, or with 429 and when to try again."""
    found = asyncio.run(crowd(crowded, [photos[i % 4].read_bytes() for i in range(1000)]))
    counts = Counter(status for status, _ in found)
    assert counts.keys() == {200, 429}, counts
    assert counts[200] >= 40
    assert all(json.loads(body)["error"]["code"] == "overloaded" for status, body in found if status == 429)
    tags = [json.loads(body)["tags"] for status, body in found if status == 200]
    # The last digits depend on what else is in a batch.
    assert len({tuple((tag["label"], round(tag["score"], 5)) for tag in each) for each in tags}) == 4  # four pictures
    assert httpx.get(f"{crowded.url}/health/ready").status_code == 200
    assert figure(crowded, "sigrl_waiting_pictures") == 0


def test_one_in_four_is_no_picture(crowded: Served, photos: list[Path]) -> None:
    good, bad = photos[0].read_bytes(), photos[1].read_bytes()[:5000]
    found = asyncio.run(crowd(crowded, [bad if i % 4 == 0 else good for i in range(40)]))
    assert [status for status, _ in found] == [422 if i % 4 == 0 else 200 for i in range(40)]


def test_clients_that_trickle_and_that_leave(crowded: Served, photos: list[Path]) -> None:
    """A hundred that send nothing more and a hundred that are gone before the answer cost the others nothing."""
    picture = photos[0].read_bytes()
    port = int(crowded.url.rsplit(":", 1)[1])

    async def run() -> list[tuple[int, bytes]]:
        half_open = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
        for _, writer in half_open:
            writer.write(
                b"POST /v1/tag HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\nabc"
            )
        for _ in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            head = b"POST /v1/tag HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
            writer.write(head + b"Content-Length: %d\r\n\r\n" % len(picture) + picture)
            await writer.drain()
            writer.close()
        answers = []
        while len(answers) < 10:
            answer = await ask(crowded, picture)
            answers += [answer] * (answer[0] == 200)
        for _, writer in half_open:
            writer.close()
        return answers

    assert len(asyncio.run(run())) == 10
    deadline = time.monotonic() + _SECONDS
    while figure(crowded, "sigrl_waiting_pictures") or figure(crowded, "sigrl_bytes_in_flight"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_large_bodies_stay_within_the_bound(bundle: Path, label_file: Path, photos: list[Path]) -> None:
    """Sixty bodies of 19 MB where 60 MB may be in flight: memory stays within that, and what two copies of a body take."""
    body = photos[0].read_bytes() + b"\0" * 19_000_000  # a JPEG may have anything behind its end
    with serving(bundle, "--labels", f"everyday={label_file}", "--in-flight-mb", "60") as server:
        asyncio.run(crowd(server, [photos[0].read_bytes()] * 8))
        before, most = resident(server), 0

        async def run() -> list[tuple[int, bytes]]:
            nonlocal most
            asking = asyncio.gather(*(ask(server, body) for _ in range(60)), return_exceptions=True)
            while not asking.done():
                most = max(most, resident(server))
                await asyncio.sleep(0.01)
            return await asking

        # A refusal may reach a client that still sends as a closed connection.
        found = Counter(answer[0] if isinstance(answer, tuple) else type(answer) for answer in asyncio.run(run()))
        assert found[200] >= 1, found
        assert set(found) <= {200, 429, ConnectionResetError, BrokenPipeError, IndexError}, found
        assert most - before < 200e6
        assert httpx.get(f"{server.url}/health/ready").status_code == 200


def test_no_vocabulary_starves(crowded: Served, photos: list[Path]) -> None:
    """While one is asked for without end, the other is answered after what was there before."""
    picture = photos[0].read_bytes()

    async def run() -> int:
        done = 0

        async def flood() -> None:
            nonlocal done
            while True:
                status, _ = await ask(crowded, picture, "/v1/tag?vocabulary=everyday")
                done += status == 200

        flooding = [asyncio.ensure_future(flood()) for _ in range(16)]
        while done < 16:
            await asyncio.sleep(0.001)
        before, waited = done, []
        for _ in range(5):
            assert (await ask(crowded, picture, "/v1/tag?vocabulary=kitchen"))[0] == 200
            waited.append(done - before)
            before = done
        for task in flooding:
            task.cancel()
        return max(waited)

    assert asyncio.run(run()) <= 64  # four rounds of the crowd; it would be without end


def test_sigterm_answers_what_it_has_taken(bundle: Path, label_file: Path, photos: list[Path]) -> None:
    options = ["--labels", f"everyday={label_file}", "--queue", "100", "--answer-seconds", str(_SECONDS)]
    with serving(bundle, *options) as server:

        async def run() -> list[tuple[int, bytes]]:
            asking = asyncio.gather(*(ask(server, photos[i % 4].read_bytes()) for i in range(64)))
            while await asyncio.to_thread(figure, server, "sigrl_waiting_pictures") < 32:
                await asyncio.sleep(0)
            server.process.send_signal(signal.SIGTERM)
            return await asking

        found = asyncio.run(run())
        assert [status for status, _ in found] == [200] * 64
        assert server.process.wait(_SECONDS) == 0


def test_a_killed_service_starts_again(bundle: Path, label_file: Path, photos: list[Path]) -> None:
    options = ["--labels", f"everyday={label_file}"]
    answers = []
    for _ in range(2):
        with serving(bundle, *options) as server:
            answers.append(asyncio.run(ask(server, photos[0].read_bytes())))
            server.stop(signal.SIGKILL)
    assert answers[0] == answers[1]
    assert answers[0][0] == 200


def test_memory_stays_flat(bundle: Path, label_file: Path, photos: list[Path]) -> None:
    """After a warm-up, 400 more pictures leave nothing behind."""
    with serving(bundle, "--labels", f"everyday={label_file}") as server:
        pictures = [path.read_bytes() for path in photos]

        async def some(count: int, start: int) -> None:
            for i in range(start, start + count, 8):
                await asyncio.gather(*(ask(server, pictures[(i + k) % 4]) for k in range(8)))

        asyncio.run(some(160, 0))
        before = resident(server)
        asyncio.run(some(400, 160))
        assert resident(server) - before < 20e6


def test_nobody_encodes_labels_for_clients_that_left(crowded: Served, photos: list[Path]) -> None:
    """Their bytes are free again, and others do not wait for them."""
    encoded = 'sigrl_stage_seconds_count{stage="encoding"}'
    before, picture = figure(crowded, encoded), base64.b64encode(photos[0].read_bytes()).decode()

    async def leave() -> None:
        writers = []
        for i in range(12):
            body = json.dumps({"picture": picture, "labels": [f"thing {i} {j}" for j in range(2000)]}).encode()
            _, writer = await asyncio.open_connection("127.0.0.1", int(crowded.url.rsplit(":", 1)[1]))
            head = "POST /v1/tag HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + body)
            await writer.drain()
            writers.append(writer)
        while figure(crowded, "sigrl_bytes_in_flight") < 12 * len(picture):
            await asyncio.sleep(0.01)
        for writer in writers:
            writer.transport.abort()

    asyncio.run(leave())
    asked = {"picture": picture, "labels": ["cat", "rocket"]}
    assert httpx.post(f"{crowded.url}/v1/tag", json=asked, timeout=_SECONDS).status_code == 200
    assert figure(crowded, encoded) - before < 6  # of 13; some had begun
    assert figure(crowded, "sigrl_bytes_in_flight") == 0
