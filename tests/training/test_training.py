"""Training small models from the command line: what it writes, what it learns, and what a killed run leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from msgspec.structs import replace
from safetensors.torch import load_file

from sigrl_deploy import Recognizer
from sigrl_deploy.architectures import Contract
from sigrl_deploy.checkpoints.eager import load_eager
from sigrl_deploy.checkpoints.loading import load_model
from sigrl_deploy.checkpoints.native import read_record, write_trained
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.cli.main import main
from sigrl_deploy.config import Arch
from sigrl_deploy.datasets.scenes import Scenes
from sigrl_deploy.demo import CHECKPOINT
from sigrl_deploy.training.models import new_clip
from tests.support.training_runs import LABELS, QUICK, TOPK, rows, train, weights


@pytest.mark.parametrize("arch", ["sigrl", "mkt", "clip-ft"])
@pytest.mark.parametrize("recipe", ["zero-shot", "single-positive"])
def test_what_training_saves_goes_straight_into_the_exporter(
    tiny_clip: Path, colours: Path, photos: list[Path], tmp_path: Path, recipe: str, arch: str
) -> None:
    run = tmp_path / "run"
    options = [*QUICK, "--steps", "2", *([] if arch == "clip-ft" else TOPK)]
    output = train(f"folder:{colours}", "--init", tiny_clip, "--recipe", recipe, "--arch", arch, "--out", run, *options)
    assert "trained 2 updates" in output
    record = read_record(run / "model.safetensors")
    assert record is not None
    assert record.config.arch is Arch(arch)
    assert sorted(record.labels) == sorted(LABELS)
    assert record.training["settings"]["recipe.loss_input"] == "scaled"
    assert record.training["validation"] == {}  # the folder has no validation pictures
    trained, start = weights(run), load_file(tiny_clip)
    assert not trained["visual.proj"].equal(start["visual.proj"])
    assert all(trained[name].equal(start[name]) for name in start if name.startswith("text."))
    assert any(name.startswith("head.") for name in trained)

    export = ["export", "onnx", str(run / "model.safetensors"), "--out", str(tmp_path / "bundle"), "--precision", "fp32"]
    done = CliRunner().invoke(main, export)
    assert done.exit_code == 0, done.output
    recognizer, eager = (
        Recognizer(tmp_path / "bundle", cache_dir=False),
        load_eager(CheckpointOptions(run / "model.safetensors"), device="cpu"),
    )
    assert recognizer.vocabulary().labels == record.labels
    expected = eager.score_pixels(np.stack([eager.pixels(photos[0])]), eager.vocabulary(LABELS))
    got = recognizer.scores(photos[:1], recognizer.vocabulary(LABELS))
    assert np.abs(expected - got).max() < 1e-5  # fp32 in another order of operations, over two layers


@pytest.fixture(scope="module")
def scenes_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The towers of the model that ships, without its heads, and with a projection that has to be learned anew."""
    record = read_record(CHECKPOINT)
    assert record is not None
    model = load_model(CheckpointOptions(CHECKPOINT, arch=Arch.CLIP)).model
    torch.manual_seed(0)
    model.visual.proj.data.normal_(std=model.visual.proj.shape[0] ** -0.5)
    path = tmp_path_factory.mktemp("scenes") / "clip.safetensors"
    write_trained(path, replace(record, config=model.config), model.state_dict())
    return path


