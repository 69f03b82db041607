"""Heat maps: drawn at the right place of the right picture, under names that cannot clash, by runs that lose nothing else."""

from __future__ import annotations

import itertools
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from sigrl_deploy import Recognizer
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import Manifest
from sigrl_deploy.config import Arch
from sigrl_deploy.errors import UsageError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.recognizer.predictions import Prediction, Record
from sigrl_deploy.tagging.heatmaps import heatmap_name, is_heatmap_name, sheet_name, write_heatmaps
from sigrl_deploy.tagging.output import Shown, as_json

SIZES = [(500, 375), (375, 500), (301, 777), (777, 301), (97, 96), (81, 80), (640, 639)]
CONTRACTS = ["zero-shot", "single-positive", "clip"]
# Says at exit whether torch came in on the way.
SCRIPT = """
import atexit, sys
atexit.register(lambda: "torch" in sys.modules and print("torch was imported", file=sys.stderr))
from sigrl_deploy.cli.main import main
main()
"""


def _infer(*arguments: str | Path, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", SCRIPT, "infer", *map(str, arguments), "--device", "cpu"]
    run = subprocess.run(command, capture_output=True, text=True, **options)
    assert run.returncode == status, run.stderr
    assert "Traceback" not in run.stderr
    assert "torch was imported" not in run.stderr
    return run


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Manifest:
    return Bundle(bundle).manifest


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("image_size", [80, 225])
def test_source_box_says_where_the_pixels_come_from(contract: str, size: tuple[int, int], image_size: int) -> None:
    """White blocks at known places of a black picture, found again by their centroids in what the model is given."""
    width, height = size
    preprocess = msgspec.structs.replace(Preprocess.for_contract(contract, image_size), mean=(0.0,) * 3, std=(1.0,) * 3)
    left, top, right, bottom = preprocess.source_box(width, height, image_size)
    assert -1e-9 <= left < right <= width + 1e-9
    assert -1e-9 <= top < bottom <= height + 1e-9
    side = min(width, height) // 5
    for x, y in itertools.product((0.3, 0.6), repeat=2):
        x0, y0 = (int(low + share * (high - low)) - side // 2 for share, low, high in ((x, left, right), (y, top, bottom)))
        picture = Image.new("RGB", size)
        picture.paste("white", (x0, y0, x0 + side, y0 + side))
        weights = preprocess(picture).mean(axis=0)
        at = np.arange(image_size) + 0.5
        found = (weights.sum(axis=0) @ at / weights.sum(), weights.sum(axis=1) @ at / weights.sum())
        expected = (
            (x0 + side / 2 - left) / (right - left) * image_size,
            (y0 + side / 2 - top) / (bottom - top) * image_size,
        )
        # Clipped ringing and 8-bit edges move a centroid by a tenth of a pixel; a crop one pixel off would move it by one.
        assert found == pytest.approx(expected, abs=0.3)


def _synthetic(path: Path, row: int, column: int, grid: tuple[int, int], label: str = "cat") -> Record:
    strength = np.random.default_rng(0).uniform(0, 0.3, grid).astype(np.float32)
    strength[row, column] = 0.9
    return Record(str(path), (Prediction(label, 0.25, strength, strength),), np.zeros(1, np.float32))


def _draw(record: Record, folder: Path, manifest: Manifest) -> Image.Image:
    folder.mkdir(exist_ok=True)
    drawn = write_heatmaps(record, folder, manifest, per_tag=True)
    assert drawn.sheet is None
    (path,) = drawn.tags or ()
    assert path is not None
    with Image.open(path) as image:
        return image.convert("RGB")


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (901, 301), (96, 96), (2500, 3001)])
@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("image_size", [80, 88], ids=["", "with 8 pixels that no patch covers"])
def test_the_most_coloured_place_is_the_strongest_patch(
    manifest: Manifest, contract: str, size: tuple[int, int], image_size: int, tmp_path: Path
) -> None:
    manifest = msgspec.structs.replace(
        manifest, image_size=image_size, preprocess=Preprocess.for_contract(contract, image_size)
    )
    path = tmp_path / "blue.png"
    Image.new("RGB", size, (10, 60, 250)).save(path)
    scale = min(max(1, 256 / max(size)), 1024 / max(size))
    drawn_size = [round(side * scale) for side in size]
    for row, column in ((1, 3), (3, 1)):
        drawn = _draw(_synthetic(path, row, column, manifest.grid), tmp_path / "out", manifest)
        left, top = (drawn.width - drawn_size[0]) // 2, max(drawn_size) // 32
        pixels = np.asarray(drawn, np.float64)[top : top + drawn_size[1], left : left + drawn_size[0]]
        colourful = np.ptp(pixels, axis=2)
        y, x = (np.mean(found) + 0.5 for found in np.nonzero(colourful == colourful.max()))
        # The patch's centre in pixels of the crop, then of the resized picture, then of the picture, by the contract's words.
        patch = np.array([column * 16 + 8, row * 16 + 8])
        if contract == "single-positive":
            expected = patch / image_size * size
        else:
            short = image_size if contract == "clip" else int(image_size / 0.875)
            resized = np.array(size) * short / min(size)
            expected = ((resized - image_size) / 2 + patch) / resized * size
        # The contract cuts the resized picture's longer side and its crop's corner to whole pixels: one pixel of the resized
        # picture, a sixteenth of a patch; and one of the drawn picture for the same, and for colours in whole numbers.
        assert (x, y) == pytest.approx(tuple(expected * scale), abs=min(size) * scale / image_size + 2)
        assert colourful[0, 0] < colourful.max() / 2


