"""The folder of a run: `model.safetensors` for export, `state.pt` for resuming, and `log/`. No file is ever half-written."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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

# Of the first three only the first counts; the others are ways to set it.
_LENGTH = {"steps", "epochs", "recipe.epochs", "patience"}
_ADDED = {"svfr_lr", "warmup"}  # an older version has not recorded them
_FOLLOWS = {"pictures", "labels"}  # may differ as a consequence of an option


class RunFolder:
    """Where a run keeps its checkpoints. One process at a time may train into it; of several devices, the first has the lock.

    settings: everything that the result depends on. A run can be resumed with the same settings, or with more steps.
    """

    def __init__(self, path: Path, record: TrainedRecord, settings: dict[str, Any], resume: bool) -> None:
        self.path = path
        self.record = record
        self.settings = settings
        self.resume = resume
        self._lock = FileLock(path / LOCK)

    @contextmanager
    def opened(self, fabric: Fabric) -> Iterator[None]:
        """Hold the folder's lock, after removing the half-written files of a killed run.

        A folder that did not exist before, and has nothing in it afterwards, is removed. Raises UsageError where another
        process trains into it, and where `check_folder` does.
        """
        if not fabric.is_global_zero:
            fabric.barrier()
            yield
            return
        check_folder(self.path, self.resume)
        is_new = not self.path.exists()
        self._acquire()
        try:
            with _errors(self.path):
                for left_over in self.path.iterdir():
                    if TEMPORARY.fullmatch(left_over.name):
                        left_over.unlink(missing_ok=True)
            fabric.barrier()
            yield
        finally:
            with suppress(OSError):
                if is_new and os.listdir(self.path) == [LOCK]:
                    (self.path / LOCK).unlink()
                    self.path.rmdir()
            self._lock.release()

    def _acquire(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UsageError(
                "another process is training into it; wait for it, or choose another folder", argument="out", value=self.path
            ) from None
        except OSError as error:
            raise UsageError(
                f"cannot be written ({error.strerror}); choose another folder", argument="out", value=self.path
            ) from None

    @property
    def remedy(self) -> str:
        """How to start again where resuming would only fail in the same way."""
        kept = self.path / MODEL
        return f"from its last checkpoint with `init='{kept}'` and another `out`" if kept.exists() else "in another folder"

    def load(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Restore `state` from the last checkpoint, if the run is to be resumed. Raises UsageError where that is impossible."""
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
        except Exception as error:  # torch raises all kinds of errors for a damaged file
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(f"{path}: cannot be loaded ({reason}); start again {self.remedy}") from None
        if longer and fabric.is_global_zero:
            log.info(
                "continuing from update %d to %d (%d before), with the learning rates of the longer run from here on",
                state["progress"].step,
                self.settings["steps"],
                before["steps"],
            )

    def _check_settings(self, before: dict[str, Any]) -> None:
        """Raise UsageError unless the settings are the same as before, or the run becomes longer."""
        names = (before.keys() | _ADDED) - _LENGTH
        changed = [name for name in names if before.get(name) != self.settings.get(name)]
        if not changed and self.settings["steps"] < before["steps"]:
            changed = ["steps"]
        if changed:
            name = min(changed, key=lambda name: (name in _FOLLOWS, name))
            raise UsageError(
                f"its run has {name} = {before.get(name)!r}, and now it is {self.settings.get(name)!r}; resume with the same "
                "options (only more `steps`, `epochs` or `patience`), or choose another folder",
                argument="out",
                value=self.path,
            )

    def save_state(self, fabric: Fabric, state: dict[str, Any]) -> None:
        """Write everything that resuming needs. (Fabric's own save would write to the system's temporary folder first.)"""
        if not fabric.is_global_zero:
            return
        values = {name: part.state_dict() for name, part in state.items()} | {"settings": json.dumps(self.settings)}
        with _errors(self.path), replacing(self.path / STATE) as temporary:
            try:
                torch.save(values, temporary)
            except RuntimeError as error:  # torch raises this for a full disk
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
        kept = "the checkpoint before is kept; make room, and continue with `resume`"
        after = kept if (folder / STATE).exists() else "make room, and start again"
        raise TrainingError(f"{folder}: the checkpoint or log cannot be written ({error.strerror or error}); {after}") from None
