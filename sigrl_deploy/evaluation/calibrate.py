"""One run of `sigrl-deploy calibrate`: thresholds for a label set, from pictures with truth or without."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from sigrl_deploy.arrays import FloatArray, Targets
from sigrl_deploy.bundle.manifest import MANIFEST
from sigrl_deploy.calibration.fitting import check_tags_per_picture, fit_quantiles, fit_thresholds
from sigrl_deploy.calibration.goals import parse_goal
from sigrl_deploy.calibration.plots import ENDINGS, draw_precision_recall, draw_reliability
from sigrl_deploy.calibration.probabilities import fit_probabilities, held_out_probabilities, reliability
from sigrl_deploy.calibration.validation import Validation, cross_validate
from sigrl_deploy.config import Crop
from sigrl_deploy.datasets.dataset import UNKNOWN, Dataset
from sigrl_deploy.datasets.labelled_folder import LABELS_CSV
from sigrl_deploy.datasets.opening import has_splits, open_dataset, parse
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import DatasetError, ImageError, LabelError, UsageError, errors_about
from sigrl_deploy.evaluation.metrics import require_scikit_learn
from sigrl_deploy.evaluation.scoring import Model, score_pictures
from sigrl_deploy.evaluation.sources import PictureList, Restricted, names_without_truth, truth_columns
from sigrl_deploy.extras import require
from sigrl_deploy.labels.label_set import LabelSet, label_set
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.pictures.finding import find_pictures
from sigrl_deploy.progress import Progress
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.thresholds import ThresholdFile
from sigrl_deploy.recognizer.vocabularies import asked_labels
from sigrl_deploy.tagging.output import check_place, output_errors
from sigrl_deploy.version import tool_versions

log = logging.getLogger(__name__)

COMPARED = ("fitted", "one_threshold", "top_k")  # ways to decide, fields of a `Validation`


@dataclass(frozen=True)
class CalibrateOptions:
    """What to calibrate on, for which labels, and where the thresholds go. None means the default.

    source: a data set, as `open_dataset` takes it; with `tags_per_picture` also a folder or glob of pictures without truth.
    split: of a data set; by default "val", or all pictures of a folder without splits.
    metric: what thresholds are chosen by: f1, precision@P or recall@R.
    tags_per_picture: use no truth, and let so many labels pass on average.
    probabilities: fit a curve from scores to probabilities too.
    plot_precision, plot_reliability: .png or .svg files to draw.

    The others are those of `infer`.
    """

    source: str
    bundle: Path
    out: Path
    labels: Path | None = None
    background: str | None = None
    split: str | None = None
    metric: str = "f1"
    tags_per_picture: float | None = None
    probabilities: bool = False
    plot_precision: Path | None = None
    plot_reliability: Path | None = None
    limit: int | None = None
    batch_size: int | None = None
    cache_dir: Path | None = None
    crop: Crop | str = Crop.CENTRE
    engine: EngineOptions = field(default_factory=EngineOptions)
    overwrite: bool = False


@dataclass(frozen=True)
class Calibration:
    """What a run found. C labels.

    `validation` and `calibration_error`, that of the probabilities, are by cross-validation, and None without truth or without
    probabilities. `unknown` are labels of which no picture's truth is known, `truth` those that the source knows, and `own`
    those whose threshold in the label file goes before the one found here. `unreadable` are the pictures left out, and why.
    """

    file: ThresholdFile
    labels: tuple[str, ...]
    pictures: int
    validation: Validation | None
    unknown: tuple[str, ...]
    truth: tuple[str, ...]
    own: tuple[str, ...]
    calibration_error: float | None
    unreadable: tuple[tuple[str, str], ...]


def run_calibrate(options: CalibrateOptions) -> Calibration:
    """Score the pictures, choose thresholds, write the file and the plots.

    Raises UsageError and LabelError for options that cannot be used, DatasetError where the pictures show none of the labels.
    """
    goal = parse_goal(options.metric)
    _check_options(options)
    given = None if options.labels is None else read_label_set(options.labels)
    recognizer = Recognizer(options.bundle, cache_dir=options.cache_dir, crop=options.crop, options=options.engine)
    asked = asked_labels(given, options.background, recognizer.vocabulary) or label_set(recognizer.vocabulary().labels)
    if options.tags_per_picture is not None:
        check_tags_per_picture(options.tags_per_picture, len(asked.names))
    dataset, knows = _pictures(options, asked)
    scores, targets, unreadable = _scored(options, recognizer, dataset, asked)
    validation, error, curve = None, None, None
    if options.tags_per_picture is not None:
        shared, thresholds = fit_quantiles(scores, options.tags_per_picture)
        metric = f"tags-per-picture@{options.tags_per_picture:g}"
    else:
        fitted, validation = fit_thresholds(scores, targets, goal), cross_validate(scores, targets, goal)
        shared, thresholds, metric = fitted.global_threshold, fitted.thresholds, str(goal)
    if options.probabilities:
        curve = fit_probabilities(scores, targets)
        error = _probabilities_error(options, scores, targets)
    if options.plot_precision is not None:
        with output_errors(options.plot_precision, "plot_precision"):
            draw_precision_recall(scores, targets, asked.names, options.plot_precision)
    file = ThresholdFile(
        recognizer.scope(recognizer.vocabulary(asked)),
        metric,
        shared,
        dict(zip(asked.names, thresholds.tolist(), strict=True)),
        probabilities=curve,
        calibration=_facts(options, recognizer, asked.names, validation, error, len(scores)),
    )
    with output_errors(options.out):
        file.write(options.out)
    known = (targets != UNKNOWN).any(axis=0)
    without = options.tags_per_picture is None
    return Calibration(
        file,
        asked.names,
        len(scores),
        validation,
        tuple(name for name, has_truth in zip(asked.names, known, strict=True) if without and not has_truth),
        knows,
        tuple(label.name for label in asked.labels if label.emit and label.threshold is not None),
        error,
        tuple(unreadable.items()),
    )


def _check_options(options: CalibrateOptions) -> None:
    """Raise UsageError where options contradict each other, or a file cannot be written, before anything that takes long."""
    truth = "needs the truth about the pictures, and `tags_per_picture` does without"
    if options.tags_per_picture is None:
        require_scikit_learn()
    else:
        for name in ("probabilities", "plot_precision"):
            if getattr(options, name):
                raise UsageError(f"{truth}; leave out one of the two", argument=name)
        if options.metric != "f1":
            raise UsageError(f"{truth}; leave out one of the two", argument="metric", value=options.metric)
    if options.plot_precision and options.plot_precision == options.plot_reliability:
        raise UsageError(
            "is the file of both plots; choose another name", argument="plot_precision", value=options.plot_precision
        )
    if options.plot_reliability and not options.probabilities:
        raise UsageError("is about probabilities; add `probabilities`, or leave it out", argument="plot_reliability")
    if options.out.suffix.lower() != ".json":
        raise UsageError("thresholds are JSON; expected a name that ends in .json", argument="out", value=options.out)
    for name in ("out", "plot_precision", "plot_reliability"):
        path = getattr(options, name)
        if path is None:
            continue
        if name != "out" and path.suffix.lower() not in ENDINGS:
            raise UsageError(f"no plot has this ending; expected {' or '.join(ENDINGS)}", argument=name, value=path)
        read = [options.labels, options.background, options.bundle / MANIFEST]
        check_place(path, [options.source, *(file for file in read if file)], argument=name)
        if not options.overwrite and os.path.exists(path) and os.path.getsize(path):
            raise UsageError("exists already; replace it with `overwrite`, or choose another name", argument=name, value=path)
    if options.plot_precision or options.plot_reliability:
        require("matplotlib", extra="plots")


def _pictures(options: CalibrateOptions, labels: LabelSet) -> tuple[Dataset, tuple[str, ...]]:
    """The pictures, with the truth about these labels where there is some, and the labels that the truth knows."""
    kind, place = parse(options.source)
    labelled = kind != "folder" or place.lower().endswith(".csv") or os.path.isfile(os.path.join(place, LABELS_CSV))
    if not labelled:
        if options.tags_per_picture is None:
            problem = f"holds no {LABELS_CSV} with the truth; add one, or choose by `tags_per_picture`, which needs none"
            if not os.path.isdir(place):
                problem = "no such folder or data set; check the path"
            raise DatasetError(problem, argument="source", value=options.source)
        if options.split is not None:
            raise UsageError("is for a data set; leave it out", argument="split", value=options.split)
        with errors_about(pictures="source"):
            found = find_pictures([place], io.BytesIO())
        if found.skipped_line:
            log.warning(found.skipped_line)
        return PictureList(found.paths, labels.names), ()
    dataset = open_dataset(options.source, options.split or ("val" if has_splits(options.source) else "test"))
    if options.tags_per_picture is None and not any(truth_columns(labels, dataset.labels).values()):
        said = names_without_truth(labels.names, dataset.labels)
        problem = f"{options.source} says nothing about {said}; spell labels as it does"
        raise LabelError(problem, argument="labels", value=options.labels)
    return Restricted(dataset, labels), dataset.labels


def _scored(
    options: CalibrateOptions, recognizer: Recognizer, dataset: Dataset, labels: LabelSet
) -> tuple[FloatArray, Targets, dict[str, str]]:
    """Scores [N, C] and targets [N, C] of the pictures that could be read, and by name why the others could not."""
    pictures = range(min(len(dataset), options.limit or len(dataset)))
    log.info("%d labels, %d pictures", len(labels.names), len(pictures))
    if recognizer.crop is Crop.CENTRE:
        engine, arch = recognizer.engine, recognizer.bundle.manifest.arch
        model = Model(options.bundle, engine.description, arch, engine.precision, engine.device, recognizer)
        size = options.batch_size or (16 if engine.device == "cuda" else 1)
        found = score_pictures(dataset, pictures, labels, [model], size)
        scores, targets, unreadable = found.scores[0], found.targets, found.unreadable
    else:
        scores, targets, unreadable = _scored_whole(recognizer, dataset, pictures, labels)
    if not len(targets):
        reason = f", such as {dataset.name(min(unreadable))}: {unreadable[min(unreadable)]}" if unreadable else ""
        raise UsageError(f"no picture to calibrate on: of {len(pictures)}, {len(unreadable)} cannot be read{reason}")
    return scores, targets, {dataset.name(i): line for i, line in unreadable.items()}


def _scored_whole(
    recognizer: Recognizer, dataset: Dataset, pictures: range, labels: LabelSet
) -> tuple[FloatArray, Targets, dict[int, str]]:
    """The same of a recognizer that shows the model more of a picture than `evaluate` does, one picture at a time."""
    vocabulary = recognizer.vocabulary(labels)
    rows: list[FloatArray] = []
    targets, unreadable = [], dict[int, str]()
    with Progress(len(pictures), "picture") as progress:
        for i in pictures:
            try:
                rows.append(recognizer.scores([dataset.image(i)], vocabulary)[0])
                targets.append(dataset.targets(i))
            except ImageError as error:
                unreadable[i] = str(error)
            progress.advance()
    shape = len(rows), len(vocabulary)
    return np.array(rows, np.float32).reshape(shape), np.array(targets, np.int8).reshape(shape), unreadable


def _probabilities_error(options: CalibrateOptions, scores: FloatArray, targets: Targets) -> float:
    """The calibration error of the probabilities, each picture's by a curve that was fitted without it; draws their plot."""
    found = reliability(held_out_probabilities(scores, targets), targets)
    if options.plot_reliability is not None:
        with output_errors(options.plot_reliability, "plot_reliability"):
            draw_reliability(found, options.plot_reliability)
    return found.error


def _facts(
    options: CalibrateOptions,
    recognizer: Recognizer,
    labels: Sequence[str],
    validation: Validation | None,
    error: float | None,
    pictures: int,
) -> dict[str, Any]:
    """What is known of a calibration besides its thresholds, as JSON has it."""
    measured = (
        {} if validation is None else {name: asdict(getattr(validation, name)) for name in COMPARED} | {"k": validation.k}
    )
    return {
        "source": options.source,
        "split": options.split,
        "pictures": pictures,
        "engine": recognizer.engine.description,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": tool_versions("numpy", "scikit-learn"),
        "cross_validation": measured,
        "calibration_error": error,
    }
