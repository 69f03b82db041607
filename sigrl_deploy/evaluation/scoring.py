"""One pass over a data set: every model scores the same pictures against the same labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.config import Arch, Precision
from sigrl_deploy.datasets.dataset import Dataset
from sigrl_deploy.errors import ImageError, ScoreError, UsageError, printable
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.pictures.reading import ImageSource, name_of
from sigrl_deploy.pictures.reading_ahead import batches, read_ahead
from sigrl_deploy.progress import Progress
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

Pixels = NDArray[Any]  # in the dtype that a scorer gives and takes


class Scorer(Protocol):
    """What can be evaluated: a `Recognizer` (a bundle) or an `EagerModel` (a checkpoint)."""

    @property
    def rules(self) -> dict[str, object]:
        """By name, everything except weights that scores depend on: architecture, top-k, template, preprocessing."""

    def pixels(self, image: ImageSource) -> Pixels:
        """One picture → [3, H, W]. Raises ImageError where it cannot be prepared. Called from several threads."""

    def vocabulary(self, labels: Sequence[str] | LabelSet) -> Vocabulary:
        """Labels with what scoring needs. Raises LabelError for labels that cannot be used."""

    def score_pixels(self, pixels: Pixels, vocabulary: Vocabulary) -> FloatArray:
        """pixels [B, 3, H, W] → scores [B, C] fp32."""


@dataclass(frozen=True)
class Model:
    """A scorer and what a report says about it; `description` names backend, device and precision."""

    path: Path
    description: str
    arch: Arch
    precision: Precision
    device: str
    scorer: Scorer


@dataclass(frozen=True)
class Pass:
    """Scores [N, C] of each model and targets [N, C] of the pictures that could be read, and by index why others could not."""

    scores: list[FloatArray]
    targets: NDArray[np.int8]
    unreadable: dict[int, str]


def score_pictures(
    dataset: Dataset, pictures: Sequence[int], labels: Sequence[str] | LabelSet, models: Sequence[Model], batch_size: int
) -> Pass:
    """Score the pictures with these indices against `labels`: C of the data set's, and what a label set has beside them.

    A picture is decoded once for all models, while they work; one that cannot be read is left out for all of them. Memory: 5
    bytes per picture and label, and 4 more for each further model.

    Raises LabelError where a model cannot use a label, UsageError where one gives a score that is not finite.
    """
    vocabularies = [model.scorer.vocabulary(labels) for model in models]
    column = {label: i for i, label in enumerate(dataset.labels)}
    columns = [column[label] for label in (labels.names if isinstance(labels, LabelSet) else labels)]
    scores = [np.empty((len(pictures), len(columns)), np.float32) for _ in models]
    targets = np.empty((len(pictures), len(columns)), np.int8)
    unreadable: dict[int, str] = {}
    end = 0
    for batch in batches(_read(dataset, pictures, models, ahead=2 * batch_size), batch_size):
        readable = []
        for index, pixels in batch:
            if isinstance(pixels, str):
                unreadable[index] = pixels
            else:
                readable.append((index, pixels))
        if not readable:
            continue
        start, end = end, end + len(readable)
        for i, (model, vocabulary) in enumerate(zip(models, vocabularies, strict=True)):
            try:
                rows = model.scorer.score_pixels(np.stack([pixels[i] for _, pixels in readable]), vocabulary)
            except ScoreError as error:
                name = printable(dataset.name(readable[error.picture][0]))
                raise UsageError(f"{model.path}, {model.description}: {name}: {error}") from None
            scores[i][start:end] = rows
        targets[start:end] = [dataset.targets(index)[columns] for index, _ in readable]
    return Pass([rows[:end] for rows in scores], targets[:end], unreadable)


def _read(
    dataset: Dataset, pictures: Sequence[int], models: Sequence[Model], ahead: int
) -> Iterator[tuple[int, list[Pixels] | str]]:
    """Each picture's pixels, one array per model, or why it could not be read."""

    def pixels(index: int) -> list[Pixels] | str:
        name = dataset.name(index)
        try:
            image = dataset.image(index)
            name = name_of(image)
            return [model.scorer.pixels(image) for model in models]
        except ImageError as error:
            return str(error).removeprefix(f"{printable(name)}: ")

    with Progress(len(pictures), "picture") as progress:
        for read in read_ahead(pixels, pictures, ahead):
            yield read
            progress.advance()
