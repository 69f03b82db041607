"""One run of `sigrl-deploy evaluate`."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import Precision
from sigrl_deploy.datasets.dataset import Dataset
from sigrl_deploy.datasets.opening import folder_identity, has_splits, open_dataset
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError, errors_about, printable
from sigrl_deploy.evaluation.label_sets import Decider, bundled, choose_label_sets, deciders
from sigrl_deploy.evaluation.metrics import (
    AtThresholds,
    Difference,
    Metrics,
    difference,
    evaluate_decisions,
    evaluate_scores,
    require_scikit_learn,
)
from sigrl_deploy.evaluation.scoring import Model, score_pictures
from sigrl_deploy.evaluation.sources import Restricted
from sigrl_deploy.extras import require
from sigrl_deploy.labels.background import with_background
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.thresholds import read_thresholds

log = logging.getLogger(__name__)

_SHOWN_ERRORS = 5


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, on what, and where the results go. None means the default."""

    data: str
    split: str
    bundles: tuple[Path, ...]
    checkpoint: CheckpointOptions | None
    label_sets: tuple[str, ...]
    labels: Path | None
    limit: int | None
    batch_size: int | None
    cache_dir: Path | None
    out: Path | None
    engine: EngineOptions  # of the bundles, except for their precisions; its device is the checkpoint's too
    precisions: tuple[Precision, ...] = ()  # of each bundle; none is its first that the device can run
    validation_share: float | None = None
    overwrite: bool = False  # `out`
    background: str | None = None  # in place of the label file's
    thresholds: Path | None = None  # of the bundles
    rescale_thresholds: bool = False


@dataclass(frozen=True)
class ModelResult:
    """One model on one label set.

    `difference` is from the first model, and None for that one; `decisions` are at thresholds, where there are some for it.
    """

    model: Model
    metrics: Metrics
    difference: Difference | None
    decisions: AtThresholds | None = None


@dataclass(frozen=True)
class LabelSetResult:
    """All models on one label set, over the same pictures."""

    name: str
    labels: tuple[str, ...]
    pictures: int
    results: tuple[ModelResult, ...]


@dataclass(frozen=True)
class Evaluation:
    """The results of a run, and the pictures left out because they could not be read: name and reason."""

    models: tuple[Model, ...]
    label_sets: tuple[LabelSetResult, ...]
    unreadable: tuple[tuple[str, str], ...]


def run_evaluate(options: EvaluateOptions) -> Evaluation:
    """Open the data set and the models, and evaluate. A wrong option raises a SigRLError before any picture is read."""
    require_scikit_learn()
    _check_options(options)
    dataset = open_dataset(options.data, options.split, options.validation_share)
    thresholds = read_thresholds(options.thresholds, options.rescale_thresholds)
    given = None if options.labels is None else read_label_set(options.labels)
    label_sets = choose_label_sets(dataset, options.label_sets, given, options.labels)
    if options.background is not None:
        label_sets = {name: replace(labels, background=options.background) for name, labels in label_sets.items()}
    models = open_models(options)
    label_sets = {name: with_background(labels, bundled(labels, models)) for name, labels in label_sets.items()}
    decide = {} if thresholds is None else deciders(thresholds, models, label_sets)
    _warn_of_training_pictures(options, models)
    if thresholds is not None and thresholds.file.calibration.get("source") == options.data:
        log.warning("%s was calibrated on %s too; on other pictures its figures will be lower", thresholds.path, options.data)
    dataset = dataset if given is None else Restricted(dataset, given)
    batch_size = options.batch_size or (16 if any(model.device == "cuda" for model in models) else 1)
    return evaluate(dataset, models, label_sets, limit=options.limit, batch_size=batch_size, decide=decide)


def _check_options(options: EvaluateOptions) -> None:
    if not options.bundles and options.checkpoint is None:
        raise UsageError("nothing to evaluate; give one or more `bundles`, a `checkpoint`, or both")
    if options.engine.unfused and not options.bundles:
        problem = "a checkpoint always runs unfused; leave it out, or add a `bundles`"
        raise UsageError(problem, argument="unfused", value=next(iter(options.engine.unfused)))
    if options.precisions and not options.bundles:
        problem = "is for bundles, and a checkpoint runs in fp32; add a `bundles`, or leave it out"
        raise UsageError(problem, argument="precisions", value=options.precisions[0].value)
    if options.out is None:
        if sys.stdout is None:
            raise UsageError("standard output is closed; open it, or give `out`")
        if options.overwrite:
            raise UsageError("is for a file; give `out`, or leave it out", argument="overwrite")
        return
    out = options.out
    # A file of the data set or of a bundle is easily named by mistake, and hardly any of them has this ending.
    if out.suffix.lower() != ".json":
        raise UsageError("the results are JSON; expected a name that ends in .json", argument="out", value=out)
    if not os.access(out.parent, os.W_OK | os.X_OK) or not os.path.isdir(out.parent):
        problem = f"the folder {out.parent} does not exist or cannot be written; choose another place"
        raise UsageError(problem, argument="out", value=out)
    if os.path.exists(out) and not os.path.isfile(out):
        raise UsageError("is a folder, device or pipe, expected a file", argument="out", value=out)
    if not options.overwrite and os.path.exists(out) and os.path.getsize(out) > 0:
        raise UsageError("exists already; replace it with `overwrite`, or choose another name", argument="out", value=out)


