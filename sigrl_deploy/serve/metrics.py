"""What is counted and measured of the service."""

from __future__ import annotations

from enum import Enum
from typing import Protocol


class Stage(str, Enum):
    """Where the time of a picture, or of labels, goes."""

    WAITING = "waiting"
    DECODING = "decoding"
    SCORING = "scoring"
    ENCODING = "encoding"


class Observer(Protocol):
    """Is told what happens. Its methods are called from several threads, and return at once."""

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered. `route` is the pattern, such as `/v1/vocabularies/{name}`, never a client's path."""

    def error(self, code: str) -> None:
        """An answer, or the part of it about one picture, was an error of this code."""

    def waiting(self, pictures: int) -> None:
        """So many pictures wait for the engine."""

    def bytes_in_flight(self, count: int) -> None:
        """So many bytes of pictures wait or are worked on."""

    def batch(self, pictures: int) -> None:
        """A batch of so many pictures goes to the engine."""

    def stage(self, stage: Stage, seconds: float) -> None:
        """What one picture, one batch (scoring) or one list of labels (encoding) took in a stage."""


class PrometheusObserver:
    """An `Observer` that keeps Prometheus metrics, in a registry of its own. Needs the extra `serve`."""

    content_type: str

    def text(self) -> bytes:
        """All metrics in Prometheus' text format, as `content_type` says."""
        raise NotImplementedError
