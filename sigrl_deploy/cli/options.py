"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import click

from sigrl_deploy.config import BACKENDS, FUSED, Precision

PATH = click.Path(path_type=Path)
bundle_argument = click.argument("bundle", type=PATH)
bundle_option = click.option("--bundle", type=PATH, required=True, help="Folder that the export wrote.")
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto: a GPU where there is one.",
)
backend_option = click.option(
    "--backend",
    type=click.Choice(BACKENDS),
    default="auto",
    show_default=True,
    help="auto: torch where it has a GPU and the bundle its weights, else onnxruntime.",
)
precision_option = click.option(
    "--precision",
    type=click.Choice([precision.value for precision in Precision]),
    help="Of those that the bundle was exported with [default: its first that the device can run].",
)
unfused_option = click.option(
    "--unfused",
    multiple=True,
    type=click.Choice(FUSED),
    help="On a GPU, run this op in its plain form, not as a kernel; repeatable.",
)
build_option = click.option(
    "--no-build",
    "build",
    is_flag=True,
    flag_value=False,
    default=True,
    help="Where the bundle has no TensorRT engine for this machine, fall back, and say why, instead of building one.",
)
cache_option = click.option(
    "--cache-dir", type=PATH, help="Where label embeddings are kept [default: $SIGRL_DEPLOY_CACHE or the user's cache folder]."
)
