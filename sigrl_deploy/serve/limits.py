"""What bounds the service."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from sigrl_deploy.errors import UsageError

MB = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Bounds of one service. Whole numbers are at least 1, seconds more than 0.

    Attributes:
        body_bytes: of the body of one request.
        pictures: of one request.
        queue: pictures that wait for the engine.
        bytes_in_flight: of all pictures, as files, that wait or are worked on; and, counted apart, of all bodies.
        labels: texts of a vocabulary that comes in a request: names and synonyms, times their templates.
        label_items: labels, synonyms, parents and templates that such a vocabulary names.
        rows: of all vocabularies that came inline and are still in memory, and their parents; and, counted apart, of those that
            were put.
        inline_vocabularies: that came inline and are still in memory.
        vocabularies: that were put and not deleted.
        encodings: vocabularies that wait for being encoded, or are being encoded.
        header_seconds: until a request's headers are there.
        body_seconds: until its body is there.
        answer_seconds: from then on until its answer is there.
        drain_seconds: for what is under way when the service is to end.

    Raises UsageError, which names the field, for a value that is no such number.
    """

    body_bytes: int = 20 * MB
    pictures: int = 32
    queue: int = 256
    bytes_in_flight: int = 256 * MB
    labels: int = 2048
    label_items: int = 1 << 14
    rows: int = 1 << 15
    inline_vocabularies: int = 64
    vocabularies: int = 64
    encodings: int = 16
    header_seconds: float = 10.0
    body_seconds: float = 30.0
    answer_seconds: float = 60.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_seconds"):
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 < value < math.inf):
                    raise UsageError("expected seconds, more than 0", argument=field.name, value=value)
            elif type(value) is not int or value < 1:
                raise UsageError("expected a whole number, at least 1", argument=field.name, value=value)
