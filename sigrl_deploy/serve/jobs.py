"""One picture on its way through the service, and the work on it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from sigrl_deploy.errors import ImageError, ScoreError, printable
from sigrl_deploy.model import matching
from sigrl_deploy.pictures.crops import Box, View
from sigrl_deploy.pictures.reading import name_of, read_image
from sigrl_deploy.pictures.reading_ahead import MOST_THREADS
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.pipeline import Pipeline, Tagged
from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.recognizer.selection import Selection
from sigrl_deploy.serve.errors import EngineError
from sigrl_deploy.serve.metrics import Observer, Stage
from sigrl_deploy.tagging.drawing import MAX_PANEL, MIN_PANEL, scaled
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_NAME = "picture"


@dataclass(frozen=True)
class Answer:
    """What is said of one picture.

    Attributes:
        predictions: best first.
        size: width and height of the upright picture in pixels.
        seen: the part that the model was shown, in pixels of the upright picture; see `Record.seen`.
        picture: where evidence was asked for, the upright picture in RGB, scaled to the size of a heat map.
        box: `seen` in pixels of `picture`, for `drawing.heat`; None without a picture.
    """

    predictions: tuple[Prediction, ...]
    size: tuple[int, int]
    seen: Box
    picture: Image.Image | None = field(default=None, repr=False, compare=False)
    box: Box | None = field(default=None, repr=False, compare=False)


@dataclass(eq=False)
class Job:
    """A picture that is to be tagged. One thread at a time has it; the caller may cancel its `answer` until it has begun.

    `view`, `drawn`, the picture of a heat map with its box, and `decoding`, seconds, are there once it is decoded.
    """

    picture: bytes
    vocabulary: Vocabulary
    selection: Selection
    arrived: float = field(default_factory=time.monotonic)
    answer: Future[Answer] = field(default_factory=Future)
    view: View | None = None
    drawn: tuple[Image.Image, Box] | None = None
    decoding: float = 0.0
    begun: bool = False

    def begin(self) -> bool:
        """Whether it is still wanted. From now on it cannot be cancelled."""
        if not self.begun and not self.answer.cancelled():
            self.begun = self.answer.set_running_or_notify_cancel()
        return self.begun and not self.answer.done()

    def fail(self, error: Exception) -> None:
        """Raise this for the caller, if that still waits."""
        if self.begin():
            self.answer.set_exception(error)

    def succeed(self, predictions: tuple[Prediction, ...]) -> None:
        """Answer the caller."""
        assert self.view is not None
        self.answer.set_result(Answer(predictions, self.view.size, self.view.layout.seen, *(self.drawn or ())))


class EngineDiedError(Exception):
    """The engine no longer runs what it has run before."""


class Work:
    """What is done with jobs. Threads may share it."""

    def __init__(self, recognizer: Recognizer, observer: Observer) -> None:
        self._recognizer = recognizer
        self._observer = observer
        self._known_good: Job | None = None
        # Each may take a gigabyte, on machines of whatever many cores.
        self._decoders = threading.BoundedSemaphore(MOST_THREADS)

    def decode(self, job: Job) -> bool:
        """Make the view of a picture. Returns False where its caller has left or it cannot be read, which is its answer."""
        if job.answer.cancelled():
            return False
        with self._decoders:
            return self._decode(job)

    def _decode(self, job: Job) -> bool:
        start = time.perf_counter()
        try:
            if job.selection.evidence:
                picture = read_image(job.picture, _NAME)
                job.view = self._recognizer.view(picture)
                # Scaled here, where few are in memory at once: a picture may have 128 megapixels.
                job.drawn = scaled(picture, job.view.layout.seen, MIN_PANEL, MAX_PANEL)
            else:
                job.view = self._recognizer.view(job.picture)
        # New exceptions: the traceback of the first would keep the half-decoded picture in memory.
        except ImageError as error:
            line = str(error).removeprefix(f"{name_of(job.picture)}: ").removeprefix(f"{_NAME}: ")
            job.fail(ImageError(f"{_NAME}: {line}"))
            return False
        except Exception as error:
            log.error("a picture could not be prepared", exc_info=error)
            job.fail(EngineError(f"{_NAME}: could not be prepared ({line_of(error)}); try again"))
            return False
        job.picture = b""
        job.decoding = time.perf_counter() - start
        self._observer.stage(Stage.DECODING, job.decoding)
        return True

    def score(self, jobs: Sequence[Job], pipeline: Pipeline | None = None) -> None:
        """Answer decoded jobs of one vocabulary, as one batch. Where that fails, each is run again by itself.

        `pipeline` takes the place of the recognizer's.

        Raises EngineDiedError where not even what was run before runs now.
        """
        wanted = [job for job in jobs if job.begin()]
        if not wanted:
            return
        now = time.monotonic()
        for job in wanted:
            self._observer.stage(Stage.WAITING, now - job.arrived - job.decoding)
        self._observer.batch(len(wanted))
        self._score(wanted, pipeline or self._recognizer.pipeline)

    def _score(self, jobs: Sequence[Job], pipeline: Pipeline) -> None:
        try:
            tagged = self._tag(jobs, pipeline)
        except Exception as error:
            if len(jobs) == 1:
                self._failed(jobs[0], error, pipeline)
                return
            log.warning("a batch of %d pictures failed (%s); each is run by itself", len(jobs), line_of(error))
            for job in jobs:
                self._score([job], pipeline)
            return
        for job, (scores, predictions) in zip(jobs, tagged, strict=True):
            self._answer(job, bool(np.isfinite(scores).all()), predictions)

    def _tag(self, jobs: Sequence[Job], pipeline: Pipeline) -> list[Tagged]:
        start = time.perf_counter()
        views = [job.view for job in jobs if job.view is not None]
        tagged = pipeline.tag(views, jobs[0].vocabulary, [job.selection for job in jobs])
        self._observer.stage(Stage.SCORING, time.perf_counter() - start)
        return tagged

    def _answer(self, job: Job, finite: bool, predictions: tuple[Prediction, ...]) -> None:
        if not finite:
            line = matching.not_finite(self._recognizer.engine.precision.value)
            job.fail(ScoreError(f"{_NAME}: {line}"))
            return
        self._known_good = Job(b"", job.vocabulary, job.selection, view=job.view)
        job.succeed(predictions)

    def _failed(self, job: Job, error: Exception, pipeline: Pipeline) -> None:
        """Answer a job that failed by itself, and see whether that was the job's fault or the engine's."""
        if isinstance(error, (ImageError, ScoreError)):
            job.fail(error)
            return
        log.error("a picture could not be scored", exc_info=error)
        if self._known_good is None:
            job.fail(EngineError(f"{_NAME}: could not be scored ({line_of(error)})"))
            return
        try:
            self._tag([self._known_good], pipeline)
        except Exception as again:
            raise EngineDiedError(f"the engine no longer runs ({line_of(again)})") from again
        job.fail(EngineError(f"{_NAME}: could not be scored ({line_of(error)}); others can"))


def line_of(error: BaseException) -> str:
    """An error of any kind in one line."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])
