"""The training loop. Devices, mixed precision and accumulation are Lightning Fabric's; every update depends on seed and step
alone, so that a run that was killed goes on to the same result.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from sigrl_deploy.errors import DatasetError, TrainingError
from sigrl_deploy.training.data import Batch, Examples, Order, Purpose, collate, seed_of
from sigrl_deploy.training.optim import build_optimizer, build_schedule, follow_schedule
from sigrl_deploy.training.recipes import Recipe
from sigrl_deploy.training.run_folder import RunFolder
from sigrl_deploy.training.tasks import Task

log = logging.getLogger(__name__)

_LOG_EVERY = 20  # updates
LINE_EVERY = 30.0  # seconds between lines where there is no terminal
_BAR_EVERY = 1.0  # seconds: to read a loss off a GPU waits for it

# The metrics of the model as it is ("map" decides, none where no picture could be read), and the unreadable pictures.
Validate = Callable[[], tuple[dict[str, float], dict[str, str]]]


@dataclass(frozen=True)
class Schedule:
    """How long and how: `steps` updates of `batch_size` pictures, each in `accumulate` parts a device."""

    steps: int
    warmup: int
    batch_size: int
    accumulate: int
    seed: int
    workers: int
    save_every: int


@dataclass
class Progress:
    """What a run remembers beside its weights: updates done and those at the last validation, the best one so far, and what it
    could not read.
    """

    step: int = 0
    validated: int = 0
    best: float = -math.inf
    best_step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, values: dict[str, Any]) -> None:
        vars(self).update(values)


class TrainedParameters:
    """The part of a task that changes, for the state of a run: what is frozen comes from the checkpoint it started from."""

    def __init__(self, task: Task) -> None:
        self._parameters = {name: value for name, value in task.named_parameters() if value.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self._parameters.items()}

    def load_state_dict(self, values: dict[str, Tensor]) -> None:
        if {k: v.shape for k, v in values.items()} != {k: v.shape for k, v in self._parameters.items()}:
            raise ValueError("it holds the parameters of another model")
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(values[name])


def fit(
    fabric: Fabric,
    task: Task,
    examples: Examples,
    recipe: Recipe,
    schedule: Schedule,
    folder: RunFolder,
    validate: Validate | None,
) -> Progress:
    """Train, from the folder's last state where it has one. What the folder holds then is the best model by validation (by the
    metric "map"), or the last one where there is no validation.

    Raises TrainingError where the loss stops being a number or a checkpoint cannot be written; the last good one is kept.
    """
    blocks = len(task.model.visual.transformer.resblocks)
    optimizer = build_optimizer(task, recipe.optimizer, recipe.lr, recipe.weight_decay, recipe.layer_decay, blocks)
    rates = build_schedule(optimizer, schedule.warmup, schedule.steps, recipe.lr_floor)
    trained, optimizer = fabric.setup(task, optimizer)
    progress = Progress()
    state = {"trained": TrainedParameters(task), "optimizer": optimizer, "rates": rates, "progress": progress}
    folder.load(fabric, state)
    follow_schedule(rates)
    if progress.step > progress.validated:  # killed in between
        _keep_best(fabric, task, folder, state, progress, validate)
    batches = iter(_loader(fabric, examples, schedule, progress.step))
    if progress.step and fabric.is_global_zero:
        log.info("going on at update %d of %d", progress.step, schedule.steps)
    recent: list[dict[str, Tensor]] = []
    task.train()
    with _Shown(progress.step, schedule, folder.path, fabric.is_global_zero) as shown:
        while progress.step < schedule.steps:
            torch.manual_seed(seed_of(Purpose.DROPOUT, schedule.seed, progress.step, fabric.global_rank))
            recent.append(_update(fabric, trained, optimizer, batches, schedule.accumulate, recipe.clip_norm, progress))
            rate = max(group["lr"] for group in optimizer.param_groups if not group["head"])
            rates.step()
            progress.step += 1
            shown.update(recent[-1]["loss"], rate)
            last = progress.step == schedule.steps
            if last or progress.step % _LOG_EVERY == 0 or progress.step % schedule.save_every == 0:
                values = _mean(fabric, recent, progress.step, folder)
                recent.clear()
                folder.log(fabric, {**values, "lr": rate}, progress.step)
            if last or progress.step % schedule.save_every == 0:
                _checkpoint(fabric, task, folder, state, progress, validate)
    return progress


class _Shown:
    """How far a run is: a bar on a terminal, a line every half minute elsewhere. Only the first of several devices shows it."""

    def __init__(self, start: int, schedule: Schedule, folder: Path, is_first: bool) -> None:
        self._step, self._steps, self._batch_size = start, schedule.steps, schedule.batch_size
        self._start, self._save_every, self._folder, self._is_first = start, schedule.save_every, folder, is_first
        self._bar = tqdm(initial=start, total=schedule.steps, unit="update", disable=None if is_first else True)
        self._interval = math.inf if not is_first else LINE_EVERY if self._bar.disable else _BAR_EVERY
        self._said, self._said_step = time.monotonic(), start

    def update(self, loss: Tensor, rate: float) -> None:
        """After an update: its loss, and the learning rate that it had."""
        self._step += 1
        self._bar.update()
        elapsed = time.monotonic() - self._said
        if elapsed < self._interval:
            return
        values = {"loss": f"{float(loss):.3f}", "lr": f"{rate:.1e}"}
        values["pictures/s"] = f"{(self._step - self._said_step) * self._batch_size / elapsed:.3g}"
        self._bar.set_postfix(values)
        if self._bar.disable:
            found = ", ".join(f"{name} {value}" for name, value in values.items())
            log.info("update %d of %d: %s", self._step, self._steps, found)
        self._said, self._said_step = time.monotonic(), self._step

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        if not self._is_first or kind is None or not issubclass(kind, KeyboardInterrupt):
            return
        saved = max(self._start, self._step // self._save_every * self._save_every)
        if saved:
            log.error("%s keeps update %d; go on with --resume", self._folder, saved)
        else:
            log.error("%s: nothing is saved before update %d; --save-every sets it", self._folder, self._save_every)


def _loader(fabric: Fabric, examples: Examples, schedule: Schedule, start: int) -> Iterable[Batch]:
    parts = fabric.world_size * schedule.accumulate
    own = slice(fabric.global_rank, None, fabric.world_size)
    order = Order(len(examples), schedule.batch_size, schedule.seed, range(start, schedule.steps), own, parts)
    loader: Iterable[Batch] = DataLoader(examples, batch_sampler=order, collate_fn=collate, num_workers=schedule.workers)
    return loader


def _update(
    fabric: Fabric,
    trained: Any,
    optimizer: Any,
    batches: Iterator[Batch],
    accumulate: int,
    clip_norm: float | None,
    progress: Progress,
) -> dict[str, Tensor]:
    optimizer.zero_grad(set_to_none=True)
    losses: list[dict[str, Tensor]] = []
    for part in range(accumulate):
        pixels, extras, failed = _next(batches)
        progress.unreadable.update(failed)
        targets = fabric.to_device((pixels, *trained.module.targets(extras)))
        try:
            with fabric.no_backward_sync(trained, enabled=part + 1 < accumulate):
                found = trained(*targets)
                fabric.backward(found["loss"] / accumulate)
        except torch.OutOfMemoryError:
            raise TrainingError(
                f"update {progress.step + 1}: the GPU has no room for {len(pixels)} pictures at once; compute an update in "
                f"more parts with --accumulate (now {accumulate})"
            ) from None
        losses.append({name: value.detach() for name, value in found.items()})
    if clip_norm is not None:
        fabric.clip_gradients(trained, optimizer, max_norm=clip_norm, error_if_nonfinite=False)
    optimizer.step()
    return {name: torch.stack([part[name] for part in losses]).mean() for name in losses[0]}


def _next(batches: Iterator[Batch]) -> Batch:
    try:
        return next(batches)
    except DatasetError as error:  # from a worker process its message comes wrapped in a traceback
        raise DatasetError(str(error).strip().rpartition("DatasetError: ")[2]) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"{str(error).splitlines()[0]} while it read pictures, most likely for want of memory; use fewer --workers, leave "
            "out --keep-pictures, and go on with --resume"
        ) from None


def _mean(fabric: Fabric, recent: list[dict[str, Tensor]], step: int, folder: RunFolder) -> dict[str, float]:
    """The losses of recent updates as numbers, averaged over updates and devices."""
    means: Any = fabric.all_reduce(
        {name: torch.stack([x[name] for x in recent]).mean() for name in recent[0]}, reduce_op="mean"
    )
    values = {name: float(value) for name, value in means.items()}
    if not all(map(math.isfinite, values.values())):
        raise TrainingError(
            f"update {step}: the loss is {values['loss']}; start again with a lower --lr, or in --precision fp32, "
            f"{folder.remedy}"
        )
    return values


def _checkpoint(
    fabric: Fabric, task: Task, folder: RunFolder, state: dict[str, Any], progress: Progress, validate: Validate | None
) -> None:
    if not all(bool(value.isfinite().all()) for value in task.parameters() if value.requires_grad):
        raise TrainingError(
            f"update {progress.step}: the weights are no numbers any more; start again with a lower --lr, or in --precision "
            f"fp32, {folder.remedy}"
        )
    _gather_unreadable(fabric, progress)
    folder.save_state(fabric, state)  # whatever becomes of the validation, what was learned is safe
    _keep_best(fabric, task, folder, state, progress, validate)


def _keep_best(
    fabric: Fabric, task: Task, folder: RunFolder, state: dict[str, Any], progress: Progress, validate: Validate | None
) -> None:
    """Validate, and save the model where it is the best so far, or where nothing could be validated."""
    better, metrics = True, dict[str, float]()
    if validate is not None:
        task.eval()
        metrics, unreadable = validate()
        task.train()
        progress.unreadable.update(unreadable)
        if metrics and not metrics["map"]:  # 0 only where nothing is there to be found
            if not progress.validated:
                log.warning("no validation (none of its pictures has a label); the last checkpoint is kept, not the best")
            metrics = {}
        elif metrics:
            folder.log(fabric, metrics, progress.step)
            better = metrics["map"] > progress.best
            progress.best = max(progress.best, metrics["map"])
        else:
            log.warning("update %d: no validation picture can be read; this checkpoint is kept as it is", progress.step)
        if better:
            progress.metrics = metrics
    if fabric.is_global_zero:
        reached = ", ".join(f"{name} {100 * value:.1f}" for name, value in metrics.items()) or "not validated"
        log.info("update %d saved (%s)%s", progress.step, reached, ", the best so far" if better and metrics else "")
    if better:
        progress.best_step = progress.step
        folder.save_model(fabric, task, progress.step, progress.metrics)
    progress.validated = progress.step
    folder.save_state(fabric, state)


def _gather_unreadable(fabric: Fabric, progress: Progress) -> None:
    """Tell every device what the others could not read: the first one reports it."""
    if fabric.world_size > 1:
        parts: list[dict[str, str]] = [{}] * fabric.world_size
        torch.distributed.all_gather_object(parts, progress.unreadable)
        for part in parts:
            progress.unreadable.update(part)
