"""Pictures in, tags out: worker threads around a recognizer, and what waits for them. No HTTP."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from sigrl_deploy.pictures.reading_ahead import MOST_THREADS
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.pipeline import Pipeline
from sigrl_deploy.recognizer.selection import Selection
from sigrl_deploy.serve.errors import OverloadedError, StoppedError, TooLateError
from sigrl_deploy.serve.jobs import Answer, Job, Work, line_of
from sigrl_deploy.serve.lanes import Lanes
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Observer
from sigrl_deploy.serve.waiting import finished
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_BATCH = 16  # pictures of a batch on a GPU
_PATIENCE = 0.004  # seconds that a picture may wait there for others
_SMALL_BATCH = 4  # pictures of a batch on a CPU
_SMALL_SECONDS = 0.06  # that such a batch may take
_STUCK = 2  # times `answer_seconds` that a batch may take before the engine counts as dead
_NEWEST = 0.1  # weight of the newest batch in the mean seconds of a picture


@dataclass(frozen=True)
class Plan:
    """How work is shared out.

    Attributes:
        threads: that decode pictures, and score them too unless `scorer` does.
        batch: pictures of a batch, at most.
        patience: seconds that a picture may wait for others, from its arrival on.
        scorer: whether one more thread scores what the others have decoded, as a GPU wants it.
    """

    threads: int
    batch: int = 1
    patience: float = 0.0
    scorer: bool = False

    @classmethod
    def of(cls, recognizer: Recognizer, threads: int) -> Plan:
        """What is best for a recognizer: large batches on a GPU; on so many threads of a CPU, a picture or a few for each.

        Small models save a fifth of their time in batches of 4 there, large ones lose as much (`benchmarks/serve.py`).
        """
        if recognizer.engine.device == "cpu":
            return cls(threads, _SMALL_BATCH)
        return cls(min(MOST_THREADS, threads), _BATCH, _PATIENCE, scorer=True)


class Tagger:
    """Tags pictures of many callers at once, each with a vocabulary of its own.

    Args:
        recognizer: on a CPU opened with `threads=1`, so that each core has pictures of its own.
        limits: `queue`, `bytes_in_flight` and `answer_seconds` are kept here.
        observer: is told what happens.
        on_death: is called once, from the thread that found it, where a worker thread ends or the engine no longer runs.
            `ready` is False by then, and what waits has raised StoppedError.
        plan: see `Plan.of`.
        alone: the same model on all cores, for pictures that would leave most of them idle; None to do without it.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        limits: Limits,
        observer: Observer,
        on_death: Callable[[BaseException], None],
        plan: Plan,
        alone: Pipeline | None = None,
    ) -> None:
        self._limits, self._observer, self._on_death = limits, observer, on_death
        self._plan, self._alone = plan, alone
        self._work = Work(recognizer, observer)
        self._waiting: Lanes[Job] = Lanes()
        self._decoded: Lanes[Job] = Lanes(room=2 * self._plan.batch)
        self._bytes = 0  # of pictures; changed by the event loop's thread only
        self._pace = 0.0  # seconds from one picture to the next
        self._threads: list[tuple[threading.Thread, Future[None]]] = []
        self._draining = False
        self._death: BaseException | None = None
        self._state = threading.Lock()
        self._decoding = self._plan.threads  # threads that have not ended
        self._began: dict[int, float] = {}  # since when threads have their pictures

    def start(self) -> None:
        """Start the worker threads."""
        if self._plan.scorer:
            roles = [self._decode] * self._plan.threads + [self._score]
        else:
            roles = [self._decode_and_score] * self._plan.threads
        for number, role in enumerate(roles):
            end: Future[None] = Future()
            # Daemons, so that an engine that hangs does not keep the process from ending.
            thread = threading.Thread(target=self._guarded, args=(role, end), name=f"tagger-{number}", daemon=True)
            self._threads.append((thread, end))
        for thread, _ in self._threads:
            thread.start()

    @property
    def ready(self) -> bool:
        """Whether pictures are taken: it was started, is not about to end, and its threads live and get on."""
        return bool(self._threads) and not self._draining and self._death is None and not self._is_stuck()

    def check_room(self, pictures: int = 1) -> None:
        """Raise what `tag` would for so many pictures now: a body that cannot be used need not be read."""
        if not self.ready:
            raise self._stopped()
        self._admit(0, pictures)

    async def tag(self, picture: bytes, vocabulary: Vocabulary, selection: Selection) -> Answer:
        """Tag one picture, given as the bytes of a file. `selection` is one for this vocabulary.

        Only pictures with the same `Vocabulary` object share a batch. A caller that is cancelled takes its picture out of the
        queue.

        Raises:
            ImageError: it is no picture, or cannot be read.
            ScoreError: its scores are not finite.
            EngineError: the engine failed at it, and not at others.
            OverloadedError: at once, where `queue` or `bytes_in_flight` are full.
            TooLateError: it was not done within `answer_seconds`. If it has not begun by then, it is never scored.
            StoppedError: the tagger was not started, is drained, or has died.
        """
        if not self.ready:
            raise self._stopped()
        self._admit(len(picture))
        job, size = Job(picture, vocabulary, selection), len(picture)
        self._bytes += size
        try:
            if not self._waiting.put(job):
                raise self._stopped()
            if not await finished([job.answer], self._limits.answer_seconds):
                seconds = self._limits.answer_seconds
                if self._is_stuck():
                    self._die(RuntimeError(f"has worked on one batch for more than {_STUCK * seconds:g} s"))
                raise TooLateError(f"picture: was not done within {seconds:g} s; try again when there is less to do")
            return job.answer.result()
        finally:
            self._bytes -= size
            if job.answer.cancel():
                self._waiting.discard(job)
                self._decoded.discard(job)

    async def drain(self, seconds: float) -> bool:
        """Take nothing more, answer what waits, and end the threads. Returns whether that was done within `seconds`.

        After them, or at once where a thread is stuck, what still waits raises StoppedError, and a thread that works ends
        with what it has in hand.
        """
        self._draining = True
        self._waiting.close()
        done = await finished([end for _, end in self._threads], 0 if self._is_stuck() else seconds)
        if not done:
            self._drop()
        for thread, end in self._threads:
            if end.done():
                thread.join()
        return done

    def _admit(self, size: int, pictures: int = 1) -> None:
        count, limits = self.waiting, self._limits
        if count + pictures <= limits.queue and self._bytes + size <= limits.bytes_in_flight:
            return
        wait = min(max(1, math.ceil(count * self._pace)), math.ceil(limits.answer_seconds))
        what = "the pictures that wait take all memory set aside for them"
        if count + pictures > limits.queue:
            what = f"{count} pictures wait"
        raise OverloadedError(f"{what}; try again in {wait} s", wait)

    @property
    def waiting(self) -> int:
        """Pictures that wait for the engine."""
        return len(self._waiting) + len(self._decoded)

    def _decode_and_score(self) -> None:
        self._run(self._waiting, self._share, self._decode_and_score_some)

    def _share(self) -> int:
        """How many pictures one of several threads takes: a few of those that take little time, and not another's share."""
        fit = self._plan.batch if not self._pace else int(_SMALL_SECONDS / (self._pace * self._plan.threads))
        return max(1, min(self._plan.batch, fit, math.ceil(len(self._waiting) / self._plan.threads)))

    def _decode_and_score_some(self, jobs: list[Job]) -> None:
        decoded = [job for job in jobs if self._work.decode(job)]
        few = not len(self._waiting) and 2 * len(self._began) <= self._plan.threads
        self._work.score(decoded, self._alone if few else None)

    def _decode(self) -> None:
        try:
            self._run(self._waiting, lambda: 1, self._decode_one)
        finally:
            with self._state:
                self._decoding -= 1
                if not self._decoding:
                    self._decoded.close()

    def _decode_one(self, jobs: list[Job]) -> None:
        for job in jobs:
            if self._work.decode(job) and not self._decoded.put(job):
                job.fail(self._stopped())

    def _score(self) -> None:
        self._run(self._decoded, lambda: self._plan.batch, self._work.score, self._plan.patience)

    def _run(
        self, lanes: Lanes[Job], most: Callable[[], int], work: Callable[[list[Job]], object], patience: float = 0.0
    ) -> None:
        """Work on what is in the lanes until they are closed and empty."""
        while jobs := lanes.take(most(), patience):
            start = time.perf_counter()
            self._began[threading.get_ident()] = time.monotonic()
            try:
                work(jobs)
            except BaseException:
                for job in jobs:
                    job.fail(StoppedError("what runs the model has failed; start the service again"))
                raise
            finally:
                del self._began[threading.get_ident()]
            if lanes is self._decoded or not self._plan.scorer:
                at_once = 1 if self._plan.scorer else self._plan.threads
                newest = (time.perf_counter() - start) / len(jobs) / at_once
                self._pace += (_NEWEST if self._pace else 1) * (newest - self._pace)

    def _is_stuck(self) -> bool:
        oldest = min(self._began.copy().values(), default=math.inf)
        return time.monotonic() - oldest > _STUCK * self._limits.answer_seconds

    def _guarded(self, role: Callable[[], None], end: Future[None]) -> None:
        """The whole life of a thread: however it ends, somebody is told."""
        try:
            role()
            if not self._draining and self._death is None:
                raise RuntimeError("a worker thread has ended")
        except BaseException as error:
            self._die(error)
        finally:
            end.set_result(None)

    def _die(self, error: BaseException) -> None:
        with self._state:
            if self._death is not None:
                return
            self._death = error
        log.critical("what runs the model has failed (%s)", line_of(error), exc_info=error)
        self._drop()
        self._on_death(error)

    def _drop(self) -> None:
        for job in (*self._waiting.drop(), *self._decoded.drop()):
            job.fail(self._stopped())

    def _stopped(self) -> StoppedError:
        if self._death is not None:
            return StoppedError("what runs the model has failed; start the service again")
        return StoppedError(
            "the service is about to end; try again when it has started" if self._draining else "is not started"
        )
