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


# Exports in one process, since each would import torch anew; their arguments are lines of JSON.
EXPORTS = """
import json, sys
from click.testing import CliRunner
from sigrl_deploy.cli.main import main
for line in sys.stdin:
    done = CliRunner().invoke(main, json.loads(line))
    print(json.dumps([done.exit_code, done.stderr]), flush=True)
"""


def test_a_pipe_in_the_place_of_a_file_does_not_hang_an_export(weights: Path, tmp_path: Path) -> None:
    pipe, folder, labels, out = (tmp_path / name for name in ("pipe.json", "folder", "labels.txt", "out"))
    os.mkfifo(pipe)
    folder.mkdir()
    labels.write_text("cat\n")
    checkpoint, tower = weights / "sigrl.pth", ["--text-tower", weights / "text.pth"]
    cases: list[tuple[Path, list[str | Path]]] = [
        (pipe, [checkpoint, "--clip-config", pipe, *tower]),
        (pipe, [checkpoint, "--text-tower", pipe]),
        (folder, [checkpoint, "--labels", folder, *tower]),  # a label file may be a pipe
        (pipe, [checkpoint, "--label-embeddings", pipe, "--labels", labels]),
        (pipe, [pipe]),
    ]
    lines = [json.dumps(["export", "onnx", *map(str, given), "--out", str(out)]) for _, given in cases]
    command = [sys.executable, "-c", EXPORTS]
    run = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, timeout=120, check=True)
    found = [json.loads(line) for line in run.stdout.splitlines()]
    for (named, _), (status, error) in zip(cases, found, strict=True):
        assert status in (2, 3), error
        assert [line.startswith("error: ") for line in error.splitlines()].count(True) == 1, error
        assert "Traceback" not in error
        assert str(named) in error
