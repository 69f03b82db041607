"""Real runs of `sigrl-deploy infer` over real files: broken pictures, interruptions, full disks, closed pipes, odd names."""

from __future__ import annotations

import csv
import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.processes import INFER, infer, on_terminal, records

ODD_NAMES = [b"caf\xe9.jpg", b"new\nline.jpg", b're\rturn, "quoted".jpg', b"\x1b[31mred.jpg", "Ж😀.jpg".encode()]
Arguments = list[str | Path]


def _assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [record["path"] for record in found] == [record["path"] for record in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.get("error") == b.get("error")
        if "scores" in b:
            assert a["scores"] == pytest.approx(b["scores"], abs=1e-5)


def _limit_files(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


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
        text: "is damaged or not a picture",
        bomb: "12000 x 12000 pixels",
        gone: "No such file",
    }
    again = tmp_path / "again.jpg"
    again.write_bytes(cat.read_bytes())
    pictures = [empty, cat, truncated, text, coffee, again, bomb, gone, rocket, astronaut]
    runs = [
        records(infer(*pictures, *model, "--scores", "all", "--format", "jsonl", "--batch-size", str(size), status=1).stdout)
        for size in (1, 3, 16)
    ]
    for found in runs:
        assert [record["path"] for record in found] == [str(picture) for picture in pictures]
        for picture, record in zip(pictures, found, strict=True):
            if picture in broken:
                assert broken[picture] in record["error"]
                assert str(picture) not in record["error"], "the path has a field of its own"
            else:
                assert list(record["scores"])[:4] == ["cat", "dog", "rocket", "cup of coffee"]
        assert found[1]["scores"] == pytest.approx(found[5]["scores"], abs=1e-5)
        _assert_same(found, runs[0])
    alone = records(infer(rocket, *model, "--scores", "all", "--format", "jsonl").stdout)
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
    found = json.loads(infer(tmp_path, *model, "--scores", "all", "--format", "json").stdout)
    assert len(found) == 9
    assert all(np.isfinite(list(record["scores"].values())).all() for record in found)
    upright, turned_upright, *others = found
    assert turned_upright["scores"] == pytest.approx(upright["scores"], abs=1e-5)
    grey = {Path(record["path"]).name: record["scores"] for record in others}
    assert grey["c_16.tif"] == pytest.approx(grey["c_L.png"], abs=1e-5)


def test_a_full_disk_loses_no_record_and_no_older_file(model: Arguments, small: Path, tmp_path: Path) -> None:
    pictures = sorted(small.iterdir())[10:16]
    out = tmp_path / "out.jsonl"
    full = infer(*pictures, *model, "--out", out, status=2, preexec_fn=_limit_files(1000))
    assert b"out.jsonl: cannot be written (File too large)" in full.stderr
    assert b"--resume" in full.stderr
    assert not out.exists()
    infer(*pictures, *model, "--out", out, "--resume")
    assert [record["path"] for record in records(out.read_bytes())] == [str(path) for path in pictures]

    before = out.read_bytes()
    infer(*pictures, *model, "--out", out, "--format", "csv", status=2, preexec_fn=_limit_files(100))
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_standard_output_is_one_line_and_status_2(model: Arguments, photos: list[Path]) -> None:
    with open("/dev/full", "wb") as stdout:
        run = infer(photos[0], *model, status=2, capture_output=False, stdout=stdout, stderr=subprocess.PIPE)
    assert run.stderr.splitlines()[-1].startswith(b"error: standard output cannot be written")


@pytest.mark.parametrize("format_", ["jsonl", "table"])
def test_a_reader_that_goes_away_ends_the_run_without_a_word(model: Arguments, small: Path, format_: str) -> None:
    """JSON lines notice in mid-run, a table of few pictures when its buffer is written at the end."""
    pictures = sorted(small.iterdir())[10:20]
    command = [*INFER, *map(str, [*pictures, *model, "--format", format_])]
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
    run = infer(oddly_named, *model, "--top", "1", status=1, env=plain)
    assert len(run.stdout.splitlines()) == 2 + len(ODD_NAMES)
    for shown in (run.stdout, run.stderr):
        assert shown.isascii()
        assert b"\x1b" not in shown
        assert b"\r" not in shown
    everything = infer(oddly_named, *model, "--top", "1", "--format", "json", status=1, env=plain)
    assert {os.fsencode(Path(record["path"]).name) for record in json.loads(everything.stdout)} >= set(ODD_NAMES)


def test_any_file_name_is_resumed_and_listed(model: Arguments, oddly_named: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    first = sorted(oddly_named.iterdir())[0]
    infer(oddly_named, *model, "--out", out, status=1)
    before = out.read_bytes()
    infer(oddly_named, *model, "--out", out, "--resume", status=1)
    assert out.read_bytes() == before
    assert {os.fsencode(Path(record["path"]).name) for record in records(before)} >= set(ODD_NAMES)
    assert str(first) in {record["path"] for record in records(before)}
    # A list is one path a line, so it holds every name but the one with a line feed in it.
    listed = [os.fsencode(oddly_named) + b"/" + name for name in ODD_NAMES if b"\n" not in name]
    run = infer("-", *model, "--format", "csv", "--top", "1", input=b"\n".join(listed))
    rows = list(csv.DictReader(io.StringIO(run.stdout.decode("utf-8"), newline="")))
    assert [row["path"].encode("utf-8") for row in rows] == [path.replace(b"\xe9", rb"\udce9") for path in listed]


def test_a_top_beyond_the_vocabulary_and_a_threshold_that_nothing_passes(
    model: Arguments, photos: list[Path], tmp_path: Path
) -> None:
    one = tmp_path / "one.txt"
    one.write_text("cat\n")
    (record,) = json.loads(infer(photos[0], *model, "--labels", one, "--top", "9", "--format", "json").stdout)
    assert [tag["label"] for tag in record["tags"]] == ["cat"]
    found = json.loads(infer(*photos, *model, "--threshold", "99", "--format", "json").stdout)
    assert [record["tags"] for record in found] == [[]] * len(photos)


def test_tags_are_the_best_scores_best_first(model: Arguments, photos: list[Path]) -> None:
    every = json.loads(infer(*photos, *model, "--format", "json", "--scores", "all").stdout)
    threshold = float(np.median([score for record in every for score in record["scores"].values()]))
    best = json.loads(infer(*photos, *model, "--format", "json", "--top", "3", "--threshold", str(threshold)).stdout)
    for all_scores, tags in zip(every, best, strict=True):
        ranked = sorted(all_scores["scores"].items(), key=lambda item: -item[1])
        expected = [(label, score) for label, score in ranked[:3] if score >= threshold]
        assert [tag["label"] for tag in tags["tags"]] == [label for label, _ in expected]
        assert [tag["score"] for tag in tags["tags"]] == pytest.approx([score for _, score in expected], abs=1e-5)


def test_a_terminal_sees_a_progress_bar_and_a_pipe_does_not(model: Arguments, photos: list[Path], tmp_path: Path) -> None:
    """Of work that takes more than a second: the same pictures, by many names."""
    pictures = [f"{photo.parent}{'/.' * i}/{photo.name}" for i in range(80) for photo in photos]
    output = tmp_path / "output.txt"
    with output.open("wb") as stdout:
        status, shown = on_terminal([*INFER, *map(str, [*pictures, *model])], stdout=stdout)
    assert status == 0
    assert b"100%" in shown
    assert b"320/320" in shown
    assert b"%|" not in output.read_bytes()
    assert b"%|" not in infer(*pictures, *model).stderr


def test_a_list_of_names_that_end_in_a_null_byte_holds_any_name(model: Arguments, oddly_named: Path) -> None:
    listed = b"".join(os.fsencode(oddly_named) + b"/" + name + b"\0" for name in ODD_NAMES)
    run = infer("-", "-0", *model, "--format", "jsonl", "--top", "1", input=listed)
    assert [os.fsencode(Path(record["path"]).name) for record in records(run.stdout)] == ODD_NAMES
    assert b"--null: is for a list on standard input" in infer(oddly_named, "--null", *model, status=2).stderr


def test_formulas_are_no_formulas_in_a_csv_unless_it_is_for_programs(
    model: Arguments, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "=HYPERLINK(1).jpg").write_bytes(photos[0].read_bytes())
    (tmp_path / "labels.txt").write_text("@SUM(A1)\n" + "\n".join(f"label {i}" for i in range(9)))
    command: Arguments = [
        "=HYPERLINK(1).jpg", *model, "--labels", "labels.txt", "--scores", "all", "--format", "csv"
    ]  # fmt: skip
    for raw, quote in ([], "'"), (["--raw-csv"], ""):
        header, row = csv.reader(io.StringIO(infer(*command, *raw, cwd=tmp_path).stdout.decode(), newline=""))
        assert header[2] == f"{quote}@SUM(A1)"
        assert row[0] == f"{quote}=HYPERLINK(1).jpg"
        assert np.isfinite(list(map(float, row[2:]))).all()
    assert b"--raw-csv: is for --format csv" in infer(photos[0], *model, "--raw-csv", status=2).stderr


def test_quiet_leaves_errors_and_verbose_says_why(model: Arguments, photos: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photos[0].read_bytes()[:3000])
    few = tmp_path / "few.txt"
    few.write_text("cat\ndog\n")
    command: Arguments = [photos[0], broken, *model, "--labels", few, "--format", "jsonl"]
    quiet = infer("-q", *command, status=1)
    assert quiet.stderr.splitlines() == [b"1 picture could not be read or scored; see the errors in the output"]
    before = [sys.executable, "-m", "sigrl_deploy", "--quiet", "infer", *map(str, command)]
    assert subprocess.run(before, capture_output=True).stderr == quiet.stderr
    usual, verbose = infer(*command, status=1), infer("-v", *command, status=1)
    assert quiet.stdout == usual.stdout == verbose.stdout
    assert b"engine: " in usual.stderr
    assert b"truncated" not in usual.stderr
    assert b"broken.jpg: OSError('image file is truncated" in verbose.stderr
    assert b"2 labels ready in" in verbose.stderr
    assert b"2 pictures in" in verbose.stderr


def test_few_labels_are_warned_of_once(model: Arguments, photos: list[Path], tmp_path: Path) -> None:
    few = tmp_path / "few.txt"
    few.write_text("rocket\n")
    warned = infer(*photos, *model, "--labels", few).stderr
    assert warned.count(b"1 label: ") == 1
    assert b"add labels" in warned
    assert b"add labels" not in infer(*photos, *model).stderr


@pytest.mark.parametrize(("options", "expected"), [(["--threads", "3"], 3), ([], 2)])
def test_threads_are_those_asked_for_or_those_of_openmp(
    model: Arguments, photos: list[Path], options: Arguments, expected: int
) -> None:
    run = infer("-v", *photos, *model, *options, env={**os.environ, "OMP_NUM_THREADS": "2"})
    assert f"visual.onnx: CPU, {expected} CPU threads".encode() in run.stderr


def test_files_that_were_skipped_because_of_their_kind_are_counted_at_the_end(
    model: Arguments, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(photos[0].read_bytes())
    for name in ("b.cr2", "c.cr2", "labels.csv", "d.jxl"):
        (tmp_path / name).touch()
    run = infer(tmp_path, *model, "--format", "jsonl")
    assert len(records(run.stdout)) == 1
    assert run.stderr.splitlines()[-1] == b"3 were skipped: 2 .cr2, 1 .jxl"
