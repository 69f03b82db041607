"""Training that fails: unusable pictures, labels, disks, options and runs, and what each of them leaves behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from sigrl_deploy.checkpoints.native import read_record
from sigrl_deploy.datasets.voc import CLASSES, read_voc
from tests.support.dataset_files import picture, write
from tests.support.training_runs import QUICK, TOPK, refusal, rows, sigrl_deploy, train, weights


def test_an_unreadable_picture_is_replaced_and_counted(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    (colours / "3.png").write_bytes(b"no picture")
    (colours / "8.png").unlink()
    done = sigrl_deploy(f"folder:{colours}", "--init", tiny_clip, "--out", tmp_path / "run", *QUICK, *TOPK)
    assert done.exit_code == 1, done.output
    assert "2 pictures could not be read" in done.output
    assert "3.png" in done.output
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.parametrize("room", [1 << 15, 1 << 20])
def test_a_full_disk_loses_nothing(tiny_clip: Path, colours: Path, tmp_path: Path, room: int) -> None:
    """Room for neither file, or for the state (0.9 MB) and not for the model (6.6 MB)."""
    run = tmp_path / "run"
    arguments = ["train", f"folder:{colours}", "--init", str(tiny_clip), *QUICK, *TOPK, "--out", str(run)]
    train(*arguments[1:])
    state = torch.load(run / "state.pt", weights_only=True)
    state["progress"] |= {"step": 4, "validated": 4}
    torch.save(state, run / "state.pt")
    kept = {path: path.read_bytes() for path in (run / "model.safetensors", run / "state.pt")}
    assert len(kept[run / "state.pt"]) < 1 << 20 < len(kept[run / "model.safetensors"])
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "from sigrl_deploy.cli.main import main; main(sys.argv[1:])"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "the checkpoint or log cannot be written" in done.stderr
    assert "continue with --resume" in done.stderr
    assert "Traceback" not in done.stderr
    assert (run / "model.safetensors").read_bytes() == kept[run / "model.safetensors"]
    reached = torch.load(run / "state.pt", weights_only=True)["progress"]["step"]
    assert reached == (8 if room > len(kept[run / "state.pt"]) else 4)
    assert {path.name for path in run.iterdir()} == {"model.safetensors", "state.pt", "log", ".lock"}
    train(*arguments[1:], "--resume")
    assert torch.load(run / "state.pt", weights_only=True)["progress"]["validated"] == 8


def test_a_run_is_resumed_with_the_same_options_only(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [f"folder:{colours}", "--init", str(tiny_clip), *QUICK, *TOPK, "--out", run]
    train(*arguments)
    assert refusal(*arguments).startswith(f"error: --out {run}: has a run already")
    assert "its run has seed = 0, and now it is 7" in refusal(*arguments, "--resume", "--seed", "7")
    state = (run / "state.pt").rename(run.parent / "state.pt")
    for how in ([], ["--resume"]):
        assert refusal(*arguments, *how).startswith(f"error: --out {run}: has model.safetensors without the state.pt")
    state.rename(run / "state.pt")
    with FileLock(run / ".lock"):
        assert "another process is training into it" in refusal(*arguments, "--resume")
    labels = (colours / "labels.csv").read_text()
    (colours / "labels.csv").write_text(labels.replace("light", "pale"))
    assert "its run has labels = " in refusal(*arguments, "--resume")
    (colours / "labels.csv").write_text(labels.replace("dark", "light", 1))
    assert "its run has pictures = " in refusal(*arguments, "--resume")
    (colours / "labels.csv").write_text(labels)
    moved = colours.rename(colours.parent / "moved")
    train(f"folder:{moved}", *arguments[1:], "--resume")
    (run / "state.pt").write_bytes((run / "state.pt").read_bytes()[:5000])
    assert "state.pt: cannot be loaded" in refusal(f"folder:{moved}", *arguments[1:], "--resume")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--arch", "sigrl", "--recipe", "contrastive"], "--arch"),
        (["--augment", "flip", "--recipe", "contrastive"], "--augment"),
        (["--init", "CLIP", "--template", "no place"], "--template no place"),
        (["--init", "CLIP", "--lr", "nan"], "--lr nan"),
        (["--init", "CLIP", "--resume"], "--out OUT"),
        (["--steps", "3", "--epochs", "2", "--init", "CLIP"], "--steps"),
        ([], "--init"),
        (["--recipe", "contrastive"], "--clip-config"),
        (["--init", "nowhere.pt"], "--init nowhere.pt"),
        (["--init", "nowhere:laion"], "--init nowhere:laion"),
        (["--init", "."], "--init ."),
        (["--init", "CLIP", "--validation-share", "1"], "--validation-share 1"),
        (["--init", "CLIP", "--validation-share", "nan"], "--validation-share nan"),
        (["--init", "CLIP", "--validation-share", "1e-9"], "--validation-share 1e-09"),
        (["--init", "CLIP", "--batch-size", "18"], "--batch-size 18"),
        (["--init", "CLIP", "--batch-size", "4", "--accumulate", "3"], "--batch-size 4"),
        (["--init", "CLIP", "--accumulate", "18"], "folder:DATA"),
        pytest.param(
            ["--init", "CLIP", "--device", "cuda"],
            "--device cuda",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="torch has a GPU here"),
        ),
        (["--init", "CLIP", "--topk", "17"], "--topk 17"),
        (["--init", "CLIP", "--entropy-weight", "0.3"], "--entropy-weight"),
        (["--init", "CLIP", "--recipe", "single-positive", "--distillation", "1"], "--distillation"),
        (["--init", "CLIP", "--arch", "clip-ft", "--topk", "3"], "--topk"),
        (["--init", "CLIP", "--arch", "mkt", "--svfr-lr", "1e-3"], "--svfr-lr"),
        (["--init", "CLIP", "--patience", "3", "--validate", "0"], "--patience"),
        (["--init", "CLIP", "--steps", "5", "--warmup", "5", "--topk", "4"], "--warmup 5"),
        (["--recipe", "contrastive", "--clip-config", "CONFIG"], "folder:DATA"),
    ],
)
def test_a_wrong_option_is_named_and_leaves_no_folder(
    tiny_clip: Path, tiny_config: Path, colours: Path, tmp_path: Path, options: list[str], named: str
) -> None:
    run = tmp_path / "run"
    given = [str({"CLIP": tiny_clip, "CONFIG": tiny_config}.get(option, option)) for option in options]
    line = refusal(f"folder:{colours}", "--out", run, *given)
    named = named.replace("OUT", str(run)).replace("DATA", str(colours))
    assert line.startswith(f"error: {named}: "), line
    assert not run.exists()


def test_the_default_batch_size_fits_a_small_folder(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    """17 pictures, where the recipe's own size is 32; two parts of equal size need an even number."""
    run = tmp_path / "run"
    options = ["--steps", "1", "--accumulate", "2", "--device", "cpu", *TOPK]
    train(f"folder:{colours}", "--init", tiny_clip, *options, "--out", run)
    record = read_record(run / "model.safetensors")
    assert record is not None
    assert record.training["settings"]["recipe.batch_size"] == 16


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """VOC with 40 training pictures, of which the held-out ones are not there."""
    root = tmp_path / "VOC2012"
    names = [f"2008_{i:06}" for i in range(40)]
    for c, label in enumerate(CLASSES):
        for official in ("train", "val"):
            lines = (f"{name} {1 if i % 20 == c else -1}" for i, name in enumerate(names))
            write(root / "ImageSets" / "Main" / f"{label}_{official}.txt", "\n".join(lines))
    picture(root / "JPEGImages" / "x.jpg")
    train_split = read_voc(root, "train")
    for i in range(len(train_split)):
        picture(Path(train_split.name(i)))
    return root


