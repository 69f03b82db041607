"""Thresholds that `sigrl-deploy calibrate` found, and the check that they are used with what they were found for.

Where scores are normalised over all rows of a vocabulary, a threshold holds for one label set, one model and one precision.
Where they are not, it holds beside any other labels.
"""

from __future__ import annotations

import json
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.manifest import Manifest
from sigrl_deploy.calibration.probabilities import Curve
from sigrl_deploy.config import Crop, Precision
from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import read_bounded, replacing
from sigrl_deploy.structs import Checked
from sigrl_deploy.vocabulary.cache import digest
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 28
_RESCALE = "calibrate again, or scale it, which is less exact: `rescale_thresholds`, or Thresholds.read(path, rescale=True)"
# Of what a manifest says about an export's sources.
_WEIGHTS = ("checkpoint", "text_tower", "label_embeddings", "backbone", "word_vectors", "relation", "scaling", "labels")
_APART = "any"  # in place of a vocabulary's digest, where each label's score is its own
_Finite: TypeAlias = Annotated[float, Meta(ge=-1e6, le=1e6)]


class Scope(Checked, frozen=True):
    """What thresholds hold for. Two that are equal may share a file of thresholds.

    `labels` names the vocabulary and `rows` says how many rows a score depends on: all of them, or 1 where the architecture
    does not compare labels. There, labels that are names alone are scored as in any vocabulary, and `labels` is "any". `model`
    names the weights and everything else that scores depend on, `precision` and `crop` are how they run.
    """

    labels: str
    rows: Annotated[int, Meta(ge=1)]
    model: str
    precision: Precision
    crop: Crop

    @classmethod
    def of(cls, manifest: Manifest, precision: Precision, crop: Crop, vocabulary: Vocabulary) -> Scope:
        """Exports of the same checkpoint have the same `model`, whatever precisions they hold."""
        rules = [manifest.arch.value, str(manifest.topk), manifest.template, str(manifest.preprocess.description)]
        settings = manifest.source.get("settings")  # which no file shows
        if settings is not None:
            rules.append(json.dumps(settings, sort_keys=True))
        made_of = {name: source for name, source in manifest.source.items() if name in _WEIGHTS and isinstance(source, dict)}
        weights = [f"{name} {source.get('sha256') or source.get('file')}" for name, source in sorted(made_of.items())]
        labels, rows = vocabulary.digest, len(vocabulary.label_embedding)
        if not manifest.arch.compares_labels:
            labels, rows = (_APART if vocabulary.is_of_names else labels), 1
        return cls(labels, rows, digest(*rules, *weights), precision, crop)


