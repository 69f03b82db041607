"""What the service refuses, besides what the library does."""

from __future__ import annotations

from sigrl_deploy.errors import SigRLError


class OverloadedError(SigRLError):
    """There is more to do than is bounded. `seconds`, at least 1, are about how long that will take."""

    def __init__(self, problem: str, seconds: int = 1) -> None:
        super().__init__(f"{problem}; try again in {seconds} s")
        self.seconds = seconds


class TooLateError(SigRLError):
    """An answer is not there in time."""


class StoppedError(SigRLError):
    """The service is about to end, or what runs the model has ended."""


class EngineError(SigRLError):
    """The engine failed at one picture, or at one list of labels; others are not touched. The cause is `__cause__`."""


class UnknownVocabularyError(SigRLError):
    """There is no vocabulary of that name."""


class ConflictError(SigRLError):
    """A vocabulary cannot be put or deleted: it was given at the start, or there are as many as there may be."""
