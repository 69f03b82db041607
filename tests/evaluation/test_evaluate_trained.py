"""`sigrl-deploy evaluate` on the folder that a model was trained on: it says so, but not of pictures that were set apart."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner

from sigrl_deploy.checkpoints.native import read_record
from sigrl_deploy.cli.main import main
from sigrl_deploy.datasets.opening import open_dataset
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from tests.support.training_runs import QUICK, TOPK, train

SHARE = ["--validation-share", "0.3"]


@pytest.fixture
def evaluated(
    colours: Path, tiny_clip: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> tuple[Path, pytest.LogCaptureFixture]:
    """The checkpoint of a run on `colours` with three tenths set apart."""
    train(f"folder:{colours}", "--init", tiny_clip, "--out", tmp_path / "run", *QUICK, *TOPK, *SHARE, "--validate", "100")
    caplog.set_level(logging.INFO)
    caplog.clear()
    return tmp_path / "run" / "model.safetensors", caplog


def evaluate(*arguments: str | Path) -> None:
    done = CliRunner().invoke(main, ["evaluate", *map(str, arguments), "--device", "cpu"])
    assert done.exit_code == 0, done.output


def test_a_warning_where_pictures_were_trained_on(
    colours: Path, tiny_clip: Path, tmp_path: Path, evaluated: tuple[Path, pytest.LogCaptureFixture]
) -> None:
    checkpoint, said = evaluated
    evaluate(colours, "--checkpoint", checkpoint)
    assert "has no column split, so all its pictures are evaluated" in said.text
    assert "which are among these; `split='val'` with `validation_share=0.3` leaves them out" in said.text
    said.clear()
    evaluate(colours, "--checkpoint", checkpoint, "--split", "val", "--validation-share", "0.6")
    assert "which are among these" in said.text
    said.clear()
    evaluate(colours, "--checkpoint", tiny_clip)
    assert "was trained on" not in said.text
    train(f"folder:{colours}", "--init", tiny_clip, "--out", tmp_path / "whole", *QUICK, *TOPK)
    evaluate(colours, "--checkpoint", tmp_path / "whole" / "model.safetensors")
    assert "was trained on these pictures" in said.text


def test_those_that_were_set_apart_are_what_evaluate_sees(
    colours: Path, tmp_path: Path, evaluated: tuple[Path, pytest.LogCaptureFixture]
) -> None:
    checkpoint, said = evaluated
    out = tmp_path / "results.json"
    evaluate(colours, "--checkpoint", checkpoint, "--split", "val", *SHARE, "--out", out)
    assert "was trained on" not in said.text
    found = json.loads(out.read_text())
    (label_set,) = found["label_sets"]
    assert (found["validation_share"], label_set["pictures"]) == (0.3, len(open_dataset(str(colours), "val", 0.3)))
    recorded = read_record(checkpoint)
    assert recorded is not None
    assert recorded.training["validation"]["map"] == pytest.approx(label_set["results"][0]["map"])


def test_a_test_split_of_its_own_is_no_training_picture(
    colours: Path, evaluated: tuple[Path, pytest.LogCaptureFixture]
) -> None:
    checkpoint, said = evaluated
    path = colours / "labels.csv"
    _, *lines = path.read_text().splitlines()
    rows = [line.replace(",", f",{'test' if i < 5 else 'train'},", 1) for i, line in enumerate(lines)]
    path.write_text("\n".join(["path,split,labels", *rows]) + "\n")
    evaluate(colours, "--checkpoint", checkpoint)
    assert "5 labels, 5 pictures" in said.text
    assert "trained on" not in said.text


def test_a_bundle_knows_what_its_checkpoint_was_trained_on(
    colours: Path, tmp_path: Path, evaluated: tuple[Path, pytest.LogCaptureFixture]
) -> None:
    checkpoint, said = evaluated
    bundle = tmp_path / "bundle"
    export_bundle(ExportOptions(checkpoint, bundle))
    said.clear()
    evaluate(colours, "--bundle", bundle)
    assert f"{bundle} was trained on pictures of this folder" in said.text