class ThresholdFile(Checked, frozen=True):
    """What a file of thresholds holds.

    `thresholds` are by label, `global_threshold` is for labels that it does not name. `metric` is what they were chosen by, and
    `calibration` what is known of that: pictures, date, figures by cross-validation. `probabilities` turns scores into them.
    """

    scope: Scope
    metric: str
    global_threshold: _Finite
    thresholds: dict[str, _Finite]
    version: Literal[1] = 1
    probabilities: Curve | None = None
    calibration: dict[str, Any] = msgspec.field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all. Raises OSError."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_plain(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Thresholds:
    """A file of thresholds to use.

    >>> thresholds = Thresholds.read("thresholds.json")
    >>> thresholds.file.metric
    'f1'

    Attributes:
        path: the file.
        file: what it holds.
        rescale: whether it may be used with other labels and another precision than it was made for. Scores shrink with the
            square root of the number of rows, and thresholds are made to follow. They are worse than calibrated ones.
    """

    path: Path
    file: ThresholdFile
    rescale: bool = False

    @classmethod
    def read(cls, path: str | Path, *, rescale: bool = False) -> Thresholds:
        """Read a file that `sigrl-deploy calibrate` wrote. Raises UsageError where it cannot be read."""
        try:
            values = json.loads(read_bounded(Path(path), _MOST_BYTES))
        except (OSError, ValueError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or error
            advice = "expected a file that sigrl-deploy calibrate wrote; one number for all labels is a `threshold`"
            raise UsageError(f"cannot be read ({reason}); {advice}", argument="thresholds", value=path) from None
        version = values.get("version") if isinstance(values, dict) else None
        try:
            if version != 1:
                raise ValueError(f"version: {str(version)[:20]}, this release reads 1")
            return cls(Path(path), ThresholdFile.from_plain(values), rescale)
        except ValueError as error:
            problem = f"is no file of thresholds ({error}); expected one that sigrl-deploy calibrate wrote"
            raise UsageError(problem, argument="thresholds", value=path) from None

    def limits(self, scope: Scope, vocabulary: Vocabulary) -> FloatArray:
        """fp32 [C], the threshold of each label: its own from the label set, or the file's.

        Raises UsageError where the file was made for something else.
        """
        self._check(scope, vocabulary)
        factor = self._factor(scope)
        strange = sum(label not in self.file.thresholds for label in vocabulary.labels)
        if strange and self.file.scope.labels == _APART:
            log.warning("%s: %d labels are not in the file and take its threshold for all", self.path, strange)
        elif factor != 1:
            log.warning(
                "%s: thresholds times %.3f, for %d labels in place of %d; %d of them are not in the file and take the one for "
                "all; to calibrate again is more exact",
                self.path,
                factor,
                scope.rows,
                self.file.scope.rows,
                strange,
            )
        values = [self.file.thresholds.get(label, self.file.global_threshold) for label in vocabulary.labels]
        limits: FloatArray = np.array(values, np.float32) * np.float32(factor)
        own = None if vocabulary.readout is None else vocabulary.readout.thresholds
        return limits if own is None else np.where(np.isnan(own), limits, own)

    def probabilities(self, scope: Scope) -> Curve | None:
        """The curve of probabilities, where the file has one and is used with what it was made for."""
        return None if scope != self.file.scope else self.file.probabilities

    def _factor(self, scope: Scope) -> float:
        """Within a picture, the spread of scores times √R is about the same for any vocabulary of R rows."""
        if scope.labels == self.file.scope.labels or scope.rows == 1:
            return 1.0
        return math.sqrt(self.file.scope.rows / scope.rows)

    def _check(self, scope: Scope, vocabulary: Vocabulary) -> None:
        own = self.file.scope
        given = None if vocabulary.readout is None else vocabulary.readout.thresholds
        known = self.file.thresholds.keys() | {
            label for i, label in enumerate(vocabulary.labels) if given is not None and not np.isnan(given[i])
        }
        without = [label for label in vocabulary.labels if label not in known]
        if scope.model != own.model:
            problem = "was made for another bundle; calibrate this one"
        elif scope.crop is not own.crop:
            problem = f"was made with `crop='{own.crop.value}'`; use that, or calibrate again with this one"
        elif self.rescale:
            return
        elif scope.labels != own.labels:
            others = self._differing(scope, vocabulary) + (", and each score depends on all labels" if own.rows > 1 else "")
            problem = f"was made for {others}; {_RESCALE}"
        elif own.labels == _APART and without:
            problem = f"has no threshold for {without[0]!r}; calibrate with it, or use `rescale_thresholds` for the one for all"
        elif scope.precision is not own.precision:
            problem = (
                f"was made with `precision='{own.precision.value}'`; use that, calibrate again, or use `rescale_thresholds`"
            )
        else:
            return
        raise UsageError(problem, argument="thresholds", value=self.path)

    def _differing(self, scope: Scope, vocabulary: Vocabulary) -> str:
        """How the labels of the file differ from these."""
        here, there = set(vocabulary.labels), self.file.thresholds.keys()
        for label in sorted(here - there):
            return f"other labels, without {label!r}"
        for label in sorted(there - here):
            return f"other labels, with {label!r}"
        if scope.rows != self.file.scope.rows:
            return f"these labels among {self.file.scope.rows}, which are {scope.rows} here: another background"
        return "these labels with other synonyms, templates or background"


def read_thresholds(path: Path | None, rescale: bool) -> Thresholds | None:
    """What the options `thresholds` and `rescale_thresholds` ask for. Raises UsageError as `Thresholds.read` does."""
    if path is not None:
        return Thresholds.read(path, rescale=rescale)
    if rescale:
        raise UsageError("is for a file of thresholds; give `thresholds`, or leave it out", argument="rescale_thresholds")
    return None
