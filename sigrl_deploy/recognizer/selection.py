"""Which labels of a picture become predictions."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.calibration.probabilities import Curve, Isotonic
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import UsageError, kind_of
from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.recognizer.thresholds import Scope, Thresholds
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

DEFAULT_TOP = 5
_SCORES = Isotonic(x=(0.0, 1.0), y=(0.0, 1.0))  # scores that are probabilities as they are


def no_places(arch: Arch) -> str:
    """Why there is no evidence by patch."""
    matched = "matches features that lie nowhere in the picture" if arch.has_local else "scores whole pictures"
    return f"a bundle of arch {arch.value} {matched} and has no evidence by patch; leave it out"


@dataclass(frozen=True)
class Selection:
    """The `top` best labels (None: all) of those that reach their threshold, and the parents that they bring with them.

    `threshold` holds for every label that has none of its own. `limits` fp32 [C] are those of a file of thresholds and of the
    labels themselves, and `probabilities` is the file's curve, or that of a model whose scores are probabilities.
    """

    top: int | None
    threshold: float | None
    evidence: bool
    limits: FloatArray | None = None
    probabilities: Curve | None = None

    @classmethod
    def of(
        cls,
        arch: Arch,
        scope: Callable[[], Scope],
        vocabulary: Vocabulary,
        top: int | None,
        threshold: float | None,
        thresholds: str | os.PathLike[str] | Thresholds | None,
        evidence: bool,
    ) -> Selection:
        """From the arguments of `Recognizer.recognize`. Raises UsageError for thresholds that are not of this scope."""
        own = _SCORES if arch.gives_probabilities else None
        if thresholds is None:
            return cls(DEFAULT_TOP if top is None else top, threshold, evidence, probabilities=own)
        if not isinstance(thresholds, (str, os.PathLike, Thresholds)):
            problem = (
                f"is {kind_of(thresholds)}, expected a file that sigrl-deploy calibrate wrote; one number is a `threshold`"
            )
            raise UsageError(problem, argument="thresholds")
        file = thresholds if isinstance(thresholds, Thresholds) else Thresholds.read(os.fsdecode(thresholds))
        here = scope()
        return cls(top, threshold, evidence, file.limits(here, vocabulary), file.probabilities(here) or own)

    def check(self, arch: Arch) -> None:
        """Raise UsageError for values that mean nothing, and for evidence where the architecture matches no patches."""
        if self.top is not None and (not isinstance(self.top, (int, np.integer)) or self.top < 1):
            raise UsageError("expected a whole number above 0", argument="top", value=self.top)
        number = isinstance(self.threshold, (int, float, np.number)) and np.isfinite(self.threshold)
        if self.threshold is not None and not number:
            raise UsageError("expected a finite number or None", argument="threshold", value=self.threshold)
        if self.threshold is not None and self.limits is not None:
            raise UsageError("`thresholds` has one for every label; leave out one of the two", argument="threshold")
        if self.evidence and not arch.has_places:
            raise UsageError(no_places(arch), argument="evidence")

    def best(self, scores: FloatArray, vocabulary: Vocabulary) -> tuple[Prediction, ...]:
        """scores [C] → predictions without evidence, best first, ties in the order of the labels."""
        limits = self._limits(vocabulary)
        order = np.argsort(-scores, kind="stable")
        # A NaN stands for no threshold, and no score is below it.
        passing = [int(i) for i in (order if limits is None else order[~(scores[order] < limits[order])])[: self.top]]
        chosen = {i: self._prediction(vocabulary.labels[i], scores[i], None if limits is None else limits[i]) for i in passing}
        if vocabulary.readout is None:
            return tuple(chosen.values())
        found = {prediction.label: prediction for prediction in chosen.values()}
        for i, child in chosen.items():
            for parent in vocabulary.readout.ancestors[i]:
                if parent not in found or child.score > found[parent].score:
                    found[parent] = replace(child, label=parent, child=child.label)
        return tuple(sorted(found.values(), key=lambda prediction: -prediction.score))

    def _prediction(self, label: str, score: np.float32, limit: np.float32 | None) -> Prediction:
        return Prediction(
            label,
            float(score),
            threshold=None if limit is None or np.isnan(limit) else float(limit),
            probability=None if self.probabilities is None else float(self.probabilities(np.asarray(score))),
        )

    def _limits(self, vocabulary: Vocabulary) -> FloatArray | None:
        """fp32 [C], NaN for a label without a threshold; None where no label has one."""
        if self.limits is not None:
            return self.limits
        own = None if vocabulary.readout is None else vocabulary.readout.thresholds
        if self.threshold is None:
            return own
        everywhere = np.full(len(vocabulary), self.threshold, np.float32)
        return everywhere if own is None else np.where(np.isnan(own), everywhere, own)
