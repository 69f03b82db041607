"""Tagging many pictures: decoding runs beside inference, and a picture that cannot be read costs that picture alone."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.errors import ImageError, UsageError, printable
from sigrl_deploy.model.matching import not_finite
from sigrl_deploy.pictures.reading_ahead import batches, read_ahead
from sigrl_deploy.recognizer import Recognizer, Tag
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """What a run says of one picture: its scores [C] and tags, or why it has none.

    `heatmaps`, where asked for: the file drawn for each tag, None where the picture could not be read a second time.
    """

    path: str
    tags: tuple[Tag, ...] = ()
    scores: FloatArray | None = None
    error: str | None = None
    heatmaps: tuple[str | None, ...] = ()


def tag_pictures(
    recognizer: Recognizer,
    vocabulary: Vocabulary,
    paths: Sequence[str],
    *,
    batch_size: int = 1,
    top: int = 5,
    threshold: float | None = None,
    evidence: bool = False,
) -> Iterator[Record]:
    """A record for every path, in order. Memory is bounded by the batch size, not by the number of pictures.

    Raises UsageError for `evidence` where the architecture matches no patches, and where memory does not hold a batch.
    """
    try:
        yield from _tag(recognizer, vocabulary, paths, batch_size, top, threshold, evidence)
    except MemoryError:
        advice = "give a smaller one" if batch_size > 1 else "free some"
        raise UsageError(f"--batch-size {batch_size}: there is not enough memory; {advice}") from None


def _tag(
    recognizer: Recognizer,
    vocabulary: Vocabulary,
    paths: Sequence[str],
    batch_size: int,
    top: int,
    threshold: float | None,
    evidence: bool,
) -> Iterator[Record]:
    pixels_of = partial(_pixels, recognizer)
    read = batches(read_ahead(pixels_of, paths, ahead=2 * batch_size, threads=recognizer.threads), batch_size)
    # A GPU gets the next batch before the tags of one come back.
    ahead, behind = itertools.tee(read)
    tagged = recognizer.tag_batches(_readable(ahead), vocabulary, top, threshold, evidence)
    for batch in behind:
        found = iter(next(tagged) if any(not isinstance(pixels, str) for _, pixels in batch) else [])
        for path, pixels in batch:
            if isinstance(pixels, str):
                yield Record(path, error=pixels)
                continue
            scores, tags = next(found)
            if np.isfinite(scores).all():
                yield Record(path, tuple(tags), scores)
            else:
                yield Record(path, error=not_finite(recognizer.engine.precision.value))


def _readable(read: Iterable[list[tuple[str, Pixels | str]]]) -> Iterator[Pixels]:
    """The pictures [B, 3, H, W] of each batch that has some."""
    for batch in read:
        pictures = [pixels for _, pixels in batch if not isinstance(pixels, str)]
        if pictures:
            yield np.stack(pictures)


def _pixels(recognizer: Recognizer, path: str) -> Pixels | str:
    # The message alone: the exception's traceback would keep the half-decoded picture in memory.
    try:
        return recognizer.pixels(path)
    except ImageError as error:
        log.debug("%s: %r", printable(path), error.__context__ or error)
        return str(error).removeprefix(f"{printable(path)}: ")
