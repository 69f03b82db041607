"""What of a run can be refused before torch is imported, which takes seconds."""

from __future__ import annotations

import os
import re
from importlib.util import find_spec
from pathlib import Path

from sigrl_deploy.datasets.opening import check_data, parse
from sigrl_deploy.errors import UsageError
from sigrl_deploy.training.recipes import TrainOptions, choose_recipe

MODEL = "model.safetensors"
STATE = "state.pt"
LOG = "log"
LOCK = ".lock"
TEMPORARY = re.compile(r"\.(state\.pt|model\.safetensors)\.[0-9a-f]+\.tmp")  # what a killed run may leave
_NEEDED = ("torch", "torchvision", "open_clip", "safetensors", "lightning_fabric", "sklearn")


def check_run(options: TrainOptions) -> None:
    """Raise UsageError for options that contradict each other, for files and packages that are not there, and for an `out` that
    `check_folder` refuses.
    """
    choose_recipe(options)
    needed = (*_NEEDED, "h5py") if parse(options.data)[0] == "nus-wide" else _NEEDED
    for package in needed:
        if not _is_installed(package):
            raise UsageError(f"train needs {package}; install the extra train: pip install '.[train]' in a checkout")
    for option, source in (("--init", options.init), ("--text-tower", options.text_tower)):
        if source is not None and not os.path.isfile(source) and (os.path.exists(source) or ":" not in source):
            problem = "is no file" if os.path.exists(source) else "no such file"
            raise UsageError(
                f"{option} {source}: {problem}; expected a checkpoint, or NAME:PRETRAINED as open_clip lists them "
                "(ViT-B-16:openai)"
            )
    if options.template is not None and options.template.count("{label}") != 1:
        raise UsageError(f"--template {options.template!r}: expected the text {{label}} in it, once")
    check_data(options.data, options.validation_share)
    check_folder(options.out, options.resume)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def check_folder(path: Path, resume: bool) -> None:
    """Raise UsageError where the folder cannot be made or written, holds a run that was not to be resumed, or anything but a
    run.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {name for name in os.listdir(path) if not TEMPORARY.fullmatch(name)}
    except OSError as error:
        raise UsageError(f"--out {path}: cannot be made ({error.strerror}); choose another folder") from None
    left = sorted(names - {STATE, MODEL, LOG, LOCK})
    if left:
        raise UsageError(f"--out {path}: holds {left[0]}, which is no part of a run; choose another folder")
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"--out {path}: cannot be written; choose another folder, or change its permissions")
    if MODEL in names and STATE not in names:
        raise UsageError(f"--out {path}: holds {MODEL} without the {STATE} of its run; move it away, or choose another folder")
    if STATE in names and not resume:
        raise UsageError(f"--out {path}: holds a run already; go on with it by --resume, or choose another folder")
    if resume and STATE not in names:
        raise UsageError(f"--out {path}: has no {STATE}, so there is no run to go on with; leave out --resume")
