"""The vocabularies of a service: named ones, and those that come with a request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from sigrl_deploy.errors import LabelError, UsageError
from sigrl_deploy.labels.label_set import Label, LabelSet, count_texts
from sigrl_deploy.labels.reading import NAMED
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.selection import Selection
from sigrl_deploy.recognizer.thresholds import Thresholds
from sigrl_deploy.serve.encoding import LabelEncoder, size_of
from sigrl_deploy.serve.errors import ConflictError
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.metrics import Observer
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

OWN = "bundle"  # the name of the labels that the bundle was exported with
_NAME = re.compile(r"(?!\.+$)[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, eq=False)
class Served:
    """A vocabulary that is ready for use.

    Attributes:
        name: None for one that came with a request.
        labels: what it was made of.
        vocabulary: for `Tagger.tag`.
        thresholds: a file of them, for one that was given at the start.
    """

    name: str | None
    labels: LabelSet = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    thresholds: Thresholds | None = field(default=None, repr=False)

    @property
    def has_thresholds(self) -> bool:
        """Whether its labels have thresholds: those of a file, or their own."""
        readout = self.vocabulary.readout
        return self.thresholds is not None or (readout is not None and readout.thresholds is not None)


class ServedVocabularies:
    """Named vocabularies and those that come with a request. All is for the event loop's thread, after `open`.

    Labels that come with requests are encoded on a thread of its own, and kept in memory only, within `limits`.

    Args:
        recognizer: encodes labels.
        limits: `labels`, `rows`, `inline_vocabularies`, `vocabularies`, `encodings` and `answer_seconds` are kept here.
        observer: is told how long encoding takes.

    Attributes:
        default: the name of the vocabulary for requests that ask for none; None where there is none.
    """

    def __init__(self, recognizer: Recognizer, limits: Limits, observer: Observer) -> None:
        self._recognizer, self._limits = recognizer, limits
        self._encoder = LabelEncoder(lambda labels: recognizer.vocabulary(labels, kept=False), limits, observer)
        self._fixed: dict[str, Served] = {}
        self._put: dict[str, Served] = {}
        self.default: str | None = None

    def open(self, given: Mapping[str, LabelSet], thresholds: Mapping[str, Thresholds]) -> None:
        """Encode the vocabularies that are there from the start, and start the thread that encodes others.

        The first one is the default. Where none is given, it is the bundle's own, if it has one, under the name OWN.
        `thresholds` are by the same names.

        Raises LabelError for labels, and UsageError for names and thresholds, that cannot be used.
        """
        own = self._recognizer.own_labels
        if not given and own is not None:
            labels = LabelSet(tuple(map(Label, own)))
            self._fixed[OWN] = Served(OWN, labels, self._recognizer.vocabulary(), thresholds.get(OWN))
        for name, labels in given.items():
            check_name(name, "labels")
            self._fixed[name] = Served(name, labels, self._recognizer.vocabulary(labels), thresholds.get(name))
        for name in thresholds:
            if name not in self._fixed:
                expected = ", ".join(self._fixed) or "none"
                raise UsageError(f"no vocabulary has that name; expected one of {expected}", argument="thresholds", value=name)
        for served in self._fixed.values():
            self.selection(served, thresholds=served.thresholds is not None or None)
        self.default = next(iter(self._fixed), None)
        self._encoder.start()

    def named(self, name: str | None = None) -> Served | None:
        """A vocabulary by its name, or the default; None where there is none."""
        name = self.default if name is None else name
        return None if name is None else self._fixed.get(name) or self._put.get(name)

    def all(self) -> list[Served]:
        """All that have names, those given at the start first."""
        return [*self._fixed.values(), *self._put.values()]

    def is_fixed(self, name: str) -> bool:
        """Whether it was given at the start, and can be neither replaced nor deleted."""
        return name in self._fixed

    async def inline(self, labels: LabelSet) -> Vocabulary:
        """A vocabulary that came with a request. The same labels are encoded once, however many ask for them at once.

        Raises:
            LabelError: they cannot be used, are more than `limits.labels`, or have a file as their background.
            OverloadedError: at once, where `limits.encodings` are under way.
            TooLateError: they were not encoded within `limits.answer_seconds`; what was done of them is kept.
            EngineError: the text encoder failed.
            StoppedError: the service is about to end.
        """
        if (texts := count_texts(labels)) > self._limits.labels:
            problem = f"are {texts:,} texts, synonyms times templates, expected {self._limits.labels:,} at most; send fewer"
            raise LabelError(problem, argument="labels")
        if labels.background not in (None, *NAMED):
            # Whoever sends requests must not learn what files hold.
            problem = f"files are not read for requests; expected {' or '.join(NAMED)}"
            raise LabelError(problem, argument="background", value=labels.background)
        return await self._encoder.vocabulary(labels)

    async def put(self, name: str, labels: LabelSet) -> bool:
        """Add a vocabulary, or replace one that was put. Returns whether it is a new one.

        Raises UsageError for a name that is none, ConflictError for one that was given at the start, and where there are
        `limits.vocabularies` or `limits.rows` already; and what `inline` raises.
        """
        check_name(name)
        self._check_room(name, 0)
        vocabulary = await self.inline(labels)
        self._check_room(name, size_of(labels, vocabulary))  # others may have been put meanwhile
        is_new = name not in self._put
        self._put[name] = Served(name, labels, vocabulary)
        return is_new

    def delete(self, name: str) -> bool:
        """Remove one that was put. Returns whether there was one. Raises ConflictError for one given at the start."""
        self._check_not_fixed(name)
        return self._put.pop(name, None) is not None

    def selection(
        self,
        served: Served,
        top: int | None = None,
        threshold: float | None = None,
        thresholds: bool | None = None,
        evidence: bool = False,
    ) -> Selection:
        """Which labels of a picture become tags.

        `thresholds` says whether the labels' thresholds are used, of a file or their own; by default they are, those of a file
        unless there is a `threshold`. Without a file, and unless `top` says otherwise, there are five tags at most.

        Raises UsageError for values that mean nothing or contradict each other, for thresholds that the vocabulary does not
        have, and for evidence that the bundle cannot give.
        """
        if thresholds and not served.has_thresholds:
            problem = "this vocabulary has none; leave it out, or give a `threshold`"
            raise UsageError(problem, argument="thresholds", value=thresholds)
        if thresholds and threshold is not None and served.thresholds is not None:
            raise UsageError("`thresholds` has one for every label; leave out one of the two", argument="threshold")
        use_file = threshold is None if thresholds is None else thresholds
        file = served.thresholds if use_file else None
        chosen = self._recognizer.selection(served.vocabulary, top, threshold, file, evidence)
        if thresholds is not False:
            return chosen
        limit = np.nan if threshold is None else threshold
        everywhere = np.full(len(served.vocabulary), limit, np.float32)
        return replace(chosen, threshold=None, limits=everywhere)

    def close(self) -> None:
        """End the thread after the labels that it has in hand. What waits raises StoppedError."""
        self._encoder.close()

    def _check_not_fixed(self, name: str) -> None:
        if name in self._fixed:
            raise ConflictError(f"{name} was given at the start and stays as it is; use another name")

    def _check_room(self, name: str, rows: int) -> None:
        self._check_not_fixed(name)
        others = [served for served in self._put.values() if served.name != name]
        if len(others) >= self._limits.vocabularies:
            raise ConflictError(f"there are {len(others)} vocabularies already; delete one first")
        rows += sum(size_of(served.labels, served.vocabulary) for served in others)
        if rows > self._limits.rows:
            problem = f"all vocabularies would have {rows:,} rows, expected {self._limits.rows:,} at most; delete one first"
            raise ConflictError(problem)


def check_name(name: str, argument: str = "vocabulary") -> None:
    """Raise UsageError for what is no name of a vocabulary."""
    if not _NAME.fullmatch(name):
        problem = "is no name of a vocabulary; expected 1 to 64 letters from a to z, digits, dots, dashes and underscores"
        raise UsageError(f"{name[:64]!r} {problem}", argument=argument)