@pytest.fixture(scope="module")
def scenes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated pictures in a folder, 96 to train on and 60 to validate on, whose eight labels are the objects' colours."""
    folder = tmp_path_factory.mktemp("folder")
    lines = ["path,split,labels"]
    for split, count in (("train", 96), ("val", 60)):
        scenes = Scenes(split)
        for i in range(count):
            scenes.image(i).save(folder / f"{split}-{i}.png")
            lines.append(f"{split}-{i}.png,{split},{';'.join(sorted({thing.colour for thing in scenes.things(i)}))}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_40_updates_learn(scenes_clip: Path, scenes_folder: Path, tmp_path: Path) -> None:
    """On the scores themselves. Of scaled scores, ever fewer pairs are violated, and their mean hinge need not fall."""
    common = [f"folder:{scenes_folder}", "--init", str(scenes_clip), "--batch-size", "8", "--validate", "60", "--topk", "4"]
    common += ["--augment", "none", "--device", "cpu", "--save-every", "40", "--distillation", "0"]
    common += ["--loss-input", "normalised"]
    train(*common, "--steps", "1", "--lr", "1e-12", "--out", tmp_path / "untrained")
    train(*common, "--steps", "40", "--lr", "1e-3", "--out", tmp_path / "trained")
    losses = [float(row["ranking"]) for row in rows(tmp_path / "trained") if row["ranking"]]
    assert losses[-1] < losses[0] - 0.2, losses
    before, after = (float(rows(tmp_path / run)[-1]["map"]) for run in ("untrained", "trained"))
    assert after > before + 0.3, (before, after)


def test_a_killed_run_continues_to_the_same_result(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    """With augmentation, dropout, distillation and validation, in the middle of an epoch."""
    arguments = [f"folder:{colours}", "--init", str(tiny_clip), "--validation-share", "0.3", *QUICK, *TOPK]
    arguments += ["--save-every", "20", "--steps", "40", "--lr", "1e-3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(*arguments, "--out", whole)
    command = [sys.executable, "-m", "sigrl_deploy", "train", *arguments, "--out", str(killed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not (killed / "state.pt").exists():
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert torch.load(killed / "state.pt", weights_only=True)["progress"]["step"] == 20
    train(*arguments, "--out", killed, "--resume", "--workers", "1")
    a, b = weights(whole), weights(killed)
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)
    assert rows(whole)[-1] == rows(killed)[-1]
    train(*arguments, "--out", killed, "--resume")  # nothing left to do
    assert all(value.equal(a[name]) for name, value in weights(killed).items())


def test_captions_train_a_clip(tiny_config: Path, tmp_path: Path) -> None:
    """In fp32 and in bf16, and with pictures drawn anew or kept, which changes nothing.

    40 updates are too few to recognise anything, so the loss must fall, both towers must move, and bf16 must move them in much
    the same way.
    """
    arguments = ["scenes", "--recipe", "contrastive", "--clip-config", str(tiny_config), "--device", "cpu", "--validate", "0"]
    arguments += ["--steps", "40", "--batch-size", "16", "--save-every", "40", "--lr", "1e-3"]
    train(*arguments, "--out", tmp_path / "drawn")
    train(*arguments, "--out", tmp_path / "kept", "--keep-pictures", "--workers", "1")
    train(*arguments, "--out", tmp_path / "bf16", "--precision", "bf16")
    drawn, kept, half = (weights(tmp_path / name) for name in ("drawn", "kept", "bf16"))
    assert all(kept[name].equal(drawn[name]) for name in drawn)
    for run in ("drawn", "bf16"):
        losses = [float(row["loss"]) for row in rows(tmp_path / run)]
        assert losses[-1] < 0.9 * losses[0], losses
    torch.manual_seed(0)
    start = new_clip(str(tiny_config), None, Contract.CLIP).model.state_dict()
    for name in ("visual.conv1.weight", "text.token_embedding.weight"):
        assert not torch.allclose(drawn[name], start[name], atol=1e-3)
        apart, moved = (half[name] - drawn[name]).norm(), (drawn[name] - start[name]).norm()
        assert apart < 0.5 * moved, (name, apart, moved)


@pytest.mark.parametrize("how", [["--accumulate", "2"], ["--devices", "2"]])
def test_parts_of_a_batch_add_up_to_the_whole(tiny_clip: Path, colours: Path, tmp_path: Path, how: list[str]) -> None:
    """With mkt, which has no dropout: its draws would differ. Adam's first steps follow signs, so the order of sums shows."""
    arguments = [
        f"folder:{colours}",
        "--init",
        str(tiny_clip),
        "--arch",
        "mkt",
        *QUICK,
        *TOPK,
        "--lr",
        "1e-4",
        "--augment",
        "none",
    ]
    arguments += ["--distillation", "0"]  # its gradient, where it starts at 0, is the sign of rounding
    train(*arguments, "--out", tmp_path / "whole")
    command = [sys.executable, "-m", "sigrl_deploy", "train", *arguments, *how, "--out", str(tmp_path / "parts")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    a, b, start = weights(tmp_path / "whole"), weights(tmp_path / "parts"), load_file(tiny_clip)
    moved = max(float((a[name] - start[name]).abs().max()) for name in start)
    apart = max(float((a[name] - b[name]).abs().max()) for name in start)
    assert moved > 1e-4
    assert apart < 0.1 * moved
    assert done.stdout.count("trained 8 updates") == 1
