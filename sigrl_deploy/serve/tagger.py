"""Pictures in, tags out: worker threads around a recognizer, and what waits for them. No HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image

from sigrl_deploy.pictures.crops import Box
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.recognizer.selection import Selection
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Observer
from sigrl_deploy.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Answer:
    """What is said of one picture.

    Attributes:
        predictions: best first.
        size: width and height of the upright picture in pixels.
        seen: the part that the model was shown, in pixels of the upright picture; see `Record.seen`.
        picture: where evidence was asked for, the upright picture in RGB at the size of a heat map, see `drawing.scaled`.
        box: `seen` in pixels of `picture`, for `drawing.heat`.
    """

    predictions: tuple[Prediction, ...]
    size: tuple[int, int]
    seen: Box
    picture: Image.Image | None = field(default=None, repr=False, compare=False)
    box: Box | None = None


class Tagger:
    """Tags pictures of many callers at once, each with a vocabulary of its own.

    Args:
        recognizer: on a CPU opened with `threads=1`, so that each core has a picture of its own.
        limits: `queue`, `bytes_in_flight` and `answer_seconds` are kept here.
        observer: is told what happens.
        on_death: is called once, from the thread that found it, where a worker thread ends or the engine no longer runs.
            `ready` is False by then, and what waits has raised StoppedError.
    """

    def __init__(
        self, recognizer: Recognizer, limits: Limits, observer: Observer, on_death: Callable[[BaseException], None]
    ) -> None: ...

    def start(self) -> None:
        """Start the worker threads."""

    @property
    def ready(self) -> bool:
        """Whether pictures are taken: it was started, is not about to end, and its threads live."""
        raise NotImplementedError

    async def tag(self, picture: bytes, vocabulary: Vocabulary, selection: Selection) -> Answer:
        """Tag one picture, given as the bytes of a file. `selection` is of `ServedVocabularies.selection`.

        Only pictures with the same `Vocabulary` object share a batch. A caller that is cancelled takes its picture out of the
        queue.

        Raises:
            ImageError: it is no picture, or cannot be read; the line begins with "picture: ".
            ScoreError: its scores are not finite.
            EngineError: the engine failed at it, and not at others.
            OverloadedError: at once, where `queue` or `bytes_in_flight` are full.
            TooLateError: it was not done within `answer_seconds`.
            StoppedError: the tagger was not started, is drained, or has died.
        """
        raise NotImplementedError

    async def drain(self, seconds: float) -> bool:
        """Take nothing more, answer what waits, and end the threads. Returns whether that was done within `seconds`.

        After them, what still waits raises StoppedError, and a thread that works ends with what it has in hand.
        """
        raise NotImplementedError
