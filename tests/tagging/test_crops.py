"""Runs with another crop: what is written of it, where heat maps lie, and that no run mixes two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.config import Crop
from sigrl_deploy.pictures.crops import Views
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.recognizer.predictions import Prediction, Record
from sigrl_deploy.tagging.heatmaps import write_heatmaps
from tests.support.changed_bundles import edit_manifest
from tests.support.picture_files import scene
from tests.support.processes import infer, records

Arguments = list[str | Path]


def test_a_record_says_the_crop_and_no_run_goes_on_with_another(model: Arguments, photos: list[Path], tmp_path: Path) -> None:
    out, wide, endless = tmp_path / "out.jsonl", tmp_path / "wide.png", tmp_path / "x.png"
    scene(300, 100).save(wide)
    scene(2500, 100).save(endless)
    command: Arguments = [photos[0], wide, *model, "--out", out, "--resume"]
    infer(*command[:-1], endless, "--crop", "tiles", status=1)
    before = out.read_bytes()
    *tagged, failed = records(before)
    assert [record["crop"] for record in tagged] == ["tiles", "tiles"]
    assert list(tagged[0]) == ["path", "crop", "tags", "run"]
    assert failed["error"].startswith("picture of 2500 x 100 pixels: takes 29 tiles, expected 16 at most; crop it")
    for other in (["--crop", "pad"], []):
        refused = infer(*command, *other, status=2)
        assert b"was written with another backend, precision, preprocessing or crop;" in refused.stderr
        assert out.read_bytes() == before
    plain = json.loads(infer(wide, *model, "--format", "json").stdout)
    assert list(plain[0]) == ["path", "tags"]
    padded = json.loads(infer(wide, *model, "--format", "json", "--crop", "pad", "--scores", "all").stdout)
    assert list(padded[0]) == ["path", "crop", "scores"]
    assert padded[0]["crop"] == "pad"


def test_a_crop_that_cannot_be_made_is_one_line(
    bundle: Path, model: Arguments, photos: list[Path], labels: Path, tmp_path: Path
) -> None:
    squashed = Path(shutil.copytree(bundle, tmp_path / "squashed"))
    edit_manifest(squashed, preprocess=Preprocess.for_contract("single-positive", 80).to_plain())
    other: Arguments = ["--bundle", squashed, "--labels", labels, "--device", "cpu"]
    for given, said in (
        (
            [*other, "--crop", "pad"],
            "--crop pad: the bundle's preprocessing, single-positive, shows the model the whole picture",
        ),
        (
            [*model, "--crop", "tiles", "--device-preprocess"],
            "--crop tiles: is made in Pillow only; leave out --device-preproc",
        ),
    ):
        run = infer(photos[0], *given, status=2)
        assert run.stdout == b""
        (line,) = run.stderr.decode().splitlines()
        assert line.startswith(f"error: {said}")


@pytest.mark.parametrize("size", [(900, 300), (300, 900), (700, 500)])
@pytest.mark.parametrize("crop", ["pad", "tiles"])
def test_the_most_coloured_place_is_the_strongest_patch(bundle: Path, size: tuple[int, int], crop: str, tmp_path: Path) -> None:
    manifest = Bundle(bundle).manifest
    picture = Image.new("RGB", size, (10, 60, 250))
    picture.save(tmp_path / "blue.png")
    layout = Views(manifest.preprocess, manifest.patch_size, Crop(crop), manifest.preprocess, uint8=False)(picture).layout
    (rows, columns), (left, top, right, bottom) = layout.shape, layout.seen
    for row, column in ((0, columns - 1), (rows - 1, 0)):
        strength = np.zeros(layout.shape, np.float32)
        strength[row, column] = 1
        record = Record(str(tmp_path / "blue.png"), (Prediction("cat", 0.25, strength, strength),), seen=layout.seen)
        (path,) = write_heatmaps(record, tmp_path, manifest, per_tag=True).tags or ()
        assert path is not None
        with Image.open(path) as drawn:
            margin = (drawn.width - size[0]) // 2, max(size) // 32
            pixels = np.asarray(drawn.convert("RGB"), np.float64)[
                margin[1] : margin[1] + size[1], margin[0] : margin[0] + size[0]
            ]
        colourful = np.ptp(pixels, axis=2)
        expected = left + (column + 0.5) / columns * (right - left), top + (row + 0.5) / rows * (bottom - top)
        y, x = (np.mean(found) + 0.5 for found in np.nonzero(colourful == colourful.max()))
        # Half a patch: of one that reaches beyond the picture only a part is drawn.
        assert x == pytest.approx(expected[0], abs=(right - left) / columns / 2 + 1)
        assert y == pytest.approx(expected[1], abs=(bottom - top) / rows / 2 + 1)
