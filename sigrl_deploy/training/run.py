"""One run of `sigrl-deploy train`: puts the model, its data set and its labels together."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.csv_logs import CSVLogger
from numpy.typing import NDArray
from torch.nn.attention import SDPBackend, sdpa_kernel

from sigrl_deploy.checkpoints.eager import EagerModel, embed_labels
from sigrl_deploy.checkpoints.native import TrainedRecord
from sigrl_deploy.config import Precision
from sigrl_deploy.datasets.dataset import NEGATIVE, POSITIVE, Dataset
from sigrl_deploy.datasets.opening import SCENES, folder_identity, open_dataset, parse
from sigrl_deploy.datasets.scenes import Scenes
from sigrl_deploy.datasets.single_positive import SinglePositive
from sigrl_deploy.errors import DatasetError, UsageError
from sigrl_deploy.evaluation.metrics import evaluate_scores
from sigrl_deploy.evaluation.scoring import Model, score_pictures
from sigrl_deploy.files import sha256_file
from sigrl_deploy.progress import Progress
from sigrl_deploy.training.contrastive import ContrastiveTask, draw_captions
from sigrl_deploy.training.data import Examples, KeptPictures, augmentation
from sigrl_deploy.training.loop import Reached, Run, Schedule, Validate
from sigrl_deploy.training.models import Start, new_clip, start_from
from sigrl_deploy.training.recipes import RECIPES, Recipe, RecipeName, TrainOptions, choose_recipe
from sigrl_deploy.training.run_folder import RunFolder
from sigrl_deploy.training.tasks import TaggingTask, Task
from sigrl_deploy.version import tool_versions

log = logging.getLogger(__name__)

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
# Options that may be others when a run is resumed, because they do not change the result.
_INCIDENTAL = ("out", "resume", "workers", "keep_pictures", "device", "data")


@dataclass(frozen=True)
class Job:
    """A task, with the pictures and labels to train it on.

    identity: describes the data set, wherever it is. A resumed run must have the same.
    """

    task: Task
    dataset: Dataset
    indices: NDArray[np.intp]
    extra: Callable[[int, int], Any]
    labels: tuple[str, ...]
    identity: dict[str, Any]


def run_train(options: TrainOptions) -> Reached:
    """Train, and return what was reached. `options.out` then has the `model.safetensors` that export reads.

    The options must have passed `check_run`. Raises UsageError for options that do not fit the data or the machine,
    DatasetError and CheckpointError for files that cannot be used, and TrainingError where the run fails; its last checkpoint
    is kept.
    """
    recipe = choose_recipe(options)
    fabric = _fabric(options)
    fabric.launch()
    torch.manual_seed(options.seed)  # for the weights that start at random
    start = _start(options, recipe)
    job = (_contrastive if options.recipe is RecipeName.CONTRASTIVE else _tagging)(options, start, recipe)
    recipe = _with_fitting_batch_size(options, recipe, len(job.indices))
    schedule = _schedule(options, recipe, len(job.indices))
    settings = _settings(options, recipe, start, schedule) | job.identity
    record = _record(start, job.labels, _provenance(options, settings))
    validate = _validation(options, start, fabric)
    transform = augmentation(recipe.augment, start.preprocess)
    dataset = KeptPictures(job.dataset) if options.keep_pictures else job.dataset
    examples = Examples(dataset, job.indices, transform, job.extra, options.seed)
    log.info(
        "%s, %s: %d pictures, %d labels, %d updates of %d pictures on %s",
        options.recipe.value,
        start.model.config.arch.value,
        len(job.indices),
        len(job.labels),
        schedule.steps,
        schedule.batch_size,
        fabric.device,
    )
    # In bf16 on a CPU the backward pass of PyTorch's fused attention takes twice as long as that of plain products.
    slow = options.precision == "bf16" and fabric.device.type == "cpu"
    folder = RunFolder(options.out, record, settings, options.resume)
    with folder.opened(fabric), sdpa_kernel(SDPBackend.MATH) if slow else nullcontext():
        run = Run(fabric, job.task, recipe, schedule, folder, validate)
        run.train(examples)
    return run.reached


def _fabric(options: TrainOptions) -> Fabric:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch finds no GPU; check its driver, or use `device='cpu'`", argument="device", value="cuda")
    if options.device != "cpu" and 0 < torch.cuda.device_count() < options.devices:
        raise UsageError(
            f"this machine has {torch.cuda.device_count()} GPUs; use at most that many",
            argument="devices",
            value=options.devices,
        )
    return Fabric(
        accelerator="cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu",
        devices=options.devices,
        precision=_PRECISIONS[options.precision],  # type: ignore[arg-type]
        loggers=CSVLogger(options.out, name="log", flush_logs_every_n_steps=1),
    )


def _start(options: TrainOptions, recipe: Recipe) -> Start:
    if options.recipe is RecipeName.CONTRASTIVE:
        assert options.clip_config is not None
        return new_clip(options.clip_config, options.template, recipe.contract)
    return start_from(options, recipe.contract)


def _tagging(options: TrainOptions, start: Start, recipe: Recipe) -> Job:
    dataset = open_dataset(options.data, "train", options.validation_share)
    labels = dataset.label_sets.get("seen", dataset.labels)
    if len(labels) < 2:
        raise DatasetError(f"has {len(labels)} label, expected two or more", argument="data", value=options.data)
    single = options.recipe is RecipeName.SINGLE_POSITIVE
    if single:
        dataset = SinglePositive(dataset, labels=labels)
    column = {label: i for i, label in enumerate(dataset.labels)}
    columns = [column[label] for label in labels]
    indices, identity = _pictures_with_a_label(options, dataset, columns, needs_negatives=not single)
    task = TaggingTask(start.model, embed_labels(start.model, start.template, labels).clone(), recipe)
    return Job(task, dataset, indices, partial(_targets, dataset, columns), labels, _identity(options, labels) | identity)


def _pictures_with_a_label(
    options: TrainOptions, dataset: Dataset, columns: list[int], needs_negatives: bool
) -> tuple[NDArray[np.intp], dict[str, Any]]:
    """The pictures that have a positive label, and a digest of their names and targets.

    Raises DatasetError where negatives are needed and no picture has both.
    """
    indices, both, digest = [], 0, hashlib.sha256()
    with Progress(len(dataset), "annotation") as progress:
        for i in range(len(dataset)):
            targets = dataset.targets(i)[columns]
            if (targets == POSITIVE).any():
                indices.append(i)
                both += bool((targets == NEGATIVE).any())
                digest.update(Path(dataset.name(i)).name.encode() + targets.tobytes())
            progress.advance()
    if needs_negatives and not both:
        raise DatasetError(
            "no picture has both a positive and a known negative label, so there is nothing to rank; use "
            "`recipe='single-positive'`, or add the negatives (0 in labels.csv)",
            argument="data",
            value=options.data,
        )
    return np.array(indices, np.intp), {"pictures": digest.hexdigest()}


def _identity(options: TrainOptions, labels: tuple[str, ...]) -> dict[str, Any]:
    kind = parse(options.data)[0]
    return {"data": options.data if kind == SCENES else kind, "labels": hashlib.sha256("\n".join(labels).encode()).hexdigest()}


def _targets(dataset: Dataset, columns: list[int], _: int, index: int) -> NDArray[np.int8]:
    return dataset.targets(index)[columns]


def _contrastive(options: TrainOptions, start: Start, _: Recipe) -> Job:
    scenes = open_dataset(options.data, "train")
    if not isinstance(scenes, Scenes):
        raise UsageError("has no captions; the contrastive recipe trains on scenes", argument="data", value=options.data)
    extra = partial(draw_captions, scenes, options.seed)
    labels = scenes.label_sets["seen"]
    return Job(ContrastiveTask(start.model), scenes, np.arange(len(scenes)), extra, labels, _identity(options, labels))


def _with_fitting_batch_size(options: TrainOptions, recipe: Recipe, pictures: int) -> Recipe:
    """The recipe with a batch size that the devices can share: its own, or less where it is not asked for and pictures are few.

    Raises UsageError for too few pictures, or a batch size that was asked for and does not fit.
    """
    parts = options.devices * options.accumulate
    largest = pictures // parts * parts
    if not largest:
        raise UsageError(
            f"has {pictures} pictures with a label, expected at least {parts} for {options.devices} devices and "
            f"`accumulate={options.accumulate}`",
            argument="data",
            value=options.data,
        )
    if options.batch_size is None and recipe.batch_size > largest:
        log.info("%s: has %d pictures with a label, so the batch size is %d", options.data, pictures, largest)
        return replace(recipe, batch_size=largest)
    if recipe.batch_size % parts:
        raise UsageError(
            f"cannot be split evenly over {options.devices} devices and `accumulate={options.accumulate}`; expected a multiple "
            f"of {parts}",
            argument="batch_size",
            value=recipe.batch_size,
        )
    if recipe.batch_size > pictures:
        raise UsageError(
            f"{options.data} has {pictures} pictures with a label, expected {largest} at most",
            argument="batch_size",
            value=recipe.batch_size,
        )
    return recipe


def _schedule(options: TrainOptions, recipe: Recipe, pictures: int) -> Schedule:
    steps = options.steps or recipe.epochs * (pictures // recipe.batch_size)
    published = RECIPES[options.recipe]
    warmup = options.warmup
    if warmup is None:
        warmup = steps * published.warmup_epochs // published.epochs  # the published fraction of the run
    if warmup >= steps:
        raise UsageError(f"expected fewer than the run's {steps} updates", argument="warmup", value=warmup)
    return Schedule(
        steps=steps,
        warmup=warmup,
        batch_size=recipe.batch_size,
        accumulate=options.accumulate,
        seed=options.seed,
        workers=options.workers,
        save_every=options.save_every,
        patience=options.patience,
    )


def _settings(options: TrainOptions, recipe: Recipe, start: Start, schedule: Schedule) -> dict[str, Any]:
    """Everything that the result depends on, as JSON values."""
    asked = {name: value for name, value in asdict(options).items() if name not in _INCIDENTAL}
    values = asked | {f"recipe.{name}": value for name, value in asdict(recipe).items()}
    values |= {"arch": start.model.config.arch, "start": start.source, "steps": schedule.steps}
    for name in ("init", "text_tower", "clip_config"):  # files are compared by content, not by name
        if values[name] is not None and Path(values[name]).is_file():
            values[name] = sha256_file(Path(values[name]))
    values = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
    return {name: value if isinstance(value, (int, float, str, type(None))) else str(value) for name, value in values.items()}


def _record(start: Start, labels: tuple[str, ...], training: dict[str, Any]) -> TrainedRecord:
    """The header of the checkpoints. Raises UsageError for a model that could be trained but not loaded again."""
    try:
        return TrainedRecord(start.model.config, start.template, start.preprocess, labels, training).checked()
    except ValueError as error:
        raise UsageError(f"this model could be trained but not loaded again ({error}); change the option") from None


def _provenance(options: TrainOptions, settings: dict[str, Any]) -> dict[str, Any]:
    """The record of a run. Its `folder` lets a later evaluation warn that it uses the training pictures."""
    tools = tool_versions("torch", "open_clip_torch", "lightning-fabric")
    return {"settings": settings, "folder": folder_identity(options.data), "tools": tools}


def _validation(options: TrainOptions, start: Start, fabric: Fabric) -> Validate | None:
    """Computes the mAP of each label set on the first pictures of "val"; "map" is that of the trained labels.

    None where the data set has no such pictures, or none are asked for.
    """
    if not options.validate:
        return None
    try:
        dataset = open_dataset(options.data, "val", options.validation_share)
    except UsageError as error:
        if options.validation_share is not None:
            raise
        log.warning("no validation (%s); the last checkpoint is kept, not the best", error.problem)
        return None
    scorer = EagerModel(start.model, start.preprocess, start.template, fabric.device.type)
    model = Model(options.out, scorer.description, scorer.arch, Precision.FP32, scorer.device, scorer)
    pictures = range(min(options.validate, len(dataset)))
    sets = dict(dataset.label_sets)

    def validate() -> tuple[dict[str, float], dict[str, str]]:
        metrics: dict[str, float] = {}
        unreadable: dict[str, str] = {}
        for name, labels in sets.items():
            scored = score_pictures(dataset, pictures, labels, [model], 32)
            unreadable |= {dataset.name(i): reason for i, reason in scored.unreadable.items()}
            if len(scored.targets) == 0:
                return {}, unreadable
            metrics[f"map_{name}"] = evaluate_scores(scored.scores[0], scored.targets).map
        return metrics | {"map": metrics.get("map_seen", metrics["map_all"])}, unreadable

    return validate
