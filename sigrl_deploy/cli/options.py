"""Options that several verbs share."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import click

from sigrl_deploy.architectures import Contract
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.config import FUSED, Arch, Backend, Crop, Device, Precision
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from sigrl_deploy.machine import cpus

_Option = Callable[[Any], Any]


def _together(*options: _Option) -> _Option:
    """One decorator for options that always go together, in the order in which help shows them."""

    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


PATH = click.Path(path_type=Path)
MOST_PICTURES = 1024  # at once: a GPU is full long before
batch_size_option = click.option(
    "--batch-size", type=click.IntRange(1, MOST_PICTURES), help="Pictures per batch [default: 1 on a CPU, 16 on a GPU]."
)
bundle_argument = click.argument("bundle", type=PATH)
bundle_option = click.option("--bundle", type=PATH, required=True, help="Folder that export wrote.")
device_option = click.option(
    "--device",
    type=click.Choice([device.value for device in Device]),
    default="auto",
    show_default=True,
    help="auto: a GPU if there is one.",
)
backend_option = click.option(
    "--backend",
    type=click.Choice([backend.value for backend in Backend]),
    default="auto",
    show_default=True,
    help="auto: torch if it has a GPU and the bundle has weights for it, else onnxruntime.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice([precision.value for precision in Precision]),
    help="One that the bundle was exported with [default: its first that the device can run].",
)
unfused_option = click.option(
    "--unfused",
    multiple=True,
    type=click.Choice(FUSED),
    help="Run this op in its plain form instead of as a kernel; on a CPU only svfr is one. Repeatable.",
)
running_options = _together(device_option, backend_option, precision_option, unfused_option)
build_option = click.option(
    "--no-build",
    "build",
    is_flag=True,
    flag_value=False,
    default=True,
    help="If there is a GPU but no TensorRT engine for it, use another backend instead of building one.",
)
cache_option = click.option(
    "--cache-dir",
    type=PATH,
    help="Folder where label embeddings are kept [default: $SIGRL_DEPLOY_CACHE or the user's cache folder].",
)

labels_option = click.option(
    "--labels",
    type=PATH,
    help="Label file: .txt with one label per line, .toml, .json or .csv [default: the bundle's own labels].",
)
background_option = click.option(
    "--background",
    metavar="bundle|common|FILE",
    help="Labels that are scored beside the others and are never tags: the bundle's, some 300 everyday ones, or those of a "
    "label file [default: what the label file says].",
)
top_option = click.option(
    "--top",
    type=click.IntRange(min=1),
    help="At most N labels per picture, and their parents [default: 5, any with --thresholds].",
    metavar="N",
)
threshold_option = click.option(
    "--threshold",
    type=float,
    help="Leave out labels that score below this. It is only valid for one label file.",
)
crop_option = click.option(
    "--crop",
    type=click.Choice([crop.value for crop in Crop]),
    default="centre",
    show_default=True,
    help="Pictures far from square: tag what the bundle's preprocessing keeps, or all of it, in one square or in several.",
)
thresholds_option = click.option(
    "--thresholds", type=PATH, help="File that calibrate wrote for these labels: a threshold for each of them."
)
rescale_option = click.option(
    "--rescale-thresholds", is_flag=True, help="Take --thresholds for other labels too, and scale them. Less exact."
)


def _set_threads(ctx: click.Context, _: click.Parameter, count: int | None) -> None:
    """Before numpy, PyTorch and the runtimes are imported, which read the variable then."""
    if count is None and cpus.VARIABLE not in os.environ and cpus.quota() is not None:
        count = cpus.threads()
    if count is not None:
        os.environ[cpus.VARIABLE] = str(count)


threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1, max=1024),
    expose_value=False,
    callback=_set_threads,
    help=f"CPU threads [default: ${cpus.VARIABLE}, or the CPUs that affinity and cgroups allow this process].",
)


def _set_level(level: int, ctx: click.Context, _: click.Parameter, chosen: bool) -> None:
    log = logging.getLogger("sigrl_deploy")
    if chosen and log.isEnabledFor(logging.ERROR):  # not where another process speaks for this one
        log.setLevel(level)


def _level_option(flags: tuple[str, str], level: int, text: str) -> _Option:
    return click.option(*flags, is_flag=True, expose_value=False, callback=partial(_set_level, level), help=text)


quiet_option = _level_option(("-q", "--quiet"), logging.ERROR, "Only print errors.")
verbose_option = _level_option(("-v", "--verbose"), logging.DEBUG, "Print more: what is computed, how long it takes, and why.")


def check_finite(options: dict[str, Any], *names: str) -> None:
    """Raise UsageError where one of these is nan or inf, which click takes for numbers."""
    for name in names:
        if options[name] is not None and not math.isfinite(options[name]):
            raise UsageError("expected a finite number, such as 0.02", argument=name, value=options[name])


def engine_options(options: dict[str, Any]) -> EngineOptions:
    """Take what is about an engine out of a verb's options."""
    values = {field.name: options.pop(field.name) for field in fields(EngineOptions) if field.name in options}
    for name, enum in (("backend", Backend), ("device", Device), ("precision", Precision)):
        if values.get(name) is not None:
            values[name] = enum(values[name])
    return EngineOptions(**values | {"unfused": frozenset(values["unfused"])})


def checkpoint_options(options: dict[str, Any]) -> CheckpointOptions | None:
    """Take what is about a checkpoint out of a verb's options; None where there is no checkpoint.

    Raises UsageError for such options without a checkpoint, and where there is no such file.
    """
    values = {field.name: options.pop(field.name) for field in fields(CheckpointOptions) if field.name in options}
    if values["checkpoint"] is None:
        for name, value in values.items():
            if value is not None:
                raise UsageError("is about a checkpoint, and a bundle knows its own; add `checkpoint`", argument=name)
        return None
    from sigrl_deploy.checkpoints.open_clip_weights import check_source

    check_source(values["checkpoint"])  # before anything that takes seconds
    for name, enum in (("arch", Arch), ("preprocess", Contract)):
        if values.get(name) is not None:
            values[name] = enum(values[name])
    return CheckpointOptions(**values)
