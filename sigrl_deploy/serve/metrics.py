"""What is counted and measured of the service."""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32)


class Stage(str, Enum):
    """Where the time of a picture, or of labels, goes."""

    WAITING = "waiting"
    DECODING = "decoding"
    SCORING = "scoring"
    ENCODING = "encoding"


class Observer(Protocol):
    """Is told what happens inside. Its methods are called from several threads."""

    def batch(self, pictures: int) -> None:
        """A batch of so many pictures goes to the engine."""

    def stage(self, stage: Stage, seconds: float) -> None:
        """What one picture (waiting, decoding), one batch (scoring) or one list of labels (encoding) took in a stage."""


class Metrics:
    """An `Observer` that keeps everything as Prometheus metrics, in a registry of its own."""

    CONTENT_TYPE = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        disable_created_metrics()  # which would double the output
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("sigrl_requests", "Answered requests.", ("method", "route", "status"), registry=registry)
        self._seconds = Histogram(
            "sigrl_request_seconds",
            "Seconds from headers to the end of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._errors = Counter(
            "sigrl_errors", "Answers, or their parts about a picture, that are errors.", ("code",), registry=registry
        )
        self._waiting = Gauge("sigrl_waiting_pictures", "Pictures that wait for the engine.", registry=registry)
        self._bytes = Gauge("sigrl_bytes_in_flight", "Bytes of requests that are read or worked on.", registry=registry)
        self._batches = Histogram("sigrl_batch_pictures", "Pictures of a batch.", buckets=_SIZES, registry=registry)
        self._stages = Histogram(
            "sigrl_stage_seconds",
            "Seconds of a picture (waiting, decoding), a batch (scoring) or a list of labels (encoding).",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        for stage in Stage:  # all are there from the start, so that rates can be taken of them
            self._stages.labels(stage.value)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered, so long after its headers were there.

        `route` is a pattern, such as `/v1/vocabularies/{name}`: each other one takes memory.
        """
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def error(self, code: str) -> None:
        """An answer, or the part of it about one picture, is an error of this code."""
        self._errors.labels(code).inc()

    def batch(self, pictures: int) -> None:
        """See `Observer`."""
        self._batches.observe(pictures)

    def stage(self, stage: Stage, seconds: float) -> None:
        """See `Observer`."""
        self._stages.labels(stage.value).observe(seconds)

    def text(self, waiting: int, bytes_in_flight: int) -> bytes:
        """All metrics in Prometheus' text format, CONTENT_TYPE, with the pictures that wait and the bytes in memory now."""
        self._waiting.set(waiting)
        self._bytes.set(bytes_in_flight)
        return generate_latest(self._registry)
