"""Learning rates of a run, and how it ends before its last update."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.support.training_runs import QUICK, TOPK, refusal, rows, train, weights


def test_svfr_and_gmc_have_a_rate_of_their_own(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    """With rates that move nothing, but for theirs."""
    common = [f"folder:{colours}", "--init", str(tiny_clip), *QUICK, *TOPK, "--augment", "none", "--lr", "1e-12"]
    train(*common, "--svfr-lr", "1e-12", "--out", tmp_path / "still")
    train(*common, "--svfr-lr", "1e-2", "--out", tmp_path / "moved")
    still, moved = weights(tmp_path / "still"), weights(tmp_path / "moved")
    changed = {name.split(".")[0] for name in still if not torch.allclose(still[name], moved[name], atol=1e-6)}
    assert changed == {"svfr", "gmc", "head"}  # the head is the scale of the loss


def test_rates_rise_during_the_warm_up(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    """Update 4 of 8 is the fourth of five steps towards the full rate."""
    options = [*QUICK, *TOPK, "--lr", "1e-4", "--warmup", "4"]
    train(f"folder:{colours}", "--init", tiny_clip, *options, "--out", tmp_path / "run")
    rates = [float(row["lr"]) for row in rows(tmp_path / "run") if row["lr"]]
    assert rates[0] == pytest.approx(0.8e-4)


def test_a_run_ends_when_validations_get_no_better(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    """A rate that moves nothing: the first validation is the best, and two more are no better. Resumed, it is still over."""
    options = ["--steps", "40", "--batch-size", "4", "--save-every", "2", "--device", "cpu", "--lr", "1e-12", *TOPK]
    options += ["--validation-share", "0.3", "--augment", "none", "--patience", "2", "--out", tmp_path / "run"]
    said = "trained 6 updates; kept the model of update 2"
    assert said in train(f"folder:{colours}", "--init", tiny_clip, *options)
    assert said in train(f"folder:{colours}", "--init", tiny_clip, *options, "--resume")
    more = train(f"folder:{colours}", "--init", tiny_clip, *options, "--resume", "--patience", "3")
    assert "trained 8 updates; kept the model of update 2" in more


def test_a_run_of_a_version_without_these_options_keeps_its_rates(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    run, command = tmp_path / "run", [f"folder:{colours}", "--init", tiny_clip, *QUICK, *TOPK]
    train(*command, "--out", run)
    state = torch.load(run / "state.pt", weights_only=True)
    settings = json.loads(state["settings"])
    older = {name: value for name, value in settings.items() if name not in ("warmup", "svfr_lr", "patience", "recipe.svfr_lr")}
    torch.save(state | {"settings": json.dumps(older)}, run / "state.pt")
    longer = [*command, "--out", run, "--steps", "12", "--resume"]
    assert "its run has warmup = None" in refusal(*longer, "--warmup", "2")
    assert "trained 12 updates" in train(*longer)
