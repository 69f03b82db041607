"""Put a service under load from a process of its own: `python -m benchmarks.serving.load URL --clients 64 --seconds 10`.

Each client sends one picture after another over a connection of its own, for so many seconds, and waits for its last answer.
One that is told to come later (429 with Retry-After) does so with the same picture; one that has waited --patience seconds
leaves. The last line of the output is the result, as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import random
import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools
import numpy as np

from benchmarks.workload import real_files


@dataclass
class Found:
    """What the clients have seen: seconds of each answered request, and of the picture, with refusals and waits before it.

    `in_time` counts the answers that came while clients still sent.
    """

    in_time: int = 0
    answers: list[float] = field(default_factory=list)
    pictures: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)


class Answer(asyncio.Protocol):
    """One connection: `ask` gives the status and headers of the next answer."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[tuple[int, dict[str, str]]] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_message_complete(self) -> None:
        answer = self._parser.get_status_code(), self._headers
        # A parser serves several answers, but keeps what it was told of the connection's end.
        self._parser, self._headers = httptools.HttpResponseParser(self), {}
        if self._waiting and not self._waiting.done():
            self._waiting.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("closed"))

    async def ask(self, request: bytes) -> tuple[int, dict[str, str]]:
        if self.transport.is_closing():
            raise ConnectionError("closed")
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self._waiting


async def client(address: tuple[str, int], requests: Any, until: float, patience: float, found: Found) -> None:
    """Send pictures until the time is over."""
    connection: Answer | None = None
    while time.perf_counter() < until:
        request, began = next(requests), time.perf_counter()
        while True:
            start = time.perf_counter()
            try:
                if connection is None:
                    _, connection = await asyncio.get_running_loop().create_connection(Answer, *address)
                status, headers = await asyncio.wait_for(connection.ask(request), began + patience - start)
            except (OSError, asyncio.TimeoutError) as error:
                found.statuses["left" if isinstance(error, asyncio.TimeoutError) else "closed"] += 1
                if connection is not None:
                    connection.transport.abort()
                connection = None
                break
            found.statuses[str(status)] += 1
            if status == 200:
                found.in_time += time.perf_counter() < until
                found.answers.append(time.perf_counter() - start)
                found.pictures.append(time.perf_counter() - began)
            elif status == 429:
                # Spread: together they would only meet again.
                await asyncio.sleep(float(headers.get("retry-after", 1)) * random.uniform(0.5, 1.5))
                if time.perf_counter() < until:
                    continue
            break
    if connection is not None:
        connection.transport.abort()


async def load(url: str, clients: int, seconds: float, patience: float) -> dict[str, Any]:
    """Run the clients, and wait for their last answers, whose latencies count too."""
    place = urlsplit(url)
    requests, found = itertools.cycle(bodies(place.path, place.netloc)), Found()
    start = time.perf_counter()
    until = start + seconds
    address = str(place.hostname), int(place.port or 80)
    await asyncio.gather(*(client(address, requests, until, patience, found) for _ in range(clients)))
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "clients": clients,
        "per_second": round(found.in_time / seconds, 2),
        "answer_ms": percentiles(found.answers),
        "picture_ms": percentiles(found.pictures),
        "statuses": dict(sorted(found.statuses.items())),
        "client_cpu_seconds": round(used.ru_utime + used.ru_stime, 2),
    }


def bodies(path: str, host: str) -> list[bytes]:
    """A request for each of the package's pictures, in JSON, which all services take."""
    made = []
    for file in real_files():
        body = json.dumps({"picture": base64.b64encode(file.read_bytes()).decode()}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        made.append(head.encode() + body)
    return made


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in ms."""
    if not seconds:
        return {}
    return {
        name: round(1000 * float(value), 2)
        for name, value in zip(("p50", "p99"), np.percentile(seconds, (50, 99)), strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--patience", type=float, default=30)
    args = parser.parse_args()
    print(json.dumps(asyncio.run(load(args.url, args.clients, args.seconds, args.patience))))


if __name__ == "__main__":
    main()
