"""Real runs of `sigrl-deploy infer` over real files: broken pictures, interruptions, full disks, closed pipes, odd names."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import interruptible

COMMAND = [sys.executable, "-m", "sigrl_deploy", "infer"]
ODD_NAMES = [b"caf\xe9.jpg", b"new\nline.jpg", b're\rturn, "quoted".jpg', b"\x1b[31mred.jpg", "Ж😀.jpg".encode()]
Arguments = list[str | Path]


@pytest.fixture(scope="session")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("labels") / "labels.txt"
    path.write_text("cat\ndog\nrocket\ncup of coffee\nperson\n", encoding="utf-8")
    return path


@pytest.fixture
def model(bundle: Path, labels: Path) -> Arguments:
    return ["--bundle", bundle, "--labels", labels, "--device", "cpu"]


@pytest.fixture(scope="session")
def small(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty different pictures, quick to decode; one of them is broken."""
    folder = tmp_path_factory.mktemp("small")
    with Image.open(photos[0]) as photo:
        for i in range(60):
            photo.crop((i, i, 160 + i, 140 + i)).save(folder / f"{i:02}.jpg")
    (folder / "05.jpg").write_bytes(b"")
    return folder


def _infer(*arguments: str | Path, status: int = 0, **options: Any) -> subprocess.CompletedProcess[bytes]:
    run = subprocess.run([*COMMAND, *map(str, arguments)], **{"capture_output": True, **options})
    assert run.returncode == status, run.stderr.decode()
    assert b"Traceback" not in (run.stderr or b"")
    assert b"Exception ignored" not in (run.stderr or b"")
    return run


def _records(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.split(b"\n")[:-1]]


