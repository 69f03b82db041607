"""Training on a folder of your own: validation pictures, early refusals, progress, and runs that become longer."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sigrl_deploy import progress
from sigrl_deploy.checkpoints.native import read_record
from sigrl_deploy.datasets.opening import open_dataset
from tests.support.paths import ROOT
from tests.support.processes import interruptible, on_terminal
from tests.support.training_runs import QUICK, TOPK, refusal, rows, sigrl_deploy, train, weights

QUICK_8 = [*QUICK, *TOPK, "--arch", "mkt", "--augment", "none"]


def test_a_finished_run_can_become_longer(
    tiny_clip: Path, colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """From 8 updates to 16, at the rates that a run of 16 has there; by --epochs as well as by --steps."""
    caplog.set_level(logging.INFO)
    run, whole = tmp_path / "run", tmp_path / "whole"
    arguments = [f"folder:{colours}", "--init", str(tiny_clip), *QUICK_8, "--lr", "1e-4"]
    train(*arguments, "--out", whole, "--steps", "16")
    train(*arguments, "--out", run)
    assert float(rows(run)[-1]["lr"]) == pytest.approx(1e-7, rel=1e-3)  # the end of its cosine
    after_8 = weights(run)
    assert "trained 16 updates" in train(*arguments, "--out", run, "--steps", "16", "--resume")
    assert "continuing from update 8 to 16 (8 before)" in caplog.text
    logged, expected = ([(row["step"], row["lr"]) for row in rows(path) if row["lr"]] for path in (run, whole))
    assert [step for step, _ in logged] == ["4", "8", "12", "16"]
    assert logged[2:] == expected[2:]
    reached = weights(run)
    assert all(value.isfinite().all() for value in reached.values())
    assert not all(value.equal(after_8[name]) for name, value in reached.items())
    message = refusal(*arguments, "--out", run, "--resume")  # 8 again
    assert "its run has steps = 16, and now it is 8; " in message
    assert "its run has seed = 0" in refusal(*arguments, "--out", run, "--resume", "--steps", "20", "--seed", "1")
    by_epochs = [argument for argument in arguments if argument not in ("--steps", "8")]
    assert "trained 20 updates" in train(*by_epochs, "--out", run, "--epochs", "5", "--resume")  # 4 updates each


def _with_splits(folder: Path) -> None:
    """Pictures 0 to 4 are for test, 5 to 8 for validation."""
    path = folder / "labels.csv"
    _, *lines = path.read_text().splitlines()
    split = {**dict.fromkeys(range(5), "test"), **dict.fromkeys(range(5, 9), "val")}
    rewritten = [line.replace(",", f",{split.get(i, 'train')},", 1) for i, line in enumerate(lines)]
    path.write_text("\n".join(["path,split,labels", *rewritten]) + "\n")


def test_pictures_of_other_splits_are_not_trained_on(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    """Otherwise the missing ones would be counted as unreadable."""
    _with_splits(colours)
    for i in range(5):
        (colours / f"{i}.png").unlink()
    done = sigrl_deploy(f"folder:{colours}", "--init", tiny_clip, "--out", tmp_path / "run", *QUICK_8)
    assert done.exit_code == 0, done.output
    assert "(map_all " in done.output
    assert len([row for row in rows(tmp_path / "run") if row["map"]]) == 2


def test_a_share_is_set_apart_and_recorded(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    share = 0.3
    held_out = open_dataset(str(colours), "val", share)
    assert 0 < len(held_out) < 17
    for i in range(len(held_out)):
        Path(held_out.name(i)).write_bytes(b"no picture")
    arguments = [f"folder:{colours}", "--init", str(tiny_clip), *QUICK_8, "--validation-share", str(share)]
    done = sigrl_deploy(*arguments, "--out", tmp_path / "run")
    assert "not validated" in done.output  # nothing to validate on can be read, and all else can
    assert f"{min(5, len(held_out))} pictures could not be read" in done.output  # as many as are validated on
    record = read_record(tmp_path / "run" / "model.safetensors")
    assert record is not None
    assert record.training["settings"]["validation_share"] == share
    assert "its run has validation_share = 0.3, and now it is None" in refusal(
        *arguments[:-2], "--out", tmp_path / "run", "--resume"
    )


def test_a_warning_says_that_nothing_is_validated(
    tiny_clip: Path, colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert "(not validated)" in train(f"folder:{colours}", "--init", tiny_clip, "--out", tmp_path / "run", *QUICK_8)
    assert "has no validation pictures" in caplog.text
    assert "the last checkpoint is kept, not the best" in caplog.text


_IMPORTED = """
import sys
from sigrl_deploy.cli.main import main
try:
    main(["train", *sys.argv[1:]])
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--init", "typo.pt"], "error: --init typo.pt: no such file"),
        (["--text-tower", "typo.pt"], "error: --text-tower typo.pt: no such file"),
        (["DATA"], "gone: no such folder"),
        (["--epochs", "2"], "error: --steps: replaces --epochs"),
        (["--out", "sigrl_deploy"], "error: --out sigrl_deploy: has "),
        (["--out", "README.md"], "error: --out README.md: cannot be used (Not a directory)"),
        (["--resume"], "has no state.pt"),
    ],
)
def test_what_is_missing_is_reported_before_torch_is_imported(
    tiny_clip: Path, colours: Path, tmp_path: Path, changed: list[str], said: str
) -> None:
    data = f"folder:{colours / 'gone'}" if changed == ["DATA"] else f"folder:{colours}"
    arguments = [
        data,
        "--init",
        str(tiny_clip),
        "--out",
        str(tmp_path / "run"),
        *QUICK_8,
        *(changed if changed != ["DATA"] else []),
    ]
    root = ROOT
    done = subprocess.run([sys.executable, "-c", _IMPORTED, *arguments], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 2, done.stderr
    error, imported = done.stderr.splitlines()
    assert said in error
    assert imported == "False"


@pytest.mark.parametrize("out", ["run", "run/new/run"])
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, out: str) -> None:
    """As a user who is not root, since no permission stops root."""
    (tmp_path / "run").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    program = (
        "import os; from pathlib import Path\n"
        "from sigrl_deploy.errors import UsageError; from sigrl_deploy.training.checks import check_folder\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        f"try: check_folder(Path({out!r}), False)\n"
        "except UsageError as error: print(error.argument, error.value)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == f"out {out}\n", done.stderr


def test_without_a_terminal_lines_show_how_far_it_is(
    tiny_clip: Path, colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    train(f"folder:{colours}", "--init", tiny_clip, "--out", tmp_path / "run", *QUICK_8)
    (line,) = (line for line in caplog.messages if line.startswith("7 of 8 updates, "))
    assert re.search(r", loss \d\.\d+, lr \d\.\de-\d\d$", line)


def test_on_a_terminal_the_bar_has_loss_and_rate(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from sigrl_deploy import progress; from sigrl_deploy.cli.main import main\n"
        "progress._SOON = 0.0; main(['train', *sys.argv[1:]])"
    )
    command = [sys.executable, "-c", script, f"folder:{colours}", "--init", str(tiny_clip)]
    command += ["--out", str(tmp_path / "run"), *QUICK_8]
    status, shown = on_terminal(command, stdout=subprocess.DEVNULL)
    assert status == 0, shown
    assert b"loss " in shown
    assert b", lr " in shown


def test_an_interrupted_run_says_how_to_continue(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "sigrl_deploy", "train", f"folder:{colours}", "--init", str(tiny_clip)]
    command += ["--out", str(run), *QUICK_8, "--steps", "100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=interruptible)
    while not (run / "model.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    *_, kept, interrupted = said.decode().splitlines()
    assert re.fullmatch(rf"{run} keeps update \d+; continue with --resume", kept)
    assert interrupted == "interrupted"


def test_the_record_of_a_run_that_became_longer_has_its_new_length(tiny_clip: Path, colours: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = [f"folder:{colours}", "--init", str(tiny_clip), *QUICK_8, "--out", run]
    train(*arguments)
    train(*arguments, "--steps", "12", "--resume")
    assert torch.load(run / "state.pt", weights_only=True)["progress"]["step"] == 12
    record = read_record(run / "model.safetensors")
    assert record is not None
    assert (record.training["step"], record.training["settings"]["steps"]) == (12, 12)
