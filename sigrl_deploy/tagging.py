"""Tagging many pictures: decoding runs beside inference, and a picture that cannot be read costs that picture alone."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.errors import ImageError, printable
from sigrl_deploy.recognizer import Recognizer, Tag, best_tags
from sigrl_deploy.vocabulary import Vocabulary

Pixels = NDArray[np.float32]
Decoded = tuple[str, Pixels | str]  # a path with its pixels, or with why it could not be read


@dataclass(frozen=True)
class Record:
    """What a run says of one picture: its scores [C] and tags, or why it could not be read."""

    path: str
    tags: tuple[Tag, ...] = ()
    scores: NDArray[np.float32] | None = None
    error: str | None = None


def tag_pictures(
    recognizer: Recognizer,
    vocabulary: Vocabulary,
    paths: Sequence[str],
    *,
    batch_size: int = 1,
    top: int = 5,
    threshold: float | None = None,
) -> Iterator[Record]:
    """A record for every path, in order. Memory is bounded by the batch size, not by the number of pictures."""
    for batch in _batches(_decoded(recognizer, paths, ahead=2 * batch_size), batch_size):
        readable = [pixels for _, pixels in batch if not isinstance(pixels, str)]
        scores = iter(recognizer.score_pixels(np.stack(readable), vocabulary)) if readable else iter(())
        for path, pixels in batch:
            if isinstance(pixels, str):
                yield Record(path, error=pixels)
            else:
                row = next(scores)
                yield Record(path, tuple(best_tags(row, vocabulary, top, threshold)), row)


def _decoded(recognizer: Recognizer, paths: Iterable[str], ahead: int) -> Iterator[Decoded]:
    """Pictures decoded and preprocessed by threads, at most `ahead` of them waiting."""
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    waiting: deque[tuple[str, Future[Pixels | str]]] = deque()
    remaining = iter(paths)
    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            while True:
                for path in itertools.islice(remaining, max(ahead, workers) - len(waiting)):
                    waiting.append((path, pool.submit(_pixels, recognizer, path)))
                if not waiting:
                    return
                path, future = waiting.popleft()
                yield path, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _pixels(recognizer: Recognizer, path: str) -> Pixels | str:
    # The message alone: the exception's traceback would keep the half-decoded picture in memory.
    try:
        return recognizer.pixels(path)
    except ImageError as error:
        return str(error).removeprefix(f"{printable(path)}: ")


def _batches(decoded: Iterator[Decoded], batch_size: int) -> Iterator[list[Decoded]]:
    while batch := list(itertools.islice(decoded, batch_size)):
        yield batch
