"""What all workers share, made once: the vocabulary, and the name of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sigrl_deploy.config import Crop
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.recognizer import Labels
from sigrl_deploy.recognizer.thresholds import Thresholds
from sigrl_deploy.recognizer.vocabularies import asked_labels
from sigrl_deploy.tagging.run_name import run_name
from sigrl_deploy.vocabulary.vocabulary import Vocabulary


@dataclass(frozen=True)
class Settings:
    """How pictures are tagged, besides labels. See `Recognizer` and `Recognizer.recognize`; `engine` is the `options` there."""

    bundle: Path
    top: int | None = None
    threshold: float | None = None
    thresholds: Thresholds | None = None
    crop: Crop = Crop.CENTRE
    batch_size: int | None = None
    cache_dir: Path | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)

    def open(self, engine: EngineOptions | None = None) -> Recognizer:
        """Raises what `Recognizer` raises."""
        return Recognizer(self.bundle, cache_dir=self.cache_dir, crop=self.crop, options=engine or self.engine)

    def run_name(self, recognizer: Recognizer, vocabulary: Vocabulary) -> str:
        """The name of everything that a row depends on except its picture; `infer` gives its runs the same."""
        chosen = self.top, self.threshold, False, None
        return run_name(recognizer, vocabulary, self.thresholds, chosen, self.engine.device_preprocess)


@dataclass(frozen=True)
class Prepared:
    """A vocabulary, the name of the run, and the engine that made them, in words."""

    vocabulary: Vocabulary
    run: str
    engine: str


def prepare(settings: Settings, labels: Labels = None, background: str | None = None) -> Prepared:
    """Encode the labels, and see that bundle, labels and options go together.

    `background` is as in `LabelSet`, for labels that are a label set or None. Raises UsageError, LabelError and BundleError.
    """
    with settings.open() as recognizer:
        if labels is None or isinstance(labels, LabelSet):
            labels = asked_labels(labels, background, recognizer.vocabulary)
        vocabulary = recognizer.vocabulary(labels)
        recognizer.selection(vocabulary, settings.top, settings.threshold, settings.thresholds)
        return Prepared(vocabulary, settings.run_name(recognizer, vocabulary), recognizer.engine.description)
