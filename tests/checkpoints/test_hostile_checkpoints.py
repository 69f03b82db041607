"""Files that claim gigabytes, or would take for ever to read, are refused quickly, in little memory, and with one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkpoints import openai, saved, sigrl
from tests.support.hostile_checkpoints import GROUPS
from tests.support.paths import SUPPORT

CHILD = SUPPORT / "hostile_child.py"
SECONDS, MEGABYTES = 10.0, 300.0  # a second, on an idle machine


def refusals(folder: Path, paths: list[Path]) -> list[dict]:
    good = [saved(folder / "good.pth", openai()), saved(folder / "without-text.pth", sigrl())]
    listed = "".join(f"{path}\n" for path in paths)
    run = subprocess.run(
        [sys.executable, CHILD, *good], input=listed, capture_output=True, text=True, timeout=60 + SECONDS * len(paths)
    )
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert [record["path"] for record in found] == list(map(str, paths)), run.stderr[-2000:]
    return found


@pytest.mark.parametrize("group", GROUPS)
def test_a_small_file_that_claims_much_costs_little(group: str, tmp_path: Path) -> None:
    for record in refusals(tmp_path, list(GROUPS[group](tmp_path))):
        assert record["said"].startswith(("CheckpointError: ", "UsageError: ")), record
        assert "\n" not in record["said"], record
        assert len(record["said"]) < 600 + len(record["path"]), record
        assert record["seconds"] < SECONDS, record
        assert record["megabytes"] < MEGABYTES, record


def test_pipes_devices_and_files_without_an_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "folder.pth").mkdir()
    for name, start in (("huge.pth", b""), ("zip.pth", b"PK\x03\x04"), ("huge.safetensors", b"\x10" + bytes(7))):
        with (tmp_path / name).open("wb") as file:
            file.write(start)
            file.truncate(1 << 36)
    paths = [*sorted(tmp_path.iterdir()), Path("/dev/zero"), tmp_path / "missing.pth"]
    for record in refusals(tmp_path, paths):
        kind = "is a folder, pipe or device"
        expected = "no such file" if "missing" in record["path"] else "huge" if "huge" in record["path"] else kind
        said = {"huge": "is damaged, or not a checkpoint"}.get(expected, expected)
        assert said in record["said"] or "zip" in record["path"], record
        assert record["said"].startswith(("CheckpointError: ", "UsageError: ")), record
        assert record["seconds"] < SECONDS, record
        assert record["megabytes"] < MEGABYTES, record


@pytest.mark.parametrize("option", ["--clip-config", "--text-tower", "--labels", "--label-embeddings", ""])
def test_a_pipe_in_the_place_of_a_file_does_not_hang_an_export(option: str, weights: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    (tmp_path / "labels.txt").write_text("cat\n")
    options = {"": [], "--label-embeddings": ["--labels", tmp_path / "labels.txt"]}.get(
        option, ["--text-tower", weights / "text.pth"] if option != "--text-tower" else []
    )
    given = [option, pipe] if option else []
    command = ["-m", "sigrl_deploy", "export", "onnx", weights / "sigrl.pth" if option else pipe, *given, *options]
    if option == "--labels":
        os.unlink(pipe)  # a label file may be a pipe; a folder may not
        pipe.mkdir()
    run = subprocess.run(
        [sys.executable, *map(str, command), "--out", tmp_path / "out"], capture_output=True, text=True, timeout=120
    )
    assert run.returncode in (2, 3), run.stderr
    assert [line.startswith("error: ") for line in run.stderr.splitlines()].count(True) == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert str(pipe) in run.stderr