def open_models(options: EvaluateOptions) -> list[Model]:
    """The checkpoint, where there is one, then the bundles; torch is imported for a checkpoint only."""
    models = []
    if options.checkpoint is not None:
        require("torch", "open_clip", extra="export", argument="checkpoint", value=options.checkpoint.checkpoint)
        from sigrl_deploy.checkpoints.eager import load_eager

        eager = load_eager(options.checkpoint, device=options.engine.device)
        log.info("engine: %s", eager.description)  # as a recognizer does
        arch, device = eager.model.config.arch, eager.device
        models.append(Model(Path(options.checkpoint.checkpoint), eager.description, arch, Precision.FP32, device, eager))
    if options.bundles:
        for path, precision in itertools.product(options.bundles, options.precisions or (None,)):
            with errors_about(bundle="bundles", precision="precisions"):
                recognizer = Recognizer(path, precision=precision, cache_dir=options.cache_dir, options=options.engine)
            engine, arch = recognizer.engine, recognizer.bundle.manifest.arch
            models.append(Model(path, engine.description, arch, engine.precision, engine.device, recognizer))
    _warn_of_differences(models)
    return models


def _warn_of_differences(models: Sequence[Model]) -> None:
    """Warn where models are not the same model: their scores then differ by more than the export."""
    for model in models[1:]:
        first, other = models[0].scorer.rules, model.scorer.rules
        for name in first:
            if first[name] != other[name]:
                log.warning("%s has %s %s, but %s has %s", model.path, name, other[name], models[0].path, first[name])


def _warn_of_training_pictures(options: EvaluateOptions, models: Sequence[Model]) -> None:
    """Warn where a model was trained on pictures that are evaluated here."""
    if options.split == "train" or has_splits(options.data):
        return
    if options.split == "test":
        log.info("%s has no column split, so all its pictures are evaluated", options.data)
    here, said = folder_identity(options.data), set[Path]()
    for model in models:
        training = _training_of(model)
        if training.get("folder") != here or model.path in said:
            continue
        said.add(model.path)
        settings = training.get("settings")
        apart = settings.get("validation_share") if isinstance(settings, dict) else None
        if not isinstance(apart, float):
            log.warning("%s was trained on these pictures, so its figures say nothing about other pictures", model.path)
        elif options.validation_share is None or options.validation_share > apart:
            log.warning(
                "%s was trained on pictures of this folder, which are among these; `split='val'` with "
                "`validation_share=%g` leaves them out",
                model.path,
                apart,
            )


def _training_of(model: Model) -> dict[str, Any]:
    """The record of a model's training; empty where there is none."""
    if isinstance(model.scorer, Recognizer):
        training = model.scorer.bundle.manifest.source.get("training")
        return training if isinstance(training, dict) else {}
    from sigrl_deploy.checkpoints.native import read_record

    record = read_record(model.path)
    return record.training if record else {}


def evaluate(
    dataset: Dataset,
    models: Sequence[Model],
    label_sets: Mapping[str, LabelSet],
    *,
    limit: int | None = None,
    batch_size: int = 1,
    decide: Mapping[tuple[str, int], Decider] = MappingProxyType({}),
) -> Evaluation:
    """Evaluate models on the first `limit` pictures (None: all). The others are compared with the first model.

    Each label set is a pass of its own, since scores depend on the vocabulary. A picture that cannot be read is left out for
    all models. `decide` makes decisions of scores, by label set and number of the model.

    Raises UsageError where no picture is left.
    """
    pictures = list(range(min(len(dataset), len(dataset) if limit is None else limit)))
    unreadable: dict[int, str] = {}
    results = []
    for name, labels in label_sets.items():
        log.info("%s: %d labels, %d pictures", name, len(labels.names), len(pictures) - len(unreadable))
        scored = score_pictures(dataset, [i for i in pictures if i not in unreadable], labels, models, batch_size)
        _report(dataset, scored.unreadable)
        unreadable |= scored.unreadable
        if len(scored.targets) == 0:
            raise UsageError(f"no picture to evaluate: the data set has {len(dataset)}, and {len(unreadable)} cannot be read")
        metrics = [evaluate_scores(scores, scored.targets) for scores in scored.scores]
        differences = [
            difference(scores, scored.scores[0], its.map, metrics[0].map)
            for scores, its in zip(scored.scores[1:], metrics[1:], strict=True)
        ]
        decisions = [
            evaluate_decisions(decide[name, i](scores), scored.targets) if (name, i) in decide else None
            for i, scores in enumerate(scored.scores)
        ]
        rows = zip(models, metrics, [None, *differences], decisions, strict=True)
        results.append(LabelSetResult(name, labels.names, len(scored.targets), tuple(ModelResult(*row) for row in rows)))
    return Evaluation(tuple(models), tuple(results), tuple((dataset.name(i), unreadable[i]) for i in sorted(unreadable)))


def _report(dataset: Dataset, unreadable: Mapping[int, str]) -> None:
    for index in list(unreadable)[:_SHOWN_ERRORS]:
        log.warning("%s: %s", printable(dataset.name(index)), unreadable[index])
    if len(unreadable) > _SHOWN_ERRORS:
        log.warning("and %d more pictures that cannot be read", len(unreadable) - _SHOWN_ERRORS)