def test_a_validation_without_a_readable_picture_loses_nothing(voc: Path, tiny_clip: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = sigrl_deploy(f"voc:{voc}", "--init", tiny_clip, "--out", run, *QUICK, *TOPK)
    assert done.exit_code == 1, done.output
    assert "trained 8 updates; kept the model of update 8 (not validated)" in done.output
    assert "5 pictures could not be read" in done.output
    assert torch.load(run / "state.pt", weights_only=True)["progress"]["step"] == 8


def test_a_validation_without_a_label_counts_as_none(
    tiny_clip: Path, colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The last model is kept then, since no model has been found the best."""
    _, *lines = (colours / "labels.csv").read_text().splitlines()
    rewritten = [line.replace(",", ",train,") if i > 5 else f"{i}.png,val," for i, line in enumerate(lines)]
    (colours / "labels.csv").write_text("\n".join(["path,split,labels", *rewritten]) + "\n")
    run = tmp_path / "run"
    arguments = (f"folder:{colours}", "--init", tiny_clip, *QUICK, *TOPK, "--arch", "mkt", "--augment", "none")
    assert "trained 8 updates; kept the model of update 8 (not validated)" in train(*arguments, "--out", run)
    assert caplog.text.count("no validation (none of its pictures has a label); the last checkpoint is kept") == 1
    train(*arguments, "--validate", "0", "--out", tmp_path / "without")
    assert all(value.equal(weights(run)[name]) for name, value in weights(tmp_path / "without").items())


def test_a_run_killed_before_its_validation_validates_when_it_is_resumed(
    tiny_clip: Path, colours: Path, tmp_path: Path
) -> None:
    _, *lines = (colours / "labels.csv").read_text().splitlines()
    rewritten = [line.replace(",", ",val," if i < 5 else ",train,") for i, line in enumerate(lines)]
    (colours / "labels.csv").write_text("\n".join(["path,split,labels", *rewritten]) + "\n")
    arguments = [f"folder:{colours}", "--init", str(tiny_clip), *QUICK, *TOPK, "--lr", "1e-3"]
    train(*arguments, "--out", tmp_path / "whole")
    run = tmp_path / "killed"
    train(*arguments, "--out", run)
    state = torch.load(run / "state.pt", weights_only=True)
    state["progress"] |= {"validated": 4, "best": -1.0}  # as it is saved before the validation of update 8
    torch.save(state, run / "state.pt")
    (run / "model.safetensors").unlink()
    train(*arguments, "--out", run, "--resume")
    assert torch.load(run / "state.pt", weights_only=True)["progress"]["validated"] == 8
    assert rows(run)[-1]["map"] == rows(tmp_path / "whole")[-1]["map"]
    assert (run / "model.safetensors").exists()


def test_pictures_that_any_device_cannot_read_are_counted(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    for name in ("3.png", "8.png", "11.png"):
        (colours / name).write_bytes(b"no picture")
    command = [sys.executable, "-m", "sigrl_deploy", "train", f"folder:{colours}", "--init", str(tiny_clip), *QUICK, *TOPK]
    done = subprocess.run(
        [*command, "--devices", "2", "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("3 pictures could not be read") == 1
    done = subprocess.run(
        [*command, "--devices", "2", "--out", str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1


def test_missing_neighbours_do_not_end_a_run(tiny_clip: Path, tmp_path: Path) -> None:
    """120 of 300 pictures, one block in the data set's order, are not there."""
    lines = ["path,red,blue", *(f"{i}.png,{i % 2},{1 - i % 2}" for i in range(300))]
    write(tmp_path / "data" / "labels.csv", "\n".join(lines))
    for i in range(120, 300):
        picture(tmp_path / "data" / f"{i}.png", red=i % 2 * 200)
    arguments = [f"folder:{tmp_path / 'data'}", "--init", str(tiny_clip), *QUICK, *TOPK]
    done = sigrl_deploy(*arguments, "--out", tmp_path / "run")
    assert done.exit_code == 1, done.output
    assert "trained 8 updates" in done.output
    for path in (tmp_path / "data").glob("*.png"):
        path.unlink()
    line = refusal(*arguments, "--out", tmp_path / "none")
    assert "cannot be read" in line
    assert "others drawn at random" in line
    assert not (tmp_path / "none").exists()


def test_a_diverging_run_keeps_its_last_checkpoint_and_says_how_to_start_again(
    tiny_clip: Path, colours: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [f"folder:{colours}", "--init", str(tiny_clip), *QUICK, *TOPK]
    line = refusal(*arguments, "--lr", "1e30", "--out", tmp_path / "at once", code=3)
    assert "the loss is nan" in line or "the loss is inf" in line
    assert line.endswith("in another folder")
    assert not (tmp_path / "at once" / "model.safetensors").exists()
    train(*arguments, "--out", run)
    state = torch.load(run / "state.pt", weights_only=True)
    state["progress"] |= {"step": 4, "validated": 4}
    state["trained"]["model.visual.proj"].fill_(np.inf)
    torch.save(state, run / "state.pt")
    kept = weights(run)
    line = refusal(*arguments, "--out", run, "--resume", code=3)
    assert f"--init {run / 'model.safetensors'} and another --out" in line
    assert all(value.equal(kept[name]) for name, value in weights(run).items())


def test_pictures_without_a_known_negative_cannot_be_ranked(tiny_clip: Path, tmp_path: Path) -> None:
    write(tmp_path / "data" / "labels.csv", "path,red,blue\na.png,1,\nb.png,,1\nc.png,1,\nd.png,,1\n")
    for name in "abcd":
        picture(tmp_path / "data" / f"{name}.png")
    arguments = [f"folder:{tmp_path / 'data'}", "--init", str(tiny_clip), *QUICK, *TOPK, "--out", tmp_path / "run"]
    assert "use --recipe single-positive" in refusal(*arguments)
    train(*arguments, "--recipe", "single-positive")


def test_the_log_has_the_rate_that_the_model_learned_at(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    """The cosine ends at 1e-3 of the rate. The scale of the loss has a higher rate of its own, which is not logged."""
    train(f"folder:{colours}", "--init", tiny_clip, *QUICK, *TOPK, "--lr", "1e-4", "--out", tmp_path / "run")
    rates = [float(row["lr"]) for row in rows(tmp_path / "run") if row["lr"]]
    assert rates[-1] == pytest.approx(1e-7, rel=1e-3)


@pytest.mark.parametrize("system", ["ml2p", "scpnet"])
def test_other_systems_are_no_start(system: str, colours: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    (checkpoint,) = (path for path in request.getfixturevalue(system).iterdir() if path.suffix in (".pth", ".ckpt"))
    line = refusal(f"folder:{colours}", "--init", checkpoint, "--out", tmp_path / "run")
    assert line.startswith(f"error: --init {checkpoint}: is a ")
    assert "training cannot start from" in line
