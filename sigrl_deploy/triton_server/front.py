"""What the front model does with a batch: decode, look up vocabularies, group by labels, run, select."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NoReturn

import numpy as np

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.config import Crop
from sigrl_deploy.errors import ImageError, LabelError, SigRLError, UsageError, errors_about
from sigrl_deploy.labels.label_set import count_texts
from sigrl_deploy.machine import cpus
from sigrl_deploy.model import matching
from sigrl_deploy.pictures.crops import View, Views
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.recognizer.pipeline import Pipeline, Tagged
from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.recognizer.selection import Selection
from sigrl_deploy.recognizer.vocabularies import Vocabularies
from sigrl_deploy.triton_server.engine import Call, ModelError, ServedEngine
from sigrl_deploy.triton_server.label_inputs import requested_labels
from sigrl_deploy.triton_server.names import LABELS, PICTURE, THRESHOLD, TOP
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_MOST_THREADS = 8  # that decode
_VOCABULARIES_KEPT = 16
_TEXTS_KEPT = 50_000  # whose embeddings stay in memory, of about 2 kB each

LabelTexts = tuple[bytes, ...]


@dataclass(frozen=True)
class Row:
    """One picture of a request. `labels` None are the bundle's own; `top` and `threshold` are as for `Recognizer.recognize`."""

    picture: bytes
    labels: LabelTexts | None = None
    top: int | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Answer:
    """Predictions, best first; or what is wrong with the picture, its labels or numbers, in `error`."""

    predictions: tuple[Prediction, ...] = ()
    error: str = ""


class Front:
    """A bundle whose graphs are models of the server, which `call` runs. `folder` is the bundle without them.

    Label embeddings are kept in memory only: requests name the labels, and would fill the disk. `most_labels` bounds the rows
    and texts of one request's labels.

    Raises BundleError where the bundle cannot be used.
    """

    def __init__(self, folder: Path, call: Call, most_labels: int) -> None:
        self._bundle = Bundle(folder, graphs=False)
        manifest = self._bundle.manifest
        engine = ServedEngine(self._bundle, call)
        self._pipeline = Pipeline(manifest, engine)
        self._most_labels = most_labels
        self._view = Views(manifest.preprocess, manifest.patch_size, Crop.CENTRE, manifest.preprocess, uint8=False)
        self._decoders = ThreadPoolExecutor(min(cpus.threads(), _MOST_THREADS))
        self._vocabulary = lru_cache(_VOCABULARIES_KEPT)(self._encoded)
        self._forget()
        self._own = self._vocabularies.bundled  # now, since a damaged one should not wait for a request

    def close(self) -> None:
        """Release the threads."""
        self._decoders.shutdown()

    def answer(self, rows: Sequence[Row]) -> list[Answer | ModelError]:
        """What to answer for each row: its own mistakes are its own error. A ModelError where the server failed."""
        decoding = self._decoders.map(self._view_or_error, [row.picture for row in rows])
        wanted = [self._selected(row) for row in rows]
        found: dict[int, Answer | ModelError] = {}
        groups: defaultdict[int, list[tuple[int, View, Vocabulary, Selection]]] = defaultdict(list)
        for i, (view, chosen) in enumerate(zip(decoding, wanted, strict=True)):
            if isinstance(view, str):
                found[i] = Answer(error=view)
            elif isinstance(chosen, (Answer, ModelError)):
                found[i] = chosen
            else:
                groups[id(chosen[0])].append((i, view, *chosen))
        for group in groups.values():
            places, views, vocabularies, selections = zip(*group, strict=True)
            found |= zip(places, self._tagged(views, vocabularies[0], selections), strict=True)
        return [found[i] for i in range(len(rows))]

    def _view_or_error(self, picture: bytes) -> View | str:
        try:
            return self._view(read_image(picture, PICTURE))
        except ImageError as error:
            return f"{PICTURE}: {str(error).removeprefix(f'{PICTURE}: ')}"
        except Exception as error:  # one picture must not cost those of others
            log.error("a picture could not be prepared", exc_info=error)
            return f"{PICTURE}: could not be prepared"

    def _selected(self, row: Row) -> tuple[Vocabulary, Selection] | Answer | ModelError:
        try:
            with errors_about(labels=LABELS, top=TOP, threshold=THRESHOLD):
                vocabulary = self._vocabulary(row.labels)
                arch = self._bundle.manifest.arch
                selection = Selection.of(
                    arch, self._no_scope, vocabulary, row.top, row.threshold, thresholds=None, evidence=False
                )
                selection.check(arch)
            return vocabulary, selection
        except UsageError as error:
            return Answer(error=str(error))
        except (ModelError, SigRLError) as error:
            return _failure(error)

    def _encoded(self, labels: LabelTexts | None) -> Vocabulary:
        """Raises LabelError for labels that cannot be used, ModelError and BundleError where the server is at fault."""
        if labels is None:
            if self._own is None:
                raise LabelError("the bundle has no vocabulary of its own; give labels", argument=LABELS)
            return self._own
        asked = requested_labels(labels, self._most_labels)
        self._texts += count_texts(asked)
        if self._texts > _TEXTS_KEPT:
            self._forget()
        found = self._vocabularies.of(asked)
        if (rows := len(found.label_embedding)) > self._most_labels:
            problem = f"has {rows:,} labels with its background, this server takes {self._most_labels:,} at most"
            raise LabelError(problem, argument=LABELS)
        return found

    def _forget(self) -> None:
        """Begin with no embeddings."""
        self._texts = 0
        self._vocabularies = Vocabularies(self._bundle, self._pipeline.engine, folder=None, unfused=())

    @staticmethod
    def _no_scope() -> NoReturn:
        raise AssertionError("requests bring no files of thresholds")

    def _tagged(
        self, views: Sequence[View], vocabulary: Vocabulary, selections: Sequence[Selection]
    ) -> Iterator[Answer | ModelError]:
        """Pictures with the same labels. Where they fail together each is tried alone: a batch may be too large for a GPU."""
        try:
            for tagged in self._pipeline.tag(views, vocabulary, selections):
                yield self._answered(tagged)
        except Exception as error:
            if len(views) == 1:
                yield _failure(error)
                return
            log.warning("%d pictures failed together, and are tried one by one: %s", len(views), error)
            for view, selection in zip(views, selections, strict=True):
                yield from self._tagged([view], vocabulary, [selection])

    def _answered(self, tagged: Tagged) -> Answer:
        scores, predictions = tagged
        if np.isfinite(scores).all():
            return Answer(predictions)
        return Answer(error=f"{PICTURE}: {matching.not_finite(self._pipeline.engine.precision.value)}")


def _failure(error: Exception) -> ModelError:
    if not isinstance(error, (ModelError, SigRLError)):
        log.error("a picture could not be scored", exc_info=error)
    return error if isinstance(error, ModelError) else ModelError(str(error) or type(error).__name__)
