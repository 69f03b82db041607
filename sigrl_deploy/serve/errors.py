"""What the service refuses, besides what the library does."""

from __future__ import annotations

from sigrl_deploy.errors import SigRLError


class OverloadedError(SigRLError):
    """There is more to do than is bounded. In `retry_after` seconds there may be room again."""

    def __init__(self, problem: str, retry_after: float = 1.0) -> None:
        super().__init__(problem)
        self.retry_after = retry_after


class TooLateError(SigRLError):
    """An answer is not there in time."""


class StoppedError(SigRLError):
    """The service is about to end, or what runs the model has ended."""


class EngineError(SigRLError):
    """The engine failed at one picture, or at one list of labels; others are not touched."""


class ConflictError(SigRLError):
    """A vocabulary cannot be put or deleted: it was given at the start, or there are as many as there may be."""