def _limit_files(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def _assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [record["path"] for record in found] == [record["path"] for record in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.get("error") == b.get("error")
        if "scores" in b:
            assert a["scores"] == pytest.approx(b["scores"], abs=1e-5)


def test_broken_pictures_are_records_in_their_place_and_batches_change_no_score(
    model: Arguments, photos: list[Path], tmp_path: Path
) -> None:
    astronaut, cat, coffee, rocket = photos
    truncated, empty, text, bomb, gone = (
        tmp_path / name for name in ("cut.jpg", "empty.png", "text.jpg", "bomb.png", "gone.jpg")
    )
    truncated.write_bytes(cat.read_bytes()[:9000])
    empty.touch()
    text.write_text("no picture")
    Image.new("1", (12_000, 12_000)).save(bomb)
    broken = {
        truncated: "is damaged",
        empty: "is empty (0 bytes)",
        text: "is damaged or no picture",
        bomb: "12000 x 12000 pixels",
        gone: "No such file",
    }
    again = tmp_path / "again.jpg"
    again.write_bytes(cat.read_bytes())
    pictures = [empty, cat, truncated, text, coffee, again, bomb, gone, rocket, astronaut]
    runs = [
        _records(_infer(*pictures, *model, "--scores", "all", "--format", "jsonl", "--batch-size", str(size), status=1).stdout)
        for size in (1, 3, 16)
    ]
    for records in runs:
        assert [record["path"] for record in records] == [str(picture) for picture in pictures]
        for picture, record in zip(pictures, records, strict=True):
            if picture in broken:
                assert broken[picture] in record["error"]
                assert str(picture) not in record["error"], "the path has a field of its own"
            else:
                assert list(record["scores"]) == ["cat", "dog", "rocket", "cup of coffee", "person"]
        assert records[1]["scores"] == pytest.approx(records[5]["scores"], abs=1e-5)
        _assert_same(records, runs[0])
    alone = _records(_infer(rocket, *model, "--scores", "all", "--format", "jsonl").stdout)
    _assert_same([runs[2][8]], alone)


def test_pictures_of_every_mode_and_orientation_in_one_folder(model: Arguments, photos: list[Path], tmp_path: Path) -> None:
    with Image.open(photos[1]) as photo:
        photo = photo.convert("RGB").resize((120, 90))
    turned = photo.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    folder = tmp_path / "nested" / "deeper"
    folder.mkdir(parents=True)
    photo.save(folder / "a_upright.png")
    turned.save(folder / "b_turned.png", exif=exif)
    for mode, ending in (("L", "png"), ("P", "gif"), ("CMYK", "jpg"), ("RGBA", "png"), ("LA", "png"), ("1", "bmp")):
        photo.convert(mode).save(folder / f"c_{mode}.{ending}")
    Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257).save(folder / "c_16.tif")
    records = json.loads(_infer(tmp_path, *model, "--scores", "all", "--format", "json").stdout)
    assert len(records) == 9
    assert all(np.isfinite(list(record["scores"].values())).all() for record in records)
    upright, turned_upright, *others = records
    assert turned_upright["scores"] == pytest.approx(upright["scores"], abs=1e-5)
    grey = {Path(record["path"]).name: record["scores"] for record in others}
    assert grey["c_16.tif"] == pytest.approx(grey["c_L.png"], abs=1e-5)


def _stop_after(lines: int, how: signal.Signals, command: Arguments, partial: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([*COMMAND, *map(str, command)], stderr=subprocess.PIPE, preexec_fn=interruptible)
    while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") >= lines):
        time.sleep(0.001)
    process.send_signal(how)
    process.wait()
    return process


def test_a_killed_and_an_interrupted_run_resume_to_what_one_run_writes(model: Arguments, small: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    partial = tmp_path / "out.jsonl.partial"
    # Each picture again by another name, so that the run is long enough to be stopped twice.
    again = small / ".." / small.name
    pictures = sorted(small.iterdir()) + sorted(again.iterdir())
    _infer(*pictures, *model, "--scores", "all", "--out", whole, status=1)
    command: Arguments = [*pictures, *model, "--scores", "all", "--out", out, "--resume"]

    killed = _stop_after(8, signal.SIGKILL, command, partial)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    with partial.open("ab") as stream:
        stream.write(b'{"path": "half')
    interrupted = _stop_after(30, signal.SIGINT, command, partial)
    assert interrupted.returncode == 130
    assert interrupted.stderr is not None
    said = interrupted.stderr.read()
    assert said.endswith(b"interrupted\n")
    assert b"Traceback" not in said
    assert 30 <= len(_records(partial.read_bytes())) < len(pictures)
    assert not out.exists()

    _infer(*command, status=1)
    assert not partial.exists()
    expected = _records(whole.read_bytes())
    assert len(expected) == len({record["path"] for record in expected}) == 120
    found = _records(out.read_bytes())
    assert [record["run"] for record in found] == [record["run"] for record in expected]
    _assert_same(found, expected)


def test_a_finished_run_takes_more_pictures_but_no_other_labels_or_options(
    model: Arguments, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    command = [*model, "--out", out, "--format", "jsonl", "--resume"]
    # A run whose output a shell redirected can be resumed too.
    out.write_bytes(_infer(*photos[:2], *model, "--format", "jsonl").stdout)
    before = out.read_bytes()
    other = tmp_path / "other.txt"
    other.write_text("cat\ndog\n")
    for options in (["--top", "2"], ["--threshold", "0.1"], ["--labels", other]):
        refused = _infer(*photos, *command, *options, status=2)
        assert b"another bundle, vocabulary or options" in refused.stderr
        assert out.read_bytes() == before
        assert not out.with_name("out.jsonl.partial").exists()
    _infer(*photos, *command)
    assert out.read_bytes().startswith(before)
    assert [record["path"] for record in _records(out.read_bytes())] == [str(photo) for photo in photos]


def test_a_full_disk_loses_no_record_and_no_older_file(model: Arguments, small: Path, tmp_path: Path) -> None:
    pictures = sorted(small.iterdir())[10:16]
    out = tmp_path / "out.jsonl"
    full = _infer(*pictures, *model, "--out", out, status=2, preexec_fn=_limit_files(1000))
    assert b"out.jsonl: cannot be written (File too large)" in full.stderr
    assert b"--resume" in full.stderr
    assert not out.exists()
    _infer(*pictures, *model, "--out", out, "--resume")
    assert [record["path"] for record in _records(out.read_bytes())] == [str(path) for path in pictures]

    before = out.read_bytes()
    _infer(*pictures, *model, "--out", out, "--format", "csv", status=2, preexec_fn=_limit_files(100))
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_standard_output_is_one_line_and_status_2(model: Arguments, photos: list[Path]) -> None:
    with open("/dev/full", "wb") as stdout:
        run = _infer(photos[0], *model, status=2, capture_output=False, stdout=stdout, stderr=subprocess.PIPE)
    assert run.stderr.splitlines()[-1].startswith(b"error: standard output: cannot be written")


@pytest.mark.parametrize("format_", ["jsonl", "table"])
def test_a_reader_that_goes_away_ends_the_run_without_a_word(model: Arguments, small: Path, format_: str) -> None:
    """JSON lines notice in mid-run, a table of few pictures when its buffer is written at the end."""
    pictures = sorted(small.iterdir())[10:20]
    command = [*COMMAND, *map(str, [*pictures, *model, "--format", format_])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read().splitlines()
    assert process.wait() == 141
    assert [line for line in said if not line.startswith(b"engine: ")] == []


@pytest.fixture
def oddly_named(small: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "odd"
    folder.mkdir()
    for name in ODD_NAMES:
        try:
            (folder / os.fsdecode(name)).write_bytes((small / "10.jpg").read_bytes())
        except (OSError, UnicodeError):
            pytest.skip("this file system has no names that are not text")
    (folder / "\x1b[2Jbroken.jpg").touch()
    return folder


def test_any_file_name_reaches_a_terminal_that_knows_ascii_only(model: Arguments, oddly_named: Path) -> None:
    plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii:strict"}
    run = _infer(oddly_named, *model, "--top", "1", status=1, env=plain)
    assert len(run.stdout.splitlines()) == 2 + len(ODD_NAMES)
    for shown in (run.stdout, run.stderr):
        assert shown.isascii()
        assert b"\x1b" not in shown
        assert b"\r" not in shown
    everything = _infer(oddly_named, *model, "--top", "1", "--format", "json", status=1, env=plain)
    assert {os.fsencode(Path(record["path"]).name) for record in json.loads(everything.stdout)} >= set(ODD_NAMES)


def test_any_file_name_is_resumed_and_listed(model: Arguments, oddly_named: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = sorted(oddly_named.iterdir())[0]
    _infer(oddly_named, *model, "--out", out, status=1)
    before = out.read_bytes()
    _infer(oddly_named, *model, "--out", out, "--resume", status=1)
    assert out.read_bytes() == before
    assert {os.fsencode(Path(record["path"]).name) for record in _records(before)} >= set(ODD_NAMES)
    assert str(first) in {record["path"] for record in _records(before)}
    # A list is one path a line, so it holds every name but the one with a line feed in it.
    listed = [os.fsencode(oddly_named) + b"/" + name for name in ODD_NAMES if b"\n" not in name]
    run = _infer("-", *model, "--format", "csv", "--top", "1", input=b"\n".join(listed))
    rows = list(csv.DictReader(io.StringIO(run.stdout.decode("utf-8"), newline="")))
    assert [row["path"].encode("utf-8") for row in rows] == [path.replace(b"\xe9", rb"\udce9") for path in listed]


def test_a_top_beyond_the_vocabulary_and_a_threshold_that_nothing_passes(
    model: Arguments, photos: list[Path], tmp_path: Path
) -> None:
    one = tmp_path / "one.txt"
    one.write_text("cat\n")
    (record,) = json.loads(_infer(photos[0], *model, "--labels", one, "--top", "9", "--format", "json").stdout)
    assert [tag["label"] for tag in record["tags"]] == ["cat"]
    records = json.loads(_infer(*photos, *model, "--threshold", "99", "--format", "json").stdout)
    assert [record["tags"] for record in records] == [[]] * len(photos)


def test_tags_are_the_best_scores_best_first(model: Arguments, photos: list[Path]) -> None:
    every = json.loads(_infer(*photos, *model, "--format", "json", "--scores", "all").stdout)
    threshold = float(np.median([score for record in every for score in record["scores"].values()]))
    best = json.loads(_infer(*photos, *model, "--format", "json", "--top", "3", "--threshold", str(threshold)).stdout)
    for all_scores, tags in zip(every, best, strict=True):
        ranked = sorted(all_scores["scores"].items(), key=lambda item: -item[1])
        expected = [(label, score) for label, score in ranked[:3] if score >= threshold]
        assert [tag["label"] for tag in tags["tags"]] == [label for label, _ in expected]
        assert [tag["score"] for tag in tags["tags"]] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_a_terminal_sees_a_progress_bar_and_a_pipe_does_not(model: Arguments, photos: list[Path]) -> None:
    terminal, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    process = subprocess.Popen([*COMMAND, *map(str, [*photos, *model])], stdout=subprocess.PIPE, stderr=child)
    os.close(child)
    shown = b""
    try:
        while block := os.read(terminal, 1 << 16):
            shown += block
    except OSError:  # how Linux reports that the other side has closed
        pass
    output, _ = process.communicate()
    os.close(terminal)
    assert process.returncode == 0
    assert b"100%" in shown
    assert b"4/4" in shown
    assert b"%|" not in output
    assert b"%|" not in _infer(*photos, *model).stderr


def test_files_that_were_skipped_because_of_their_kind_are_counted_at_the_end(
    model: Arguments, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(photos[0].read_bytes())
    for name in ("b.cr2", "c.cr2", "labels.csv", "d.jxl"):
        (tmp_path / name).touch()
    run = _infer(tmp_path, *model, "--format", "jsonl")
    assert len(_records(run.stdout)) == 1
    assert run.stderr.splitlines()[-1] == b"3 files were skipped: 2 .cr2, 1 .jxl"
