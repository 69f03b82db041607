"""Real runs that are killed, interrupted, started twice or started again: no record is lost, and none is there twice."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.processes import INFER, infer, infer_until, records

Arguments = list[str | Path]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def partial(out: Path) -> Path:
    return out.with_name("out.jsonl.partial")


@pytest.fixture
def pictures(small: Path) -> list[Path]:
    """Two of them broken. Each twice, by another name, so that a run is long enough to be stopped."""
    again = small / ".." / small.name
    return sorted(small.iterdir()) + sorted(again.iterdir())


def test_a_run_killed_at_random_moments_resumes_to_the_very_bytes_that_one_run_writes(
    model: Arguments, pictures: list[Path], out: Path, partial: Path, tmp_path: Path
) -> None:
    whole = tmp_path / "whole.jsonl"
    command: Arguments = [*pictures, *model, "--scores", "all", "--resume", "--out"]
    infer(*command, whole, status=1)
    moments = random.Random(0)
    for lines in (3, 30, 70):
        killed = infer_until(lines, partial, *command, out)
        time.sleep(moments.random() / 20)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        assert not out.exists()
    with partial.open("ab") as stream:
        stream.write(b'{"path": "half')
    infer(*command, out, status=1)
    assert out.read_bytes() == whole.read_bytes()
    assert len({record["path"] for record in records(out.read_bytes())}) == len(pictures)
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "whole.jsonl"}


@pytest.mark.parametrize(
    ("how", "said"), [(signal.SIGINT, b"interrupted"), (signal.SIGTERM, b"terminated"), (signal.SIGHUP, b"hung up")]
)
def test_a_stopped_run_says_what_it_keeps(
    model: Arguments, pictures: list[Path], out: Path, partial: Path, how: signal.Signals, said: bytes
) -> None:
    process = infer_until(8, partial, *pictures, *model, "--out", out)
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + how
    assert not out.exists()
    kept = len(records(partial.read_bytes()))
    assert 8 <= kept < len(pictures)
    assert error.splitlines()[-2:] == [f"{partial} holds {kept} records; continue with --resume".encode(), said]
    assert b"Traceback" not in error


def test_a_run_that_hangups_are_kept_from_goes_on(model: Arguments, pictures: list[Path], out: Path, partial: Path) -> None:
    """As nohup does, and a shell with Ctrl-C in what runs in the background."""
    ignore = lambda: [signal.signal(each, signal.SIG_IGN) for each in (signal.SIGHUP, signal.SIGINT)]  # noqa: E731
    command = [*INFER, *map(str, [*pictures, *model, "--out", out])]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=ignore)
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.001)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 1
    assert len(records(out.read_bytes())) == len(pictures)


@pytest.mark.parametrize("resume", [["--resume"], []])
def test_a_second_run_of_the_same_file_is_refused_while_the_first_one_writes(
    model: Arguments, pictures: list[Path], out: Path, partial: Path, tmp_path: Path, resume: Arguments
) -> None:
    command = [*pictures, *model, *resume, "--out", out]
    first = infer_until(4, partial, *command)
    first.send_signal(signal.SIGSTOP)  # so that it does not end meanwhile
    kept = partial.read_bytes()
    refused = infer(*command, "--overwrite" if not resume else "--resume", status=2)
    assert b"--out: another run is writing out.jsonl.partial" in refused.stderr
    assert partial.read_bytes() == kept
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=60)
    assert first.returncode == 1
    assert [record["path"] for record in records(out.read_bytes())] == list(map(str, pictures))
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_of_runs_that_start_together_each_picture_comes_once(
    model: Arguments, pictures: list[Path], out: Path, tmp_path: Path
) -> None:
    infer(*pictures[:40], *model, "--out", out, status=1)
    command = [*INFER, *map(str, [*pictures, *model, "--resume", "--out", out])]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 1 or (process.returncode == 2 and b"another run is writing" in error), error
    assert 1 in [process.returncode for process in processes]
    assert [record["path"] for record in records(out.read_bytes())] == list(map(str, pictures))
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_finished_run_takes_more_pictures_but_no_other_labels_or_options(
    model: Arguments, photos: list[Path], out: Path, partial: Path, tmp_path: Path
) -> None:
    command = [*model, "--out", out, "--resume"]
    # A run whose output a shell redirected can be resumed too.
    out.write_bytes(infer(*photos[:2], *model, "--format", "jsonl").stdout)
    before = out.read_bytes()
    other = tmp_path / "other.txt"
    other.write_text("cat\ndog\n")
    options, labels = b"was written with other options", b"was written with other labels;"
    for given, said in ((["--top", "2"], options), (["--threshold", "0.1"], options), (["--labels", other], labels)):
        refused = infer(*photos, *command, *given, status=2)
        assert said in refused.stderr
        assert out.read_bytes() == before
        assert not partial.exists()
    infer(*photos, *command)
    assert out.read_bytes().startswith(before)
    assert [record["path"] for record in records(out.read_bytes())] == [str(photo) for photo in photos]


@pytest.mark.parametrize("finished", [True, False])
def test_pictures_that_could_not_be_read_are_read_again_when_asked(
    model: Arguments, photos: list[Path], out: Path, partial: Path, tmp_path: Path, finished: bool
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    mended, broken, whole = folder / "a.jpg", folder / "b.jpg", folder / "c.jpg"
    broken.write_bytes(b"no picture")
    whole.write_bytes(photos[0].read_bytes())
    command = [mended, broken, whole, *model, "--out", out]
    infer(*command, status=1)
    if not finished:
        out.rename(partial)
    mended.write_bytes(photos[1].read_bytes())
    untouched = infer(*command, "--resume", status=1)
    assert b"2 pictures could not be read" in untouched.stderr
    if not finished:
        out.rename(partial)
    again = infer(*command, "--resume", "--retry-errors", status=1)
    assert b"1 picture could not be read" in again.stderr
    found = {record["path"]: "tags" in record for record in records(out.read_bytes())}
    assert found == {str(mended): True, str(broken): False, str(whole): True}
    assert len(out.read_bytes().splitlines()) == 3


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "txt"])
def test_a_finished_file_is_replaced_only_when_asked(model: Arguments, photos: list[Path], tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"out.{ending}"
    out.write_text("hours of work")
    refused = infer(photos[0], *model, "--out", out, status=2)
    assert f"--out {out}: exists already".encode() in refused.stderr
    assert b"--overwrite" in refused.stderr
    assert (b"--resume" in refused.stderr) == (ending == "jsonl")
    assert out.read_text() == "hours of work"
    infer(photos[0], *model, "--out", out, "--overwrite")
    assert photos[0].name.encode() in out.read_bytes()
    out.write_text("")
    infer(photos[0], *model, "--out", out)  # an empty file holds no work


def test_what_an_interrupted_run_left_is_thrown_away_only_when_asked(
    model: Arguments, photos: list[Path], out: Path, partial: Path
) -> None:
    partial.write_text("half a run\n")
    refused = infer(photos[0], *model, "--out", out, status=2)
    assert (
        b"an interrupted run left out.jsonl.partial; continue it with --resume, or start again with --overwrite"
        in refused.stderr
    )
    assert partial.read_text() == "half a run\n"
    infer(photos[0], *model, "--out", out, "--overwrite")
    assert len(records(out.read_bytes())) == 1
    assert not partial.exists()


def test_a_run_that_fails_before_its_first_record_leaves_nothing(model: Arguments, out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"")
    infer(folder, *model, "--out", out, "--labels", folder / "missing.txt", status=2)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
