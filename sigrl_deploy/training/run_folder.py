"""The folder of a run: `model.safetensors` for export, `state.pt` to go on from, `log/`. Each file is whole or absent."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning_fabric import Fabric
from msgspec.structs import replace

from sigrl_deploy.checkpoints.native import HEAD, TrainedRecord, write_trained
from sigrl_deploy.errors import TrainingError, UsageError
from sigrl_deploy.files import replacing
from sigrl_deploy.training.checks import LOCK, MODEL, STATE, TEMPORARY, check_folder
from sigrl_deploy.training.tasks import Task

log = logging.getLogger(__name__)

_LENGTH = {"steps", "epochs", "recipe.epochs"}  # the first counts: the others may say the same in another way
_FOLLOWS = {"pictures", "labels"}  # may differ because an option does


class RunFolder:
    """Where a run keeps its checkpoints. `settings` are what its result depends on: a run is resumed by its like, or a longer
    one.

    One process at a time trains into a folder; the first one of several devices holds its lock.
    """

    def __init__(self, path: Path, record: TrainedRecord, settings: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.record = record
        self.settings = settings
        self.resume = resume
        self._lock = FileLock(path / LOCK)

    def open(self, fabric: Fabric) -> None:
        """Take the folder, and remove what a killed run left half-written.

        Raises UsageError where another process trains into it, or for what `check_folder` refuses.
        """
        if fabric.is_global_zero:
            check_folder(self.path, self.resume)
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                raise UsageError(
                    f"--out {self.path}: another process is training into it; wait for it, or choose another folder"
                ) from None
            except OSError as error:
                raise UsageError(f"--out {self.path}: cannot be written ({error.strerror}); choose another folder") from None
            with _errors(self.path):
                for left_over in self.path.iterdir():
                    if TEMPORARY.fullmatch(left_over.name):
                        left_over.unlink(missing_ok=True)
        fabric.barrier()

    @property
    def remedy(self) -> str:
        """How to go on from a run that --resume would end in the same way again."""
        kept = self.path / MODEL
        return f"from its last checkpoint by --init {kept} and another --out" if kept.exists() else "in another folder"

    def load(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Bring `state` to where the run was saved last, where it is to be resumed."""
        path = self.path / STATE
        if not self.resume:
            return
        try:
            saved = torch.load(path, map_location=fabric.device, weights_only=True)
            before = json.loads(saved["settings"])
            self._check_settings(before)
            for name, part in state.items():
                part.load_state_dict(saved[name])
            longer = self.settings["steps"] > before["steps"]
        except UsageError:
            raise
        except Exception as error:  # torch has its own ways to fail on a damaged file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"{path}: cannot be resumed from ({reason}); start again {self.remedy}") from None
        if longer and fabric.is_global_zero:
            log.info(
                "goes on from update %d to %d (%d before); the learning-rate schedule is that of the longer run from here on",
                state["progress"].step,
                self.settings["steps"],
                before["steps"],
            )

    def _check_settings(self, before: dict[str, Any]) -> None:
        """A run goes on with the same options; it may become longer."""
        names = {**before, **self.settings}.keys() - _LENGTH
        changed = [name for name in names if before.get(name) != self.settings.get(name)]
        if not changed and self.settings["steps"] < before["steps"]:
            changed = ["steps"]
        if changed:
            name = min(changed, key=lambda name: (name in _FOLLOWS, name))
            raise UsageError(
                f"--out {self.path}: its run has {name} = {before.get(name)!r}, and now it is {self.settings.get(name)!r}; "
                "resume with the same options (only more --steps or --epochs), or choose another folder"
            )

    def save_state(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Write everything that going on needs. Not by Fabric, which writes into the system's temporary folder first."""
        if not fabric.is_global_zero:
            return
        values = {name: part.state_dict() for name, part in state.items()} | {"settings": json.dumps(self.settings)}
        with _errors(self.path), replacing(self.path / STATE) as temporary:
            try:
                torch.save(values, temporary)
            except RuntimeError as error:  # what torch makes of a full disk
                raise OSError(str(error).splitlines()[0]) from None

    def log(self, fabric: Fabric, values: dict[str, float], step: int) -> None:
        """Add a row to the log."""
        with _errors(self.path):
            fabric.log_dict(values, step)

    def save_model(self, fabric: Fabric, task: Task, step: int, metrics: dict[str, float]) -> None:
        """Write the checkpoint that the exporter reads."""
        if not fabric.is_global_zero:
            return
        training = self.record.training | {"step": step, "validation": metrics}
        head = getattr(task, "head", None)
        tensors = dict(task.model.state_dict())
        if head is not None:
            tensors |= {f"{HEAD}{name}": value for name, value in head.state_dict().items()}
        with _errors(self.path):
            write_trained(self.path / MODEL, replace(self.record, training=training), tensors)


@contextmanager
def _errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kept = "the checkpoint before is kept; make room, and go on with --resume"
        after = kept if (folder / STATE).exists() else "make room, and start again"
        raise TrainingError(f"{folder}: the checkpoint or log cannot be written ({error.strerror or error}); {after}") from None
