"""The vocabularies of a service: named ones, and those that come with a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.selection import Selection
from sigrl_deploy.recognizer.thresholds import Thresholds
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Observer
from sigrl_deploy.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Given:
    """A vocabulary that is given at the start; `labels` None is the bundle's own."""

    labels: LabelSet | None = None
    thresholds: Thresholds | None = None


@dataclass(frozen=True, eq=False)
class Served:
    """A vocabulary that is ready for use.

    Attributes:
        name: None for one that came with a request.
        labels: what it was made of.
        vocabulary: for `Tagger.tag`.
        fixed: whether it was given at the start, and can be neither replaced nor deleted.
        limits: what a file of thresholds says of it.
    """

    name: str | None
    labels: LabelSet
    vocabulary: Vocabulary = field(repr=False)
    fixed: bool = False
    limits: Selection | None = field(default=None, repr=False)

    @property
    def has_thresholds(self) -> bool:
        """Whether its labels have thresholds, from a file or their own."""
        raise NotImplementedError


class ServedVocabularies:
    """Named vocabularies and those that come with a request.

    All methods but the constructor and `warm` are for the event loop's thread. Labels are encoded on a thread of its own, and
    what comes with requests is kept in memory only, within `limits`.

    Args:
        recognizer: encodes labels.
        given: by name, what is there from the start.
        default: the name of the one that is used where a request asks for none; None where there is none.
        limits: `labels`, `rows`, `inline_vocabularies`, `vocabularies`, `encodings` and `answer_seconds` are kept here.
        observer: is told how long encoding takes.

    Raises UsageError for a name that is none, or a default that is not given.
    """

    default: str | None

    def __init__(
        self,
        recognizer: Recognizer,
        given: Mapping[str, Given],
        default: str | None,
        limits: Limits,
        observer: Observer,
    ) -> None: ...

    def warm(self) -> None:
        """Encode what was given, and start the thread that encodes the rest.

        Raises LabelError for labels, and UsageError for thresholds, that cannot be used.
        """

    def named(self, name: str | None = None) -> Served:
        """A vocabulary by its name; None is the default. Raises UnknownVocabularyError."""
        raise NotImplementedError

    def all(self) -> list[Served]:
        """All that have names, those given at the start first."""
        raise NotImplementedError

    async def inline(self, labels: LabelSet) -> Served:
        """A vocabulary that came with a request. The same labels are encoded once, however many ask for them at once.

        Raises:
            LabelError: they cannot be used, are more than `limits.labels`, or name a file as their background.
            OverloadedError: at once, where `limits.encodings` wait already.
            TooLateError: they were not encoded within `limits.answer_seconds`; what was done of them is kept.
            EngineError: the text encoder failed.
            StoppedError: the service is about to end.
        """
        raise NotImplementedError

    async def put(self, name: str, labels: LabelSet) -> bool:
        """Add a vocabulary, or replace one that was put. Returns whether it is a new one.

        Raises UsageError for a name that is none, ConflictError for one that was given at the start and where there are
        `limits.vocabularies` or `limits.rows` already; and what `inline` raises.
        """
        raise NotImplementedError

    def delete(self, name: str) -> None:
        """Remove one that was put. Raises UnknownVocabularyError, and ConflictError for one that was given at the start."""

    def selection(
        self,
        served: Served,
        top: int | None = None,
        threshold: float | None = None,
        thresholds: bool | None = None,
        evidence: bool = False,
    ) -> Selection:
        """Which labels become tags. `thresholds` None uses those of the vocabulary where it has some and `threshold` is None.

        Raises UsageError for values that mean nothing, for `thresholds` True where the vocabulary has none or with
        `threshold`, and for evidence that the bundle cannot give.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the thread after the labels it has in hand. What waits raises StoppedError."""
