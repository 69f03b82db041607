"""Pictures read by threads ahead of the model: in order, and in bounded memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sigrl_deploy.machine import cpus

MOST_THREADS = 8
Item = TypeVar("Item")
Result = TypeVar("Result")


def read_ahead(
    read: Callable[[Item], Result], items: Iterable[Item], ahead: int, threads: int | None = None
) -> Iterator[tuple[Item, Result]]:
    """Each item with `read(item)`, in the order of `items`. An exception of `read` is raised when its item's turn comes, an
    exception of `items` after the items before it.

    Args:
        ahead: results that may be waiting or in progress; at least one per thread.
        threads: the CPU threads of this process by default, MOST_THREADS at most.
    """
    workers = min(MOST_THREADS, threads or cpus.threads())
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    remaining = iter(items)
    failure: Exception | None = None
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                try:
                    for item in itertools.islice(remaining, max(ahead, workers) - len(waiting)):
                        waiting.append((item, pool.submit(read, item)))
                except Exception as error:
                    failure, remaining = error, iter(())
                if not waiting:
                    if failure is not None:
                        raise failure
                    return
                item, future = waiting.popleft()
                yield item, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def batches(items: Iterable[Item], batch_size: int) -> Iterator[list[Item]]:
    """Lists of `batch_size` items; the last one may be shorter."""
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, batch_size)):
        yield batch
