"""The training loop, on Lightning Fabric for devices, mixed precision and accumulation.

Every update depends on the seed and its number only, so that a run that was killed continues to the same result.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from sigrl_deploy.errors import DatasetError, TrainingError
from sigrl_deploy.progress import Progress
from sigrl_deploy.training.data import Batch, Examples, Order, Purpose, collate, seed_of
from sigrl_deploy.training.optim import build_optimizer, build_schedule, follow_schedule
from sigrl_deploy.training.recipes import Recipe
from sigrl_deploy.training.run_folder import RunFolder
from sigrl_deploy.training.tasks import Task

log = logging.getLogger(__name__)

_LOG_EVERY = 20  # updates

# → the metrics of the model as it is, where "map" decides which model is the best, and the unreadable pictures with reasons.
# There are no metrics where no picture can be read.
Validate = Callable[[], tuple[dict[str, float], dict[str, str]]]


@dataclass(frozen=True)
class Schedule:
    """`steps` updates of `batch_size` pictures, each computed in `accumulate` parts per device.

    A run ends sooner after `patience` validations in a row that are no better than the best before them.
    """

    steps: int
    warmup: int
    batch_size: int
    accumulate: int
    seed: int
    workers: int
    save_every: int
    patience: int | None = None


@dataclass
class Reached:
    """How far a run is: its updates, those at the last validation, the best validation, and the unreadable pictures so far.

    worse: the validations since the best one.
    """

    step: int = 0
    validated: int = 0
    best: float = -math.inf
    best_step: int = 0
    worse: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, values: dict[str, Any]) -> None:
        vars(self).update(values)


class TrainedParameters:
    """The trained part of a task, for the state of a run. The frozen part comes from the checkpoint that it started from."""

    def __init__(self, task: Task) -> None:
        self._parameters = {name: value for name, value in task.named_parameters() if value.requires_grad}

    def state_dict(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self._parameters.items()}

    def load_state_dict(self, values: dict[str, Tensor]) -> None:
        if {k: v.shape for k, v in values.items()} != {k: v.shape for k, v in self._parameters.items()}:
            raise ValueError("it has the parameters of another model")
        with torch.no_grad():
            for name, value in self._parameters.items():
                value.copy_(values[name])


class Run:
    """A task on its way through a schedule, with the folder that keeps its checkpoints.

    The folder ends up with the best model by the validation metric "map", or the last one where there is no validation.
    """

    def __init__(
        self, fabric: Fabric, task: Task, recipe: Recipe, schedule: Schedule, folder: RunFolder, validate: Validate | None
    ) -> None:
        self._fabric, self._task, self._folder, self._validate = fabric, task, folder, validate
        self._recipe, self._schedule = recipe, schedule
        optimizer = build_optimizer(task, recipe, len(task.model.vit.transformer.resblocks))
        self._rates = build_schedule(optimizer, schedule.warmup, schedule.steps, recipe.lr_floor)
        self._trained, self._optimizer = fabric.setup(task, optimizer)
        self.reached = Reached()
        self._state = {
            "trained": TrainedParameters(task),
            "optimizer": self._optimizer,
            "rates": self._rates,
            "progress": self.reached,
        }

    def train(self, examples: Examples) -> None:
        """Train to the end of the schedule, from the folder's last state where it has one.

        Raises TrainingError where the loss is no longer finite or a checkpoint cannot be written; the last good one is kept.
        """
        self._folder.load(self._fabric, self._state)
        follow_schedule(self._rates)
        start, schedule, is_first = self.reached.step, self._schedule, self._fabric.is_global_zero
        if start > self.reached.validated:  # killed between an update and its validation
            self._keep_best()
        if start and is_first and not self._is_over():
            log.info("continuing from update %d of %d", start, schedule.steps)
        try:
            with Progress(schedule.steps, "update", done=start, hidden=not is_first) as progress:
                self._train(iter(self._batches(examples)), progress)
        except KeyboardInterrupt:
            if is_first:
                self._report_interrupt(start)
            raise

    def _train(self, batches: Iterator[Batch], progress: Progress) -> None:
        reached, schedule = self.reached, self._schedule
        recent: list[dict[str, Tensor]] = []
        self._task.train()
        while reached.step < schedule.steps and not self._is_over():
            torch.manual_seed(seed_of(Purpose.DROPOUT, schedule.seed, reached.step, self._fabric.global_rank))
            recent.append(losses := self._update(batches))
            rate = max(group["lr"] for group in self._optimizer.param_groups if not group["head"])
            self._rates.step()
            reached.step += 1
            progress.advance(detail=partial(_described, losses["loss"], rate))
            saves = reached.step == schedule.steps or reached.step % schedule.save_every == 0
            if saves or reached.step % _LOG_EVERY == 0:
                self._folder.log(self._fabric, {**self._mean(recent), "lr": rate}, reached.step)
                recent.clear()
            if saves:
                self._checkpoint()
        if reached.step < schedule.steps and self._fabric.is_global_zero:
            log.info(
                "update %d: no better for %d validations, so the run ends; more `patience` continues it",
                reached.step,
                reached.worse,
            )

    def _is_over(self) -> bool:
        return self._schedule.patience is not None and self.reached.worse >= self._schedule.patience

    def _batches(self, examples: Examples) -> Iterable[Batch]:
        fabric, schedule = self._fabric, self._schedule
        parts = fabric.world_size * schedule.accumulate
        own = slice(fabric.global_rank, None, fabric.world_size)
        steps = range(self.reached.step, schedule.steps)
        order = Order(len(examples), schedule.batch_size, schedule.seed, steps, own, parts)
        loader: Iterable[Batch] = DataLoader(examples, batch_sampler=order, collate_fn=collate, num_workers=schedule.workers)
        return loader

    def _update(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        fabric, accumulate = self._fabric, self._schedule.accumulate
        self._optimizer.zero_grad(set_to_none=True)
        losses: list[dict[str, Tensor]] = []
        for part in range(accumulate):
            pixels, extras, failed = _next(batches)
            self.reached.unreadable.update(failed)
            inputs = fabric.to_device((pixels, *self._task.targets(extras)))
            try:
                with fabric.no_backward_sync(self._trained, enabled=part + 1 < accumulate):
                    found = self._trained(*inputs)
                    fabric.backward(found["loss"] / accumulate)
            except torch.OutOfMemoryError:
                raise TrainingError(
                    f"update {self.reached.step + 1}: the GPU has too little memory for {len(pixels)} pictures at once; "
                    "compute each update in more parts",
                    argument="accumulate",
                    value=accumulate,
                ) from None
            losses.append({name: value.detach() for name, value in found.items()})
        if self._recipe.clip_norm is not None:
            fabric.clip_gradients(self._trained, self._optimizer, max_norm=self._recipe.clip_norm, error_if_nonfinite=False)
        self._optimizer.step()
        return {name: torch.stack([part[name] for part in losses]).mean() for name in losses[0]}

    def _mean(self, recent: list[dict[str, Tensor]]) -> dict[str, float]:
        """The losses of recent updates as numbers, averaged over updates and devices."""
        means: Any = self._fabric.all_reduce(
            {name: torch.stack([losses[name] for losses in recent]).mean() for name in recent[0]}, reduce_op="mean"
        )
        values = {name: float(value) for name, value in means.items()}
        if not all(map(math.isfinite, values.values())):
            raise self._diverged(f"the loss is {values['loss']}")
        return values

    def _checkpoint(self) -> None:
        if not all(bool(value.isfinite().all()) for value in self._task.parameters() if value.requires_grad):
            raise self._diverged("the weights are not finite")
        self._gather_unreadable()
        self._folder.save_state(self._fabric, self._state)  # before the validation, which may fail
        self._keep_best()

    def _diverged(self, problem: str) -> TrainingError:
        return TrainingError(
            f"update {self.reached.step}: {problem}; start again with a lower `lr`, or with `precision='fp32'`, "
            f"{self._folder.remedy}"
        )

    def _keep_best(self) -> None:
        """Validate, and save the model where it is the best so far or nothing can be validated."""
        reached = self.reached
        # Those of one device, or a last digit could end the run on some devices only.
        metrics = self._fabric.broadcast(self._metrics()) if self._validate else {}
        better = not metrics or metrics["map"] > reached.best
        if metrics:
            self._folder.log(self._fabric, metrics, reached.step)
            reached.best = max(reached.best, metrics["map"])
            reached.worse = 0 if better else reached.worse + 1
        if self._fabric.is_global_zero:
            found = ", ".join(f"{name} {100 * value:.1f}" for name, value in metrics.items()) or "not validated"
            log.info("update %d saved (%s)%s", reached.step, found, ", the best so far" if better and metrics else "")
        if better:
            reached.metrics, reached.best_step = metrics, reached.step
            self._folder.save_model(self._fabric, self._task, reached.step, metrics)
        reached.validated = reached.step
        self._folder.save_state(self._fabric, self._state)

    def _metrics(self) -> dict[str, float]:
        """The validation's metrics; none where no picture can be read, or none has a label."""
        assert self._validate is not None
        self._task.eval()
        metrics, unreadable = self._validate()
        self._task.train()
        self.reached.unreadable.update(unreadable)
        if not metrics:
            log.warning("update %d: no validation picture can be read; this checkpoint is kept as it is", self.reached.step)
        elif not metrics["map"]:  # it is 0 only where there is nothing to find
            if not self.reached.validated:
                log.warning("no validation (none of its pictures has a label); the last checkpoint is kept, not the best")
            return {}
        return metrics

    def _gather_unreadable(self) -> None:
        """Tell each device what the others could not read, since only the first one reports it."""
        if self._fabric.world_size > 1:
            parts: list[dict[str, str]] = [{}] * self._fabric.world_size
            torch.distributed.all_gather_object(parts, self.reached.unreadable)
            for part in parts:
                self.reached.unreadable.update(part)

    def _report_interrupt(self, start: int) -> None:
        every = self._schedule.save_every
        saved = max(start, self.reached.step // every * every)
        if saved:
            log.error("%s keeps update %d; continue with `resume`", self._folder.path, saved)
        else:
            log.error("%s: the first checkpoint would have been at update %d (`save_every`)", self._folder.path, every)


def _described(loss: Tensor, rate: float) -> str:
    return f"loss {float(loss):.3f}, lr {rate:.1e}"


def _next(batches: Iterator[Batch]) -> Batch:
    try:
        return next(batches)
    except DatasetError as error:  # from a worker process, the message comes wrapped in a traceback
        raise DatasetError(str(error).strip().rpartition("DatasetError: ")[2]) from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"{str(error).splitlines()[0]} while reading pictures, probably for lack of memory; use fewer `workers`, leave out "
            "`keep_pictures`, and continue with `resume`"
        ) from None
