"""Which labels are evaluated, and their thresholds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.datasets.dataset import Dataset
from sigrl_deploy.errors import LabelError, UsageError
from sigrl_deploy.evaluation.scoring import Model
from sigrl_deploy.evaluation.sources import Restricted, names_without_truth, truth_columns
from sigrl_deploy.labels.label_set import Label, LabelSet
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.thresholds import Thresholds
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

Decider: TypeAlias = "Callable[[FloatArray], NDArray[np.bool_]]"  # scores [N, C] → decisions [N, C]
DEFAULT_LABEL_SETS = ("unseen", "seen", "all")


def choose_label_sets(
    dataset: Dataset, names: Sequence[str], labels: LabelSet | None = None, path: Path | None = None
) -> dict[str, LabelSet]:
    """The label sets to evaluate, each restricted to `labels`, of the file `path`, where they are given; none is empty.

    No `names` means those of unseen, seen and all that the data set has. Labels of which the data set says nothing are scored
    and not evaluated.

    Raises UsageError for a name that it does not have, LabelError where no label is left.
    """
    missing = [name for name in names if name not in dataset.label_sets]
    if missing:
        problem = f"this data set does not have it; expected one of {', '.join(dataset.label_sets)}"
        raise UsageError(problem, argument="label_sets", value=missing[0])
    chosen = dict.fromkeys(names or [name for name in DEFAULT_LABEL_SETS if name in dataset.label_sets])
    if labels is None:
        return {name: LabelSet(tuple(map(Label, dataset.label_sets[name]))) for name in chosen}
    wanted = _annotated(labels, dataset, path)
    restricted = Restricted(dataset, wanted)
    kept = {name: wanted.only(restricted.label_sets[name]) for name in chosen}
    for name, rest in kept.items():
        count = len(rest.names)
        if names and not count:
            problem = f"holds no label of the label set {name}; add one, or leave out `label_sets=('{name}',)`"
            raise LabelError(problem, argument="labels", value=path)
        left_out = max(0, len(dataset.label_sets[name]) - count)
        log.info("%s: %d of %d labels are not in %s and are left out", name, left_out, count + left_out, path)
    return {name: rest for name, rest in kept.items() if rest.names}


def _annotated(labels: LabelSet, dataset: Dataset, path: Path | None) -> LabelSet:
    """The labels in the order of the data set; those of which it says nothing are scored beside them."""
    columns = truth_columns(labels, dataset.labels)
    unknown = [name for name, own in columns.items() if not own]
    if len(unknown) == len(columns):
        said = names_without_truth(unknown, dataset.labels)
        raise LabelError(f"the data set says nothing about {said}; spell labels as it does", argument="labels", value=path)
    if unknown:
        log.warning("the data set says nothing about %s: scored, not evaluated", names_without_truth(unknown, dataset.labels))
    shown = [replace(label, emit=label.emit and bool(columns[label.name])) for label in labels.labels]
    place = {name: own[0] for name, own in columns.items() if own}
    return replace(labels, labels=tuple(sorted(shown, key=lambda label: place.get(label.name, len(dataset.labels)))))


def bundled(labels: LabelSet, models: Sequence[Model]) -> tuple[str, ...] | None:
    """The labels of the first bundle that has some, where they are the background."""
    if labels.background == "bundle":
        for model in models:
            if isinstance(model.scorer, Recognizer) and (own := model.scorer.own_labels):
                return own
    return None


def deciders(
    thresholds: Thresholds, models: Sequence[Model], label_sets: Mapping[str, LabelSet]
) -> dict[tuple[str, int], Decider]:
    """By label set and number of the model, what makes decisions of scores, where the file is for both.

    Raises UsageError where it is for none.
    """
    found: dict[tuple[str, int], Decider] = {}
    refused: UsageError | None = None
    for name, labels in label_sets.items():
        for i, model in enumerate(models):
            if isinstance(model.scorer, Recognizer):
                try:
                    vocabulary = model.scorer.vocabulary(labels)
                    limits = thresholds.limits(model.scorer.scope(vocabulary), vocabulary)
                    found[name, i] = partial(_decided, limits=limits, vocabulary=vocabulary)
                except UsageError as error:
                    refused = error
    if not found:
        raise refused or UsageError("are for bundles; add a `bundles`", argument="thresholds", value=thresholds.path)
    return found


def _decided(scores: FloatArray, limits: FloatArray, vocabulary: Vocabulary) -> NDArray[np.bool_]:
    """Scores [N, C] → whether pictures get the labels as tags, by themselves or as parents of others."""
    chosen: NDArray[np.bool_] = scores >= limits
    return chosen if vocabulary.readout is None else vocabulary.readout.with_parents(chosen, vocabulary.labels)
