"""Training by the command line, on small models: what it writes, what a kill leaves, and what it says of wrong input."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file

from sigrl_deploy import Recognizer
from sigrl_deploy.cli import main
from sigrl_deploy.config import Arch
from sigrl_deploy.demo import CHECKPOINT
from sigrl_deploy.eager import load_eager, load_model
from sigrl_deploy.preprocess import Contract
from sigrl_deploy.trained import TrainedRecord, read_record, write_trained
from sigrl_deploy.training.models import new_clip

TINY = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 48, "patch_size": 12, "width": 48, "layers": 2, "head_width": 16},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "layers": 1, "heads": 2},
}
LABELS = ["red", "green", "blue", "dark", "light"]
QUICK = ["--steps", "8", "--batch-size", "4", "--save-every", "4", "--validate", "5", "--device", "cpu", "--topk", "3"]


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


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(TINY))
    return path


@pytest.fixture(scope="module")
def clip(config: Path) -> Path:
    """An untrained CLIP, saved as a checkpoint."""
    torch.manual_seed(0)
    start = new_clip(str(config), None, Contract.CLIP)
    path = config.parent / "clip.safetensors"
    write_trained(path, TrainedRecord(start.model.config, start.template, start.preprocess), start.model.state_dict())
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of 17 pictures of one colour each."""
    folder = tmp_path / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    lines = ["path,labels"]
    for i in range(17):
        colour = rng.integers(0, 256, 3)
        Image.new("RGB", (50, 60), tuple(map(int, colour))).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{LABELS[int(colour.argmax())]};{'light' if colour.sum() > 380 else 'dark'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize("arch", ["sigrl", "mkt", "clip-ft"])
@pytest.mark.parametrize("recipe", ["zero-shot", "single-positive"])
def test_what_training_saves_goes_straight_into_the_exporter(
    clip: Path, data: Path, photos: list[Path], tmp_path: Path, recipe: str, arch: str
) -> None:
    run = tmp_path / "run"
    output = train(f"folder:{data}", "--init", clip, "--recipe", recipe, "--arch", arch, "--out", run, *QUICK)
    assert "trained 8 updates" in output
    record = read_record(run / "model.safetensors")
    assert record is not None
    assert record.config.arch is Arch(arch)
    assert sorted(record.labels) == sorted(LABELS)
    assert record.training["settings"]["recipe.loss_input"] == "scaled"
    assert record.training["validation"] == {}  # a folder has no pictures apart
    trained, start = weights(run), load_file(clip)
    assert not trained["visual.proj"].equal(start["visual.proj"])
    assert all(trained[name].equal(start[name]) for name in start if name.startswith("text."))
    assert any(name.startswith("head.") for name in trained)

    done = CliRunner().invoke(main, ["export", "onnx", str(run / "model.safetensors"), "--out", str(tmp_path / "bundle")])
    assert done.exit_code == 0, done.output
    recognizer, eager = Recognizer(tmp_path / "bundle", cache_dir=False), load_eager(run / "model.safetensors", device="cpu")
    expected = eager.score_pixels(np.stack([eager.pixels(photos[0])]), eager.vocabulary(LABELS))
    got = recognizer.scores(photos[:1], recognizer.vocabulary(LABELS))
    assert np.abs(expected - got).max() < 1e-5  # fp32 in another order of operations, over two layers


@pytest.fixture(scope="module")
def scenes_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The towers of the model that ships, without its heads, and with a projection that has to be learned anew."""
    record = read_record(CHECKPOINT)
    assert record is not None
    _, _, model = load_model(CHECKPOINT, arch=Arch.CLIP)
    torch.manual_seed(0)
    model.visual.proj.data.normal_(std=model.visual.proj.shape[0] ** -0.5)
    path = tmp_path_factory.mktemp("scenes") / "clip.safetensors"
    write_trained(path, replace(record, config=model.config), model.state_dict())
    return path


def test_200_updates_learn_and_a_killed_run_goes_on_to_the_same_result(scenes_clip: Path, tmp_path: Path) -> None:
    """Fed the scores themselves: of scaled ones ever fewer pairs are violated, and their mean hinge need not fall."""
    common = ["scenes", "--init", str(scenes_clip), "--batch-size", "8", "--validate", "100", "--topk", "4"]
    common += [
        "--augment",
        "none",
        "--device",
        "cpu",
        "--save-every",
        "100",
        "--distillation",
        "0",
        "--loss-input",
        "normalised",
    ]
    train(*common, "--steps", "1", "--lr", "1e-12", "--out", tmp_path / "untrained")
    arguments = [*common, "--steps", "200", "--lr", "1e-3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(*arguments, "--out", whole)
    losses = [float(row["ranking"]) for row in rows(whole) if row["ranking"]]
    assert losses[-1] < losses[0] - 0.1, losses
    before, after = (float(rows(run)[-1]["map"]) for run in (tmp_path / "untrained", whole))
    assert after > before + 0.1, (before, after)

    command = [sys.executable, "-m", "sigrl_deploy", "train", *arguments, "--out", str(killed)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while not (killed / "state.pt").exists():
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert torch.load(killed / "state.pt", weights_only=True)["progress"]["step"] == 100
    train(*arguments, "--out", killed, "--resume", "--workers", "1")
    a, b = weights(whole), weights(killed)
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)
    assert rows(whole)[-1] == rows(killed)[-1]
    train(*arguments, "--out", killed, "--resume")  # nothing left to do
    assert all(value.equal(a[name]) for name, value in weights(killed).items())


def test_captions_train_a_clip(config: Path, tmp_path: Path) -> None:
    """In fp32 and in bf16; with pictures drawn anew or kept, which changes nothing. 60 updates are too few to recognise by, so
    what is asked for is that the loss falls, that both towers move, and that bf16 moves them much the same way.
    """
    arguments = ["scenes", "--recipe", "contrastive", "--clip-config", str(config), "--device", "cpu", "--validate", "0"]
    arguments += ["--steps", "60", "--batch-size", "16", "--save-every", "60", "--lr", "1e-3"]
    train(*arguments, "--out", tmp_path / "drawn")
    train(*arguments, "--out", tmp_path / "kept", "--keep-pictures", "--workers", "1")
    train(*arguments, "--out", tmp_path / "bf16", "--precision", "bf16")
    drawn, kept, half = (weights(tmp_path / name) for name in ("drawn", "kept", "bf16"))
    assert all(kept[name].equal(drawn[name]) for name in drawn)
    for run in ("drawn", "bf16"):
        losses = [float(row["loss"]) for row in rows(tmp_path / run)]
        assert losses[-1] < 0.9 * losses[0], losses
    torch.manual_seed(0)
    start = new_clip(str(config), None, Contract.CLIP).model.state_dict()
    for name in ("visual.conv1.weight", "text.token_embedding.weight"):
        assert not torch.allclose(drawn[name], start[name], atol=1e-3)
        apart, moved = (half[name] - drawn[name]).norm(), (drawn[name] - start[name]).norm()
        assert apart < 0.5 * moved, (name, apart, moved)


@pytest.mark.parametrize("how", [["--accumulate", "2"], ["--devices", "2"]])
def test_parts_of_a_batch_add_up_to_the_whole(clip: Path, data: Path, tmp_path: Path, how: list[str]) -> None:
    """mkt has no dropout, whose draws differ between parts. Adam's first steps follow signs, so sums in another order show."""
    arguments = [f"folder:{data}", "--init", str(clip), "--arch", "mkt", *QUICK, "--lr", "1e-4", "--augment", "none"]
    arguments += ["--distillation", "0"]  # its gradient, where it starts at 0, is the sign of rounding
    train(*arguments, "--out", tmp_path / "whole")
    command = [sys.executable, "-m", "sigrl_deploy", "train", *arguments, *how, "--out", str(tmp_path / "parts")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    a, b, start = weights(tmp_path / "whole"), weights(tmp_path / "parts"), load_file(clip)
    moved = max(float((a[name] - start[name]).abs().max()) for name in start)
    apart = max(float((a[name] - b[name]).abs().max()) for name in start)
    assert moved > 1e-4
    assert apart < 0.1 * moved
    assert done.stdout.count("trained 8 updates") == 1


def test_an_unreadable_picture_is_passed_over_and_counted(clip: Path, data: Path, tmp_path: Path) -> None:
    (data / "3.png").write_bytes(b"no picture")
    (data / "8.png").unlink()
    done = sigrl_deploy(f"folder:{data}", "--init", clip, "--out", tmp_path / "run", *QUICK)
    assert done.exit_code == 1, done.output
    assert "2 pictures were left out, which cannot be read" in done.output
    assert "3.png" in done.output
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_a_full_disk_keeps_the_checkpoint_before(clip: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", f"folder:{data}", "--init", str(clip), *QUICK, "--out", str(run)]
    train(*arguments[1:])
    kept = {path: path.read_bytes() for path in (run / "model.safetensors", run / "state.pt")}
    (tmp_path / "again").mkdir()
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "from sigrl_deploy.cli import main; main(sys.argv[1:])"
    )
    longer = [*arguments, "--resume"]
    longer[longer.index("--steps") + 1] = "8"
    state = torch.load(run / "state.pt", weights_only=True)
    state["progress"] |= {"step": 4, "best": -1.0}
    torch.save(state, run / "state.pt")
    kept[run / "state.pt"] = (run / "state.pt").read_bytes()
    done = subprocess.run([sys.executable, "-c", script, *longer], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "the checkpoint or log cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert {path.name for path in run.iterdir()} == {"model.safetensors", "state.pt", "log"}


def test_a_run_is_resumed_by_its_like_only(clip: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [f"folder:{data}", "--init", str(clip), *QUICK, "--out", run]
    train(*arguments)
    assert "holds a run already; go on with it by --resume" in refusal(*arguments)
    assert "its run has seed = 0, and now it is 7" in refusal(*arguments, "--resume", "--seed", "7")
    state = (run / "state.pt").rename(run.parent / "state.pt")
    for how in ([], ["--resume"]):
        assert "holds model.safetensors without the state.pt of its run; move it away" in refusal(*arguments, *how)
    state.rename(run / "state.pt")
    (run / "state.pt").write_bytes((run / "state.pt").read_bytes()[:5000])
    assert "state.pt: cannot be resumed from" in refusal(*arguments, "--resume")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--arch", "sigrl", "--recipe", "contrastive"], "--arch: the contrastive recipe trains a whole CLIP from nothing"),
        (["--augment", "flip", "--recipe", "contrastive"], "--augment: the contrastive recipe"),
        (["--init", "CLIP", "--batch-size", "4", "--template", "no place"], "template is 'no place'"),
        (["--init", "CLIP", "--lr", "nan"], "--lr nan: expected a finite number"),
        (["--init", "CLIP", "--batch-size", "4", "--resume"], "has no model.safetensors, so there is no run to go on with"),
        (["--steps", "3", "--epochs", "2", "--init", "CLIP"], "--steps: takes the place of --epochs"),
        ([], "--init: give the CLIP checkpoint to start from"),
        (["--recipe", "contrastive"], "--clip-config: the contrastive recipe needs the config"),
        (["--init", "nowhere.pt"], "nowhere.pt: no such file"),
        (["--init", "CLIP", "--batch-size", "18"], "--batch-size 18: "),
        (["--init", "CLIP", "--batch-size", "4", "--accumulate", "3"], "expected a multiple of 3"),
        (["--init", "CLIP", "--device", "cuda"], "--device cuda: this torch finds no GPU"),
        (["--init", "CLIP", "--batch-size", "4", "--topk", "17"], "--topk 17: the model has 16 patches"),
        (["--init", "CLIP", "--entropy-weight", "0.3"], "--entropy-weight: is of the single-positive recipe; leave it out"),
        (
            ["--init", "CLIP", "--recipe", "single-positive", "--distillation", "1"],
            "--distillation: is of the zero-shot recipe",
        ),
        (["--init", "CLIP", "--arch", "clip-ft", "--topk", "3"], "--topk: clip-ft matches no patches; leave it out"),
        (["--recipe", "contrastive", "--clip-config", "CONFIG"], "has no captions; the contrastive recipe learns from scenes"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(
    clip: Path, config: Path, data: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    given = [str({"CLIP": clip, "CONFIG": config}.get(option, option)) for option in options]
    assert message in refusal(f"folder:{data}", "--out", tmp_path / "run", *given, code=3 if "nowhere.pt" in given else 2)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_diverging_run_stops_and_keeps_its_last_checkpoint(clip: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = refusal(f"folder:{data}", "--init", clip, *QUICK, "--lr", "1e30", "--out", run, code=3)
    assert "the loss is nan" in line or "the loss is inf" in line
    assert not (run / "model.safetensors").exists()
