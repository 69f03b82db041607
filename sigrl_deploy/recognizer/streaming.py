"""A run over many pictures: decoding runs ahead of inference, and a picture that cannot be read costs only that picture."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.errors import ImageError, UsageError, kind_of, printable
from sigrl_deploy.pictures.crops import View
from sigrl_deploy.pictures.reading import name_of
from sigrl_deploy.pictures.reading_ahead import batches, read_ahead
from sigrl_deploy.recognizer.predictions import Prediction, Record

log = logging.getLogger(__name__)

Predict = Callable[[Iterable[list[View]]], Iterator[list[tuple[FloatArray, tuple[Prediction, ...]]]]]

Content: TypeAlias = str | bytes | Callable[[], bytes]  # a path, a picture file's bytes, or what reads those
Picture: TypeAlias = "str | os.PathLike[str] | tuple[str, Content]"


def stream_records(
    pictures: Iterable[Picture],
    read: Callable[[str | bytes], View],
    predict: Predict,
    *,
    batch_size: int,
    threads: int,
    not_finite: str,
) -> Iterator[Record]:
    """A record for each picture, in order. Memory is bounded by the batch size, not by the number of pictures.

    Args:
        pictures: paths, or names with contents.
        read: one path, or the bytes of a file → its view; raises ImageError. Called from several threads.
        predict: batches of views → scores [C] and predictions of each picture of each batch.
        batch_size: pictures per batch.
        threads: how many may decode.
        not_finite: the error of a picture whose scores are not finite.
    """

    def view_or_error(picture: tuple[str, Content]) -> View | str:
        name, content = picture
        # Only the message is kept: the exception's traceback would keep the half-decoded picture in memory.
        try:
            source = _read(content) if callable(content) else content
            return read(source)
        except ImageError as error:
            log.debug("%s: %r", printable(name), error.__context__ or error)
            return str(error).removeprefix(f"{printable(content if isinstance(content, str) else name_of(b''))}: ")

    decoded = read_ahead(view_or_error, map(_named, pictures), ahead=2 * batch_size, threads=threads)
    with enough_memory(batch_size):
        # A GPU gets the next batch before the predictions of one come back.
        ahead, behind = itertools.tee(batches(decoded, batch_size))
        predicted = predict(_readable(ahead))
        for batch in behind:
            found = iter(next(predicted) if any(not isinstance(view, str) for _, view in batch) else [])
            for (path, _), view in batch:
                if isinstance(view, str):
                    yield Record(path, error=view)
                    continue
                scores, predictions = next(found)
                if np.isfinite(scores).all():
                    yield Record(path, predictions, scores, seen=view.layout.seen, size=view.size)
                else:
                    yield Record(path, error=not_finite)


def _named(picture: object) -> tuple[str, Content]:
    if isinstance(picture, tuple) and len(picture) == 2:
        name, content = picture
        if isinstance(name, str) and (isinstance(content, (str, bytes)) or callable(content)):
            return name, content
    if not isinstance(picture, (str, bytes, os.PathLike)):
        expected = "expected paths, or pairs of a name and bytes; `recognize` takes other pictures"
        raise UsageError(f"holds {kind_of(picture)}, {expected}", argument="paths")
    path = os.fsdecode(picture)
    return path, path


def _read(content: Callable[[], bytes]) -> bytes:
    try:
        return content()
    except OSError as error:
        reason = printable(error.strerror or str(error) or type(error).__name__)
        raise ImageError(f"cannot be opened ({reason}); check the path and its permissions") from error


def _readable(decoded: Iterable[list[tuple[tuple[str, Content], View | str]]]) -> Iterator[list[View]]:
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
