"""`sigrl-deploy demo`."""

from __future__ import annotations

from pathlib import Path

import click

from sigrl_deploy.cli.options import PATH
from sigrl_deploy.extras import require


@click.command()
@click.option(
    "--out", type=PATH, default="demo", show_default=True, help="Folder for the bundle, the heat maps and the page with both."
)
def demo(out: Path) -> None:
    """Export the small SigRL model that comes with the package, and tag pictures with it."""
    require("torch", "onnx", "onnxscript", "open_clip", "safetensors", "jinja2", extra="export")
    from sigrl_deploy.demo import run_demo

    if run_demo(out):
        raise SystemExit(1)
