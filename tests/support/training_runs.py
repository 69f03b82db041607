"""Runs of `sigrl-deploy train` on small models, for the tests of training."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from sigrl_deploy.cli.main import main

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 48, "patch_size": 12, "width": 48, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "layers": 1, "heads": 2},
}
LABELS = ["red", "green", "blue", "dark", "light"]
QUICK = ["--steps", "8", "--batch-size", "4", "--save-every", "4", "--validate", "5", "--device", "cpu"]
TOPK = ["--topk", "3"]  # the model has 16 patches


def sigrl_deploy(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def train(*arguments: str | Path) -> str:
    done = sigrl_deploy(*arguments)
    assert done.exit_code == 0, done.output
    return done.output


def refusal(*arguments: str | Path, code: int = 2) -> str:
    done = sigrl_deploy(*arguments)
    assert done.exit_code == code, (done.output, done.exception)
    (line,) = [line for line in done.output.splitlines() if line.startswith("error: ")]
    return line


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def rows(run: Path) -> list[dict[str, str]]:
    logs = sorted(run.glob("log/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    return [row for log in logs for row in csv.DictReader(log.open())]
