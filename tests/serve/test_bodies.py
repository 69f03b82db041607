"""Room for bodies, shared by requests whose bodies come at the same time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from sigrl_deploy.serve.bodies import Admission, read_raw
from sigrl_deploy.serve.errors import OverloadedError
from sigrl_deploy.serve.limits import Limits

PART, PARTS = b"x" * 10, 4


def request() -> Request:
    """A request whose body comes in parts, one in each turn of the loop."""
    left = PARTS

    async def receive() -> dict[str, object]:
        nonlocal left
        await asyncio.sleep(0)
        left -= 1
        return {"type": "http.request", "body": PART, "more_body": left > 0}

    headers = [(b"content-length", str(len(PART) * PARTS).encode())]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def test_requests_that_come_at_once_do_not_all_refuse_each_other() -> None:
    """Twenty bodies of 40 bytes where there is room for two and a half: when it is full, each of them has a part of it."""
    admission = Admission(100)

    async def read() -> bytes:
        with admission.reserved() as room:
            return await read_raw(request(), Limits(), room)

    async def run() -> list[bytes | BaseException]:
        return await asyncio.gather(*(read() for _ in range(20)), return_exceptions=True)

    found = asyncio.run(run())
    answered = [each for each in found if isinstance(each, bytes)]
    assert answered == [PART * PARTS] * len(answered)
    assert len(answered) >= 2
    assert all(isinstance(each, (bytes, OverloadedError)) for each in found)
    assert admission.bytes == 0
