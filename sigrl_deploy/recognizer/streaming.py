"""A run over many pictures: decoding runs ahead of inference, and a picture that cannot be read costs only that picture."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.errors import ImageError, UsageError, kind_of, printable
from sigrl_deploy.pictures.crops import View
from sigrl_deploy.pictures.reading_ahead import batches, read_ahead
from sigrl_deploy.recognizer.predictions import Prediction, Record

log = logging.getLogger(__name__)

Predict = Callable[[Iterable[list[View]]], Iterator[list[tuple[FloatArray, tuple[Prediction, ...]]]]]


def stream_records(
    paths: Iterable[str | os.PathLike[str]],
    read: Callable[[str], View],
    predict: Predict,
    *,
    batch_size: int,
    threads: int,
    not_finite: str,
) -> Iterator[Record]:
    """A record for each path, in order. Memory is bounded by the batch size, not by the number of pictures.

    Args:
        paths: the pictures.
        read: one path → its view; raises ImageError. Called from several threads.
        predict: batches of views → scores [C] and predictions of each picture of each batch.
        batch_size: pictures per batch.
        threads: how many may decode.
        not_finite: the error of a picture whose scores are not finite.
    """

    def view_or_error(path: str) -> View | str:
        # Only the message is kept: the exception's traceback would keep the half-decoded picture in memory.
        try:
            return read(path)
        except ImageError as error:
            log.debug("%s: %r", printable(path), error.__context__ or error)
            return str(error).removeprefix(f"{printable(path)}: ")

    decoded = read_ahead(view_or_error, map(_as_text, paths), ahead=2 * batch_size, threads=threads)
    with enough_memory(batch_size):
        # A GPU gets the next batch before the predictions of one come back.
        ahead, behind = itertools.tee(batches(decoded, batch_size))
        predicted = predict(_readable(ahead))
        for batch in behind:
            found = iter(next(predicted) if any(not isinstance(view, str) for _, view in batch) else [])
            for path, view in batch:
                if isinstance(view, str):
                    yield Record(path, error=view)
                    continue
                scores, predictions = next(found)
                if np.isfinite(scores).all():
                    yield Record(path, predictions, scores, seen=view.layout.seen, size=view.size)
                else:
                    yield Record(path, error=not_finite)


def _as_text(path: object) -> str:
    if not isinstance(path, (str, bytes, os.PathLike)):
        raise UsageError(f"holds {kind_of(path)}, expected paths; `recognize` takes other pictures", argument="paths")
    return os.fsdecode(path)


def _readable(decoded: Iterable[list[tuple[str, View | str]]]) -> Iterator[list[View]]:
    """The pictures of each batch that has some."""
    for batch in decoded:
        views = [view for _, view in batch if not isinstance(view, str)]
        if views:
            yield views


@contextmanager
def enough_memory(batch_size: int) -> Iterator[None]:
    """A MemoryError in the block becomes a UsageError that says which batch size did not fit."""
    try:
        yield
    except MemoryError:
        advice = "choose a smaller one" if batch_size > 1 else "free some"
        raise UsageError(f"there is not enough memory; {advice}", argument="batch_size", value=batch_size) from None
