"""Which labels are evaluated, and their thresholds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.datasets.dataset import Dataset
from sigrl_deploy.errors import LabelError, UsageError
from sigrl_deploy.evaluation.scoring import Model
from sigrl_deploy.labels.label_set import Label, LabelSet
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.thresholds import Thresholds

log = logging.getLogger(__name__)

DEFAULT_LABEL_SETS = ("unseen", "seen", "all")


def choose_label_sets(
    dataset: Dataset, names: Sequence[str], labels: Path | None, background: str | None = None
) -> dict[str, LabelSet]:
    """The label sets to evaluate, each restricted to the labels of a file where one is given; none of them is empty.

    No `names` means those of unseen, seen and all that the data set has. `background` takes the place of the file's.

    Raises UsageError for a name that it does not have, LabelError for a label in the file without annotations, or where no
    label of a label set that was asked for is left.
    """
    missing = [name for name in names if name not in dataset.label_sets]
    if missing:
        problem = f"this data set does not have it; expected one of {', '.join(dataset.label_sets)}"
        raise UsageError(problem, argument="label_sets", value=missing[0])
    chosen = dict.fromkeys(names or [name for name in DEFAULT_LABEL_SETS if name in dataset.label_sets])
    if labels is None:
        return {name: LabelSet(tuple(map(Label, dataset.label_sets[name])), background=background) for name in chosen}
    wanted = _annotated(labels, dataset)
    wanted = wanted if background is None else replace(wanted, background=background)
    kept = {name: wanted.only(dataset.label_sets[name]) for name in chosen}
    for name, rest in kept.items():
        count = len(rest.names)
        if names and not count:
            problem = f"holds no label of the label set {name}; add one, or leave out `label_sets=('{name}',)`"
            raise LabelError(problem, argument="labels", value=labels)
        left_out = len(dataset.label_sets[name]) - count
        log.info("%s: %d of %d labels are not in %s and are left out", name, left_out, count + left_out, labels)
    return {name: rest for name, rest in kept.items() if rest.names}


def _annotated(path: Path, dataset: Dataset) -> LabelSet:
    """The label set of a file, its labels in the order of the data set."""
    found, known = read_label_set(path), set(dataset.labels)
    unknown = [label for label in found.names if label not in known]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        problem = f"the data set has no annotations of {unknown[0]!r}{more}; leave it out, or spell it as the data set does"
        raise LabelError(problem, argument="labels", value=path)
    place = {label: i for i, label in enumerate(dataset.labels)}
    return replace(found, labels=tuple(sorted(found.labels, key=lambda label: place.get(label.name, len(place)))))


def bundled(labels: LabelSet, models: Sequence[Model]) -> tuple[str, ...] | None:
    """The labels of the first bundle that has some, where they are the background."""
    if labels.background == "bundle":
        for model in models:
            if isinstance(model.scorer, Recognizer) and (own := model.scorer.own_labels):
                return own
    return None


def limits_of(
    thresholds: Thresholds, models: Sequence[Model], label_sets: Mapping[str, LabelSet]
) -> dict[tuple[str, int], FloatArray]:
    """Thresholds [C] by label set and number of the model, where the file is for both.

    Raises UsageError where it is for none.
    """
    found: dict[tuple[str, int], FloatArray] = {}
    refused: UsageError | None = None
    for name, labels in label_sets.items():
        for i, model in enumerate(models):
            if isinstance(model.scorer, Recognizer):
                try:
                    vocabulary = model.scorer.vocabulary(labels)
                    found[name, i] = thresholds.limits(model.scorer.scope(vocabulary), vocabulary)
                except UsageError as error:
                    refused = error
    if not found:
        raise refused or UsageError("are for bundles; add a `bundles`", argument="thresholds", value=thresholds.path)
    return found
