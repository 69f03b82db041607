"""Labels that come with requests, encoded on a thread of its own, so that nobody else waits for them."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from sigrl_deploy.errors import SigRLError
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.serve.errors import EngineError, OverloadedError, StoppedError, TooLateError
from sigrl_deploy.serve.jobs import line_of
from sigrl_deploy.serve.lanes import Lanes
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Observer, Stage
from sigrl_deploy.serve.waiting import finished
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Encoding:
    """Labels that are to be encoded, and how many callers wait for them. All have one lane."""

    labels: LabelSet
    arrived: float = field(default_factory=time.monotonic)
    result: Future[Vocabulary] = field(default_factory=Future)
    callers: int = 0
    vocabulary: None = None


class LabelEncoder:
    """Makes vocabularies of label sets, one after the other, and remembers those that were used last.

    Its methods are for the event loop's thread.

    Args:
        encode: labels → a vocabulary; raises SigRLError. Called on the encoder's own thread.
        limits: `rows`, `inline_vocabularies`, `encodings` and `answer_seconds` are kept here.
        observer: is told how long each takes.
    """

    def __init__(self, encode: Callable[[LabelSet], Vocabulary], limits: Limits, observer: Observer) -> None:
        self._encode, self._limits, self._observer = encode, limits, observer
        self._remembered: OrderedDict[LabelSet, Vocabulary] = OrderedDict()
        self._under_way: dict[LabelSet, _Encoding] = {}
        self._waiting: Lanes[_Encoding] = Lanes()
        self._seconds = 0.0  # that the last ones took

    def start(self) -> None:
        """Start the thread."""
        # A daemon, so that labels which take long do not keep the process from ending.
        threading.Thread(target=self._work, name="labels", daemon=True).start()

    async def vocabulary(self, labels: LabelSet) -> Vocabulary:
        """The vocabulary of these labels; the same object as long as it is remembered.

        Raises what `encode` does; EngineError where it raises anything else; OverloadedError, at once, where `encodings` are
        under way; TooLateError after `answer_seconds`; StoppedError where it is closed.
        """
        known = self._remembered.get(labels)
        if known is not None:
            self._remembered.move_to_end(labels)
            return known
        encoding = self._under_way.get(labels) or self._begin(labels)
        encoding.callers += 1
        try:
            if not await finished([encoding.result], self._limits.answer_seconds):
                problem = f"were not encoded within {self._limits.answer_seconds:g} s; send them again, what was done is kept"
                raise TooLateError(problem, argument="labels")
            if encoding.result.cancelled():
                raise _stopped()
            found = encoding.result.result()
        finally:
            encoding.callers -= 1
            if not encoding.callers:
                if encoding.result.cancel():
                    self._waiting.discard(encoding)
                if self._under_way.get(labels) is encoding:
                    del self._under_way[labels]
        self._remember(labels, found)
        return found

    def close(self) -> None:
        """End the thread after the labels that it has in hand. What waits raises StoppedError."""
        for encoding in self._waiting.drop():
            encoding.result.cancel()

    def _begin(self, labels: LabelSet) -> _Encoding:
        if (count := len(self._under_way)) >= self._limits.encodings:
            wait = min(max(1, math.ceil(count * self._seconds)), math.ceil(self._limits.answer_seconds))
            raise OverloadedError(f"{count} lists of labels wait to be encoded; try again in {wait} s", wait)
        encoding = _Encoding(labels)
        if not self._waiting.put(encoding):
            raise _stopped()
        self._under_way[labels] = encoding
        return encoding

    def _remember(self, labels: LabelSet, vocabulary: Vocabulary) -> None:
        self._remembered[labels] = vocabulary
        self._remembered.move_to_end(labels)
        rows = sum(size_of(*each) for each in self._remembered.items())
        while len(self._remembered) > self._limits.inline_vocabularies or rows > self._limits.rows:
            rows -= size_of(*self._remembered.popitem(last=False))

    def _work(self) -> None:
        while taken := self._waiting.take(1):
            (encoding,) = taken
            if not encoding.result.set_running_or_notify_cancel():
                continue  # nobody waits any more
            start = time.perf_counter()
            try:
                encoding.result.set_result(self._encode(encoding.labels))
            except SigRLError as error:
                encoding.result.set_exception(error)
            except BaseException as error:  # whatever it is, the next labels may be encoded
                log.error("labels could not be encoded", exc_info=error)
                encoding.result.set_exception(EngineError(f"could not be encoded ({line_of(error)})", argument="labels"))
            self._seconds = time.perf_counter() - start
            self._observer.stage(Stage.ENCODING, self._seconds)


def size_of(labels: LabelSet, vocabulary: Vocabulary) -> int:
    """What a vocabulary counts for in `Limits.rows`: its rows, and the parents that its labels name."""
    return len(vocabulary.label_embedding) + sum(len(label.parents) for label in labels.labels)


def _stopped() -> StoppedError:
    return StoppedError("the service is about to end; try again when it has started")
