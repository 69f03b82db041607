"""Waiting, on the event loop, for what a thread does."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any


async def finished(futures: Sequence[Future[Any]], seconds: float) -> bool:
    """Wait until all of them are done, or for so many seconds. Returns whether they are. Cancels none of them."""
    loop = asyncio.get_running_loop()
    waiting = [loop.create_future() for future in futures]
    for future, awaited in zip(futures, waiting, strict=True):
        future.add_done_callback(partial(_wake, loop, awaited))
    if waiting:
        await asyncio.wait(waiting, timeout=seconds)
    return all(future.done() for future in futures)


def _wake(loop: asyncio.AbstractEventLoop, awaited: asyncio.Future[None], _: object) -> None:
    with suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(_done, awaited)


def _done(awaited: asyncio.Future[None]) -> None:
    if not awaited.done():
        awaited.set_result(None)
