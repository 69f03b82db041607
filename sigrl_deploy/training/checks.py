"""Checks of a run that are made before torch is imported, which takes seconds."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sigrl_deploy.checkpoints.open_clip_weights import check_source
from sigrl_deploy.datasets.opening import check_data, parse
from sigrl_deploy.errors import UsageError
from sigrl_deploy.extras import require
from sigrl_deploy.training.recipes import TrainOptions, choose_recipe

MODEL = "model.safetensors"
STATE = "state.pt"
LOG = "log"
LOCK = ".lock"
TEMPORARY = re.compile(r"\.(state\.pt|model\.safetensors)\.[0-9a-f]+\.tmp")  # a killed run may leave one
_NEEDED = ("torch", "torchvision", "open_clip", "safetensors", "lightning_fabric", "sklearn")


def check_run(options: TrainOptions) -> None:
    """Raise UsageError for contradicting options, missing files and packages, and where `check_folder` does."""
    choose_recipe(options)
    require(*_NEEDED, *(["h5py"] if parse(options.data)[0] == "nus-wide" else []), extra="train")
    for argument, source in (("init", options.init), ("text_tower", options.text_tower)):
        if source is not None:
            check_source(source, argument)
    if options.template is not None and options.template.count("{label}") != 1:
        raise UsageError("expected the text {label} in it, once", argument="template", value=options.template)
    check_data(options.data, options.validation_share)
    check_folder(options.out, options.resume)


def check_folder(path: Path, resume: bool) -> None:
    """Raise UsageError where a run cannot be written to this folder.

    That is where the folder cannot be created or written, has files that are not a run's, has a run that is not to be resumed,
    or, with `resume`, has none. Changes nothing.
    """

    def refused(problem: str) -> UsageError:
        return UsageError(problem, argument="out", value=path)

    try:
        names = {name for name in os.listdir(path) if not TEMPORARY.fullmatch(name)}
        written = path
    except FileNotFoundError:
        names = set()
        written = next(folder for folder in path.absolute().parents if os.path.exists(folder))
    except OSError as error:
        raise refused(f"cannot be used ({error.strerror}); choose another folder") from None
    others = sorted(names - {STATE, MODEL, LOG, LOCK})
    if others:
        raise refused(f"has {others[0]}, which is not part of a run; choose another folder")
    if not os.path.isdir(written) or not os.access(written, os.W_OK | os.X_OK):
        raise refused("cannot be written; choose another folder, or change its permissions")
    if MODEL in names and STATE not in names:
        raise refused(f"has {MODEL} without the {STATE} of its run; move it away, or choose another folder")
    if STATE in names and not resume:
        raise refused("has a run already; continue it with `resume`, or choose another folder")
    if resume and STATE not in names:
        raise refused(f"has no {STATE}, so there is no run to continue; leave out `resume`")
