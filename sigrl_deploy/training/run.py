"""One run of `sigrl-deploy train`: the model, its data and its labels put together."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
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
from tqdm import tqdm

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
from sigrl_deploy.training.contrastive import ContrastiveTask, draw_captions
from sigrl_deploy.training.data import Examples, KeptPictures, augmentation
from sigrl_deploy.training.loop import Progress, Schedule, Validate, fit
from sigrl_deploy.training.models import Start, new_clip, start_from
from sigrl_deploy.training.recipes import RECIPES, Recipe, RecipeName, TrainOptions, choose_recipe
from sigrl_deploy.training.run_folder import RunFolder
from sigrl_deploy.training.tasks import TaggingTask, Task
from sigrl_deploy.version import tool_versions

log = logging.getLogger(__name__)

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}
# What a run may change of itself when it goes on: none of it changes the result.
_INCIDENTAL = ("out", "resume", "workers", "keep_pictures", "device", "data")


@dataclass(frozen=True)
class Job:
    """A task with the pictures that it learns from and the labels that it learns.

    `identity` is what a resumed run must find again: the data set, wherever it lies. `chosen` is what the options left open.
    """

    task: Task
    dataset: Dataset
    indices: NDArray[np.intp]
    extra: Callable[[int, int], Any]
    labels: tuple[str, ...]
    identity: dict[str, Any]
    chosen: dict[str, Any]


def run_train(options: TrainOptions) -> Progress:
    """Train by options that `check_run` has let pass, and return what was reached. `out` then holds `model.safetensors`, which
    the exporter reads.

    Raises UsageError for options that contradict each other, DatasetError and CheckpointError for files that cannot be used,
    TrainingError where the run cannot go on; whatever it has saved stays.
    """
    recipe = choose_recipe(options)
    fabric = _fabric(options)
    fabric.launch()
    torch.manual_seed(options.seed)  # of the weights that start at random
    start = _start(options, recipe)
    job = (_contrastive if options.recipe is RecipeName.CONTRASTIVE else _tagging)(options, start, recipe)
    schedule = _schedule(options, recipe, len(job.indices))
    settings = _settings(options, recipe, start, schedule) | job.identity
    training = _provenance(options, settings | job.chosen)
    record = _record(start, job.labels, training)
    folder = RunFolder(options.out, record, settings, options.resume)
    folder.open(fabric)
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
    with sdpa_kernel(SDPBackend.MATH) if slow else nullcontext():
        return fit(fabric, job.task, examples, recipe, schedule, folder, _validation(options, start, fabric))


def _fabric(options: TrainOptions) -> Fabric:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this torch finds no GPU; check its driver, or use --device cpu")
    if options.device != "cpu" and 0 < torch.cuda.device_count() < options.devices:
        raise UsageError(
            f"--devices {options.devices}: this machine has {torch.cuda.device_count()} GPUs; give at most that many"
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
        raise DatasetError(f"{options.data}: has {len(labels)} label, expected two or more to rank")
    single = options.recipe is RecipeName.SINGLE_POSITIVE
    if single:
        dataset = SinglePositive(dataset, labels=labels)
    column = {label: i for i, label in enumerate(dataset.labels)}
    columns = [column[label] for label in labels]
    indices, identity = _pictures_with_a_label(options, dataset, columns, needs_negatives=not single)
    published = 0.2 if options.data.startswith("voc:") else 0.1
    weight = published if options.entropy_weight is None else options.entropy_weight
    distillation = 1.0 if options.distillation is None else options.distillation
    task = TaggingTask(
        start.model,
        embed_labels(start.model, start.template, labels).clone(),
        options.recipe,
        recipe.loss_input,
        weight,
        distillation,
        recipe.trained_blocks,
    )
    chosen = {"entropy_weight": weight} if single else {"distillation": distillation}
    return Job(
        task, dataset, indices, partial(_targets, dataset, columns), labels, _identity(options, labels) | identity, chosen
    )


def _pictures_with_a_label(
    options: TrainOptions, dataset: Dataset, columns: list[int], needs_negatives: bool
) -> tuple[NDArray[np.intp], dict[str, Any]]:
    """The pictures that have a positive label, and a digest of their names and targets.

    Raises DatasetError where a recipe that ranks positives before negatives would find no picture with both.
    """
    indices, both, digest = [], 0, hashlib.sha256()
    for i in tqdm(range(len(dataset)), desc="pictures with a label", leave=False, disable=None):
        targets = dataset.targets(i)[columns]
        if (targets == POSITIVE).any():
            indices.append(i)
            both += bool((targets == NEGATIVE).any())
            digest.update(Path(dataset.name(i)).name.encode() + targets.tobytes())
    if needs_negatives and not both:
        raise DatasetError(
            f"{options.data}: no picture has both a label and one that it is known not to have, so there is nothing to rank; "
            "use --recipe single-positive, or give the negatives (0 in labels.csv)"
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
        raise UsageError(f"{options.data}: has no captions; the contrastive recipe learns from scenes")
    extra = partial(draw_captions, scenes, options.seed)
    labels = scenes.label_sets["seen"]
    return Job(ContrastiveTask(start.model), scenes, np.arange(len(scenes)), extra, labels, _identity(options, labels), {})


def _schedule(options: TrainOptions, recipe: Recipe, pictures: int) -> Schedule:
    parts = options.devices * options.accumulate
    if recipe.batch_size % parts:
        raise UsageError(
            f"--batch-size {recipe.batch_size}: cannot be split evenly over {options.devices} devices and --accumulate "
            f"{options.accumulate}; expected a multiple of {parts}"
        )
    per_epoch = pictures // recipe.batch_size
    if not per_epoch:
        raise UsageError(
            f"--batch-size {recipe.batch_size}: {options.data} has {pictures} pictures with a label; "
            f"expected at most that many, such as --batch-size {max(1, pictures // parts) * parts}"
        )
    steps = options.steps or recipe.epochs * per_epoch
    published = RECIPES[options.recipe]
    warmup = steps * published.warmup_epochs // published.epochs  # the same share of any length
    return Schedule(
        steps=steps,
        warmup=warmup,
        batch_size=recipe.batch_size,
        accumulate=options.accumulate,
        seed=options.seed,
        workers=options.workers,
        save_every=options.save_every,
    )


def _settings(options: TrainOptions, recipe: Recipe, start: Start, schedule: Schedule) -> dict[str, Any]:
    """What the result depends on, as JSON values."""
    asked = {name: value for name, value in asdict(options).items() if name not in _INCIDENTAL}
    values = asked | {f"recipe.{name}": value for name, value in asdict(recipe).items()}
    values |= {"arch": start.model.config.arch, "start": start.source, "steps": schedule.steps}
    for name in ("init", "text_tower", "clip_config"):  # the same file by another name is the same, another file is not
        if values[name] is not None and Path(values[name]).is_file():
            values[name] = sha256_file(Path(values[name]))
    values = {name: value.value if isinstance(value, Enum) else value for name, value in values.items()}
    return {name: value if isinstance(value, (int, float, str, type(None))) else str(value) for name, value in values.items()}


def _record(start: Start, labels: tuple[str, ...], training: dict[str, Any]) -> TrainedRecord:
    """The header of the checkpoint to come. A model that could be trained but not be read again is refused now."""
    try:
        return TrainedRecord(start.model.config, start.template, start.preprocess, labels, training).checked()
    except ValueError as error:
        raise UsageError(f"this model could not be read again: {error}; change the option") from None


def _provenance(options: TrainOptions, settings: dict[str, Any]) -> dict[str, Any]:
    """`folder` is where a folder of the user's own lies: evaluation on the same pictures is then said to be that."""
    tools = tool_versions("torch", "open_clip_torch", "lightning-fabric")
    return {"settings": settings, "folder": folder_identity(options.data), "tools": tools}


def _validation(options: TrainOptions, start: Start, fabric: Fabric) -> Validate | None:
    """mAP of every label set on the first pictures of "val", where there are some; "map" is that of the labels trained on."""
    if not options.validate:
        return None
    try:
        dataset = open_dataset(options.data, "val", options.validation_share)
    except UsageError as error:
        if options.validation_share is not None:
            raise
        log.warning("no validation (%s); the last checkpoint is kept, not the best", str(error))
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