def test_small_pictures_grow_and_large_ones_shrink(manifest: Manifest, tmp_path: Path) -> None:
    for size, (width, height) in {(96, 96): (256, 256), (96, 64): (256, 171), (3000, 1234): (1024, 421)}.items():
        path = tmp_path / "a.png"
        Image.new("RGB", size).save(path)
        drawn = _draw(_synthetic(path, 0, 0, manifest.grid), tmp_path / "out", manifest)
        assert width <= drawn.width < 1.1 * width
        assert height < drawn.height < height + 0.2 * width


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (2, 999)])
def test_slivers_and_strength_that_is_the_same_everywhere_are_drawn(
    manifest: Manifest, size: tuple[int, int], tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", size).save(path)
    for contract in ("single-positive", "clip") if max(size) > 1000 else CONTRACTS:
        varied = msgspec.structs.replace(manifest, preprocess=Preprocess.for_contract(contract, 80))
        for value in (0, 1):
            flat = np.full(manifest.grid, value, np.float32)
            record = Record(str(path), (Prediction("cat", 0.1, flat, flat),), np.zeros(1, np.float32))
            assert max(_draw(record, tmp_path / "out", varied).size) <= 1200
            assert write_heatmaps(record, tmp_path / "out", varied).sheet is not None


def test_a_turned_photograph_is_drawn_upright(manifest: Manifest, photos: list[Path], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photos[1]) as photo:
        photo.save(tmp_path / "upright.png")
        photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    upright, turned = (
        _draw(_synthetic(tmp_path / f"{name}.png", 0, 4, manifest.grid), tmp_path / "out", manifest)
        for name in ("upright", "turned")
    )
    assert np.array_equal(upright, turned)


LABELS = ["cat", "Cat", "CAT", "a/b", "a\\b", "a b", "a-b", "a--b", "..", "../..", ".", "", "con", "nul.", "café", "cafe"]
LABELS += ["cafe\u0301", "猫", "犬", "😀", "x" * 500, "x" * 501, "-", " ", "\n", "a\0b", "*?<>|:", "cat_0123456789ab", "a.png"]
PATHS = ["cat.jpg", "Cat.jpg", "cat.png", "a/cat.jpg", "b/cat.jpg", "b/../cat.jpg", "/cat.jpg", "caf\udce9.jpg", "猫.jpg"]
PATHS += ["犬.jpg", ".jpg", "y" * 250 + ".jpg", "cat--dog.jpg", "-rf.jpg", "new\nline.jpg"]


def test_names_of_any_pictures_and_labels_differ_everywhere_and_stay_in_the_folder() -> None:
    names = [heatmap_name(path, label) for path in PATHS for label in LABELS] + [sheet_name(path) for path in PATHS]
    assert len({name.lower() for name in names}) == len(PATHS) * (len(LABELS) + 1)
    for name in names:
        assert name == Path(name).name
        assert name.isascii()
        assert name.isprintable()
        assert not set(name) & set('\\:*?"<>| ')
        assert len(f".{name}.0123456789ab.tmp") <= 143, "the shortest limit in use, that of encrypted home folders"
        assert is_heatmap_name(name)
    assert heatmap_name("photos/rocket 1.jpg", "rocket").startswith("rocket-1_")
    assert heatmap_name("photos/rocket 1.jpg", "rocket").endswith("--rocket.png")
    assert sheet_name("photos/rocket 1.jpg").startswith("rocket-1_")
    with_time = "screenshot_202611271530.png"  # twelve digits, as many as a digest has
    for name in ("cat.jpg", "cat--dog.png", "0123456789ab--cat.png", "cat_0123456789ab--cat.jpg", "a.heatmaps.png", with_time):
        assert not is_heatmap_name(name)


@pytest.mark.parametrize("label", LABELS)
def test_any_label_is_drawn(manifest: Manifest, photos: list[Path], label: str, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    _draw(_synthetic(photos[0], 0, 0, manifest.grid, label), out, manifest)
    assert _names(out) == [heatmap_name(str(photos[0]), label)]
    assert _names(tmp_path) == ["deep"]


def test_batches_carry_the_evidence_that_single_pictures_have(bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    recognizer = Recognizer(bundle, device="cpu")
    vocabulary = recognizer.vocabulary(["cat", "rocket", "person", "cup of coffee"])
    paths = [str(photos[0]), str(tmp_path / "gone.jpg"), *map(str, photos[1:])]
    records = list(recognizer.stream(paths, vocabulary, batch_size=3, top=2, evidence=True))
    alone = iter(recognizer.recognize(photos, vocabulary, top=2, evidence=True))
    assert [record.error is None for record in records] == [True, False, True, True, True]
    for record in records:
        if record.error is None:
            for tag, expected in zip(record.predictions, next(alone), strict=True):
                assert tag.label == expected.label
                assert tag.evidence is not None
                assert expected.evidence is not None
                # Values of several hundred, in fp32.
                assert np.allclose(tag.evidence, expected.evidence, atol=1e-3)
    plain = next(recognizer.stream(paths, vocabulary, top=2))
    assert [tag.evidence for tag in plain.predictions] == [None, None]


def _tagged(bundle: Path, photo: Path, copy: Path) -> Record:
    """The record of a copy of a photo, with what heat maps are drawn of."""
    (record,) = Recognizer(bundle, device="cpu").stream([shutil.copy(photo, copy)], ["cat", "dog", "cup"], top=2, evidence=True)
    return record


def test_a_picture_that_vanishes_before_it_is_drawn_is_a_log_line(
    bundle: Path, manifest: Manifest, photos: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = _tagged(bundle, photos[0], tmp_path / "a.jpg")
    picture = Path(record.path)
    picture.unlink()
    caplog.clear()
    for per_tag in (False, True):
        drawn = write_heatmaps(record, tmp_path, manifest, per_tag)
        written = as_json(record, Shown([]), drawn)
        files = [tag["heatmap"] for tag in written["tags"]] if per_tag else [written["heatmap"]]
        assert files == [None] * len(files)
        (message,) = caplog.messages
        assert message.startswith(f"no heat map: {picture}: cannot be opened (No such file")
        caplog.clear()
    assert _names(tmp_path) == []


def test_a_picture_that_has_become_another_is_not_drawn(
    bundle: Path, manifest: Manifest, photos: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The part that the model saw could be a thousand times as large as a smaller picture in its place."""
    record = _tagged(bundle, photos[0], tmp_path / "a.jpg")
    picture = Path(record.path)
    Image.new("RGB", (2, 1)).save(picture)
    caplog.clear()
    assert write_heatmaps(record, tmp_path, manifest).sheet is None
    assert caplog.messages == [f"no heat map: {picture}: has changed since it was tagged"]
    assert _names(tmp_path) == ["a.jpg"]


@pytest.fixture
def pictures(photos: list[Path], tmp_path: Path) -> Path:
    """Two pictures of one name in different folders, and a broken one between them."""
    for name, photo in (("a/same.jpg", photos[0]), ("c/same.jpg", photos[1])):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        shutil.copy(photo, tmp_path / "in" / name)
    (tmp_path / "in" / "b.jpg").write_bytes(b"broken")
    (tmp_path / "labels.txt").write_text("cat\nCup of coffee\n../../猫\nperson\n", encoding="utf-8")
    return tmp_path / "in"


def test_a_run_draws_each_picture_and_changes_no_score(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    command: list[str | Path] = [pictures, "--bundle", bundle, "--labels", tmp_path / "labels.txt", "--top", "3"]
    out, maps = tmp_path / "tags.jsonl", tmp_path / "in" / "new" / "maps"
    plain = [json.loads(line) for line in _infer(*command, "--format", "jsonl", status=1).stdout.splitlines()]
    resumable = [*command, "--out", out, "--heatmaps", maps, "--resume"]
    _infer(*resumable, status=1)
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [record["path"] for record in records] == [record["path"] for record in plain]
    assert records[0]["run"] != plain[0]["run"]
    for record, expected in zip(records, plain, strict=True):
        assert record.get("error") == expected.get("error")
        tags, expected_tags = record.get("tags", []), expected.get("tags", [])
        assert [tag["label"] for tag in tags] == [tag["label"] for tag in expected_tags]
        # fp32 scores within ±1, of one graph run twice.
        assert [tag["score"] for tag in tags] == pytest.approx([tag["score"] for tag in expected_tags], abs=1e-5)
    drawn = [sheet_name(record["path"]) for record in records if "tags" in record]
    assert [record["heatmap"] for record in records if "tags" in record] == [str(maps / name) for name in drawn]
    assert "heatmap" not in json.dumps(plain)
    assert len(drawn) == 2
    assert _names(maps) == sorted(drawn)
    assert _names(tmp_path) == ["in", "labels.txt", "tags.jsonl"]

    # The folder lies among the pictures: what is in it now is neither tagged by a run that goes on nor drawn again.
    before = {path: (path.stat().st_ino, path.read_bytes()) for path in maps.iterdir()}
    again = _infer(*resumable, status=1)
    assert "2 heat maps of an earlier run are left out" in again.stderr
    assert {path: (path.stat().st_ino, path.read_bytes()) for path in maps.iterdir()} == before
    assert [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] == records
    for other in (["--heatmaps", tmp_path / "other"], ["--heatmaps", maps, "--heatmap-per-tag"]):
        refused = _infer(*resumable[:-3], *other, "--resume", status=2)
        assert "was written with other options" in refused.stderr

    # Nor by a run that draws none.
    plain_again = _infer(*command, "--format", "jsonl", status=1)
    assert [json.loads(line) for line in plain_again.stdout.splitlines()] == plain

    # A fresh run replaces them.
    _infer(*command, "--heatmaps", maps, status=1)
    assert _names(maps) == sorted(drawn)
    assert all(path.stat().st_ino != before[path][0] for path in maps.iterdir())


def test_a_run_draws_each_tag_where_it_is_asked_to(bundle: Path, pictures: Path, tmp_path: Path) -> None:
    maps = pictures / "maps"
    command = [pictures, "--bundle", bundle, "--labels", tmp_path / "labels.txt", "--top", "30"]
    command += ["--format", "json", "--heatmaps", maps]
    advice = "heat maps show the 23 best tags of a picture; --heatmap-per-tag draws all"
    assert advice in _infer(*command, status=1).stderr
    shutil.rmtree(maps)
    command.append("--heatmap-per-tag")
    for _ in range(2):  # the second finds the maps of the first among the pictures
        run = _infer(*command, status=1)
        assert advice not in run.stderr
        records = json.loads(run.stdout)
        drawn = {(record["path"], tag["label"]): tag["heatmap"] for record in records for tag in record.get("tags", [])}
        assert len(drawn) == 2 * 4
        assert drawn == {(path, label): str(maps / heatmap_name(path, label)) for path, label in drawn}
        assert _names(maps) == sorted(Path(file).name for file in drawn.values())
        assert not any("heatmap" in record for record in records)


def _limit_files(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_is_one_line_and_leaves_no_half_picture(bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    maps, labels = tmp_path / "maps", tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    run = _infer(photos[0], "--bundle", bundle, "--labels", labels, "--heatmaps", maps, status=2, preexec_fn=_limit_files(9000))
    assert run.stderr.splitlines()[-1].startswith(f"error: --heatmaps {maps}: cannot be written (File too large)")
    assert _names(maps) == []


def test_what_cannot_be_done_is_refused_before_any_picture(
    bundle: Path, weights: Path, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("older")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    # Without patches to match, and with labels of its own, since a second text tower takes long to export.
    whole = tmp_path / "clip-ft"
    torch.save(torch.eye(2, 512), tmp_path / "embeddings.pt")
    export_bundle(
        ExportOptions(
            weights / "sigrl.pth",
            whole,
            arch=Arch.CLIP_FT,
            labels=tmp_path / "labels.txt",
            label_embeddings=tmp_path / "embeddings.pt",
        )
    )
    for model, options, said in (
        (bundle, ["--heatmaps", "file"], "--heatmaps file: is not a folder; choose another name"),
        (bundle, ["--heatmaps", "file/maps"], "--heatmaps file/maps: cannot be written (Not a directory)"),
        (bundle, ["--heatmap-per-tag"], "--heatmap-per-tag: says how heat maps are drawn; give --heatmaps too"),
        (bundle, ["--heatmaps", "maps", "--scores", "all"], "--scores all: heat maps are drawn for the best labels only"),
        (whole, ["--heatmaps", "maps"], "--heatmaps: a bundle of arch clip-ft scores whole pictures"),
    ):
        before = _names(tmp_path)
        run = _infer(photos[0], "--bundle", model, "--labels", "labels.txt", *options, status=2, cwd=tmp_path)
        assert run.stdout == ""
        (line,) = [line for line in run.stderr.splitlines() if not line.startswith("engine: ")]
        assert line.startswith(f"error: {said}")
        assert _names(tmp_path) == before
    assert (tmp_path / "file").read_text() == "older"
    recognizer = Recognizer(whole, device="cpu")
    for use in (recognizer.stream, recognizer.recognize):
        with pytest.raises(UsageError) as raised:
            use(photos[:1], ["cat", "dog"], evidence=True)
        assert raised.value.argument == "evidence"
