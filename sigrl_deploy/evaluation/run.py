"""One run of `sigrl-deploy evaluate`."""

from __future__ import annotations

import itertools
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import Precision
from sigrl_deploy.datasets.dataset import Dataset
from sigrl_deploy.datasets.opening import folder_identity, has_splits, open_dataset
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import LabelError, UsageError, errors_about, printable
from sigrl_deploy.evaluation.metrics import Difference, Metrics, difference, evaluate_scores, require_scikit_learn
from sigrl_deploy.evaluation.scoring import Model, score_pictures
from sigrl_deploy.extras import require
from sigrl_deploy.labels.names import read_labels

log = logging.getLogger(__name__)

DEFAULT_LABEL_SETS = ("unseen", "seen", "all")
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


@dataclass(frozen=True)
class ModelResult:
    """One model on one label set; `difference` is from the first model, and None for that one."""

    model: Model
    metrics: Metrics
    difference: Difference | None


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
    label_sets = choose_label_sets(dataset, options.label_sets, options.labels)
    models = open_models(options)
    _warn_of_training_pictures(options, models)
    batch_size = options.batch_size or (16 if any(model.device == "cuda" for model in models) else 1)
    return evaluate(dataset, models, label_sets, limit=options.limit, batch_size=batch_size)


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
        arch, device = eager.model.config.arch, eager.model.visual.proj.device.type
        models.append(Model(Path(options.checkpoint.checkpoint), eager.description, arch, Precision.FP32, device, eager))
    if options.bundles:
        from sigrl_deploy.recognizer import Recognizer

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
    from sigrl_deploy.recognizer import Recognizer

    if isinstance(model.scorer, Recognizer):
        training = model.scorer.bundle.manifest.source.get("training")
        return training if isinstance(training, dict) else {}
    from sigrl_deploy.checkpoints.native import read_record

    record = read_record(model.path)
    return record.training if record else {}


def choose_label_sets(dataset: Dataset, names: Sequence[str], labels: Path | None) -> dict[str, tuple[str, ...]]:
    """The label sets to evaluate, each restricted to the labels of a file where one is given; none of them is empty.

    No `names` means those of unseen, seen and all that the data set has. Raises UsageError for a name that it does not have,
    LabelError for a label in the file without annotations, or where no label of a label set that was asked for is left.
    """
    missing = [name for name in names if name not in dataset.label_sets]
    if missing:
        problem = f"this data set does not have it; expected one of {', '.join(dataset.label_sets)}"
        raise UsageError(problem, argument="label_sets", value=missing[0])
    chosen = dict.fromkeys(names or [name for name in DEFAULT_LABEL_SETS if name in dataset.label_sets])
    if labels is None:
        return {name: dataset.label_sets[name] for name in chosen}
    wanted = set(_annotated(labels, dataset))
    kept = {name: tuple(label for label in dataset.label_sets[name] if label in wanted) for name in chosen}
    for name, rest in kept.items():
        if names and not rest:
            problem = f"holds no label of the label set {name}; add one, or leave out `label_sets=('{name}',)`"
            raise LabelError(problem, argument="labels", value=labels)
        left_out = len(dataset.label_sets[name]) - len(rest)
        log.info("%s: %d of %d labels are not in %s and are left out", name, left_out, len(rest) + left_out, labels)
    return {name: rest for name, rest in kept.items() if rest}


def _annotated(path: Path, dataset: Dataset) -> tuple[str, ...]:
    labels, known = read_labels(path), set(dataset.labels)
    unknown = [label for label in labels if label not in known]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        problem = f"the data set has no annotations of {unknown[0]!r}{more}; leave it out, or spell it as the data set does"
        raise LabelError(problem, argument="labels", value=path)
    return labels


def evaluate(
    dataset: Dataset,
    models: Sequence[Model],
    label_sets: Mapping[str, tuple[str, ...]],
    *,
    limit: int | None = None,
    batch_size: int = 1,
) -> Evaluation:
    """Evaluate models on the first `limit` pictures (None: all). The others are compared with the first model.

    Each label set is a pass of its own, since scores depend on the vocabulary. A picture that cannot be read is left out for
    all models. Raises UsageError where no picture is left.
    """
    pictures = list(range(min(len(dataset), len(dataset) if limit is None else limit)))
    unreadable: dict[int, str] = {}
    results = []
    for name, labels in label_sets.items():
        log.info("%s: %d labels, %d pictures", name, len(labels), len(pictures) - len(unreadable))
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
        rows = zip(models, metrics, [None, *differences], strict=True)
        results.append(LabelSetResult(name, labels, len(scored.targets), tuple(ModelResult(*row) for row in rows)))
    return Evaluation(tuple(models), tuple(results), tuple((dataset.name(i), unreadable[i]) for i in sorted(unreadable)))


def _report(dataset: Dataset, unreadable: Mapping[int, str]) -> None:
    for index in list(unreadable)[:_SHOWN_ERRORS]:
        log.warning("%s: %s", printable(dataset.name(index)), unreadable[index])
    if len(unreadable) > _SHOWN_ERRORS:
        log.warning("and %d more pictures that cannot be read", len(unreadable) - _SHOWN_ERRORS)
