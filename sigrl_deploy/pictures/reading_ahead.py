"""Reading pictures in threads ahead of the model, in order and in bounded memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sigrl_deploy.machine import cpus

MOST_DECODING = 8  # threads
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], ahead: int, threads: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Each item with what `read` makes of it, in order. Threads read, and at most `ahead` results are waiting."""
    workers = min(MOST_DECODING, threads or cpus.threads())
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    remaining = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                for item in itertools.islice(remaining, max(ahead, workers) - len(waiting)):
                    waiting.append((item, pool.submit(read, item)))
                if not waiting:
                    return
                item, future = waiting.popleft()
                yield item, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def batches(items: Iterator[Item], batch_size: int) -> Iterator[list[Item]]:
    """Lists of `batch_size` items, the last one of what is left."""
    while batch := list(itertools.islice(items, batch_size)):
        yield batch
