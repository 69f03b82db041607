"""Pictures far from square: what a recognizer finds in all of them, tile by tile or in one, and what it refuses."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sigrl_deploy import Recognizer
from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.config import Crop
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import ScoreError
from sigrl_deploy.pictures.crops import Layout
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.recognizer.tiles import best_scores, joined
from sigrl_deploy.vocabulary.vocabulary import Vocabulary
from tests.support.changed_bundles import edit_manifest
from tests.support.picture_files import scene
from tests.support.refusals import refused

TOLERANCE = 1e-5  # fp32 scores within ±1, of one graph run in another order
LABELS = ["cat", "cup", "rocket", "sky", "tree", "person", "boat", "house", "bird", "table"]
# Of an 80-pixel model that resizes the short side to 91: one, two, three and sixteen tiles, upright and lying.
SIZES = [(120, 120), (190, 140), (100, 240), (300, 120), (1000, 80)]


@pytest.fixture(scope="module")
def recognizers(bundle: Path) -> dict[str, Recognizer]:
    return {crop.value: Recognizer(bundle, device="cpu", crop=crop) for crop in Crop}


@pytest.fixture(scope="module")
def pictures(photos: list[Path]) -> list[Image.Image]:
    """A different part of a photograph each."""
    photo = read_image(photos[0])
    return [photo.crop((i, i, i + 200, i + 200)).resize(size) for i, size in enumerate(SIZES)]


def _cut_by_hand(picture: Image.Image) -> list[np.ndarray]:
    """The tiles, cut in Pillow from the words of the documents: short side 91, of which 80; the long side, evenly and whole."""
    long = int(91 * max(picture.size) / min(picture.size))
    wide = picture.width > picture.height
    resized = picture.resize((long, 91) if wide else (91, long), Image.Resampling.BICUBIC)
    gaps = -(-(long - 80) // 80)
    offsets = [-(-((long - 80) * i / gaps) // 16) * 16 for i in range(gaps)] + [long - 80]
    corners = [(int(at), 6) if wide else (6, int(at)) for at in offsets]
    return [np.asarray(resized.crop((x, y, x + 80, y + 80))) for x, y in corners]


def test_the_scores_of_a_picture_are_the_largest_of_its_tiles(
    recognizers: dict[str, Recognizer], pictures: list[Image.Image]
) -> None:
    scores = recognizers["tiles"].scores(pictures, LABELS)
    counts = []
    for picture, row in zip(pictures[1:], scores[1:], strict=True):
        cut = _cut_by_hand(picture)
        mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
        pixels = ((np.stack(cut) / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
        centre = recognizers["centre"]
        alone = np.concatenate([centre.score_pixels(tile[None], centre.vocabulary(LABELS)) for tile in pixels])
        np.testing.assert_allclose(row, alone.max(axis=0), atol=TOLERANCE)
        counts.append(len(cut))
    assert counts == [2, 3, 3, 15]


def test_a_square_picture_has_the_contract_s_scores_to_the_bit(
    recognizers: dict[str, Recognizer], pictures: list[Image.Image]
) -> None:
    centre, tiles = (
        recognizers[crop].recognize(pictures[:1], LABELS, top=10, evidence=True)[0] for crop in ("centre", "tiles")
    )
    assert centre == tiles
    assert [tag.evidence.tobytes() for tag in centre] == [tag.evidence.tobytes() for tag in tiles]  # type: ignore[union-attr]
    scores = [recognizers[crop].scores(pictures[:1], LABELS).tobytes() for crop in ("centre", "tiles")]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("crop", ["pad", "tiles"])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 7])
def test_a_result_depends_neither_on_the_batch_nor_on_its_neighbours(
    recognizers: dict[str, Recognizer], pictures: list[Image.Image], crop: str, batch_size: int, tmp_path: Path
) -> None:
    recognizer = recognizers[crop]
    paths: list[Path] = []
    for i, picture in enumerate(pictures):
        paths += [tmp_path / f"{i}.png", tmp_path / f"{i} is missing.png"]
        picture.save(paths[-2])
    alone = [recognizer.recognize([picture], LABELS, evidence=True, top=10)[0] for picture in pictures]
    rows = np.concatenate([recognizer.scores([picture], LABELS) for picture in pictures])
    np.testing.assert_allclose(recognizer.scores(pictures, LABELS, batch_size=batch_size), rows, atol=TOLERANCE)
    for evidence in (False, True):
        ask = {"top": 10, "batch_size": batch_size, "evidence": evidence}
        records = list(recognizer.stream(paths, LABELS, **ask))  # type: ignore[arg-type]
        assert [record.path for record in records] == list(map(str, paths))
        assert [record.error is None for record in records] == [True, False] * len(pictures)
        found = recognizer.recognize(pictures, LABELS, **ask)  # type: ignore[arg-type]
        for expected, ours, record, row in zip(alone, found, records[::2], rows, strict=True):
            np.testing.assert_allclose(record.scores, row, atol=TOLERANCE)
            for tags in (ours, record.predictions):
                assert {tag.label for tag in tags} == set(LABELS)
                for tag in tags:
                    (same,) = (other for other in expected if other.label == tag.label)
                    assert tag.score == pytest.approx(same.score, abs=TOLERANCE)
                    if evidence:
                        # Values of several hundred, in fp32.
                        np.testing.assert_allclose(tag.evidence, same.evidence, atol=1e-3)


def test_no_more_tiles_than_a_batch_holds_are_run_at_once(bundle: Path, pictures: list[Image.Image]) -> None:
    recognizer = Recognizer(bundle, device="cpu", crop="tiles", threads=2)
    sizes: list[int] = []
    encode = recognizer.engine.encode

    def counted(pixels: Pixels, vocabulary: Vocabulary) -> tuple[FloatArray | None, FloatArray]:
        sizes.append(len(pixels))
        return encode(pixels, vocabulary)

    recognizer.engine.encode = counted  # type: ignore[method-assign]
    uses: list[Callable[[], object]] = [
        lambda: recognizer.scores(pictures, LABELS, batch_size=4),
        lambda: recognizer.recognize(pictures, LABELS, batch_size=4),
        lambda: recognizer.recognize(pictures, LABELS, batch_size=4, evidence=True),
    ]
    for use in uses:
        sizes.clear()
        use()
        assert sum(sizes) == 1 + 2 + 3 + 3 + 15
        assert max(sizes) == 4


def test_evidence_is_about_the_part_that_a_record_says(
    recognizers: dict[str, Recognizer], pictures: list[Image.Image], tmp_path: Path
) -> None:
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
        for crop, recognizer in recognizers.items():
            (record,) = recognizer.stream([tmp_path / f"{i}.png"], LABELS, evidence=True, top=1)
            left, top, right, bottom = record.seen or (0, 0, 0, 0)
            evidence = record.predictions[0].evidence
            assert evidence is not None
            # Patches are square on the picture, but for the rounding of its resized size and of tiles to patches.
            width, height = (right - left) / evidence.shape[1], (bottom - top) / evidence.shape[0]
            assert width == pytest.approx(height, rel=0.1)
            if crop == "centre":
                assert right - left == pytest.approx(min(picture.size) * 80 / 91, rel=0.01)
            elif i:
                long = slice(0, None, 2) if picture.width > picture.height else slice(1, None, 2)
                assert record.seen[long] == pytest.approx((0, max(picture.size)), abs=1e-6)  # type: ignore[index]
    (failed,) = recognizers["pad"].stream([tmp_path / "missing.png"], LABELS)
    assert failed.seen is None


@pytest.mark.parametrize("crop", ["pad", "tiles"])
def test_what_stands_at_an_end_is_seen_there_and_nowhere_by_the_centre(recognizers: dict[str, Recognizer], crop: str) -> None:
    """A block at the far left changes the evidence at the left of the grid most, and nothing of the contract's crop."""
    plain = scene(480, 160)
    marked = plain.copy()
    marked.paste("white", (10, 40, 90, 120))
    before, after = (recognizers["centre"].scores([picture], LABELS) for picture in (plain, marked))
    assert before.tobytes() == after.tobytes()
    # The patches of one picture mix in the encoder, so every patch changes, but those by the block most.
    (one,), (two,) = (recognizers[crop].recognize([p], LABELS, top=10, evidence=True) for p in (plain, marked))
    evidence = [{tag.label: tag.evidence for tag in tags} for tags in (one, two)]
    change = np.mean([np.abs(evidence[0][label] - evidence[1][label]) for label in LABELS], axis=(0, 1))  # type: ignore[operator]
    assert change.argmax() + 0.5 < len(change) * 180 / 480


def test_a_contract_that_shows_the_whole_picture_and_a_device_that_crops_take_no_other_crop(
    bundle: Path, tmp_path: Path
) -> None:
    squashed = Path(shutil.copytree(bundle, tmp_path / "squashed"))
    edit_manifest(squashed, preprocess=Preprocess.for_contract("single-positive", 80).to_plain())
    on_device = EngineOptions(device_preprocess=True)
    for crop in ("pad", "tiles"):
        assert refused(lambda crop=crop: Recognizer(squashed, device="cpu", crop=crop)) == ("crop", Crop(crop))
        assert refused(lambda crop=crop: Recognizer(bundle, crop=crop, options=on_device)) == ("crop", Crop(crop))
    assert Recognizer(squashed, device="cpu", crop="centre").crop is Crop.CENTRE
    assert refused(lambda: Recognizer(bundle, crop="center")) == ("crop", "center")


def test_a_tile_whose_scores_are_not_finite_spoils_its_picture(bundle: Path, pictures: list[Image.Image]) -> None:
    rows = [np.array(row, np.float32) for row in ([0.5, -np.inf], [0.25, 0.125])]
    assert np.isnan(best_scores(rows)).tolist() == [False, True]
    recognizer = Recognizer(bundle, device="cpu", crop="tiles")
    score = recognizer.engine.score_batches
    taken = 0

    def spoilt(batches: Iterable[Pixels], vocabulary: Vocabulary) -> Iterator[FloatArray]:
        nonlocal taken
        for scores in score(batches, vocabulary):
            taken += 1
            yield np.full_like(scores, np.nan) if taken == 3 else scores

    recognizer.engine.score_batches = spoilt  # type: ignore[method-assign]
    with pytest.raises(ScoreError) as raised:
        recognizer.scores(pictures, LABELS, batch_size=1)
    assert raised.value.picture == 1  # the second has the second and the third tile


def test_where_tiles_overlap_the_larger_value_stays() -> None:
    layout = Layout((0, 0, 1, 1), (2, 3), (slice(0, 2), slice(0, 2)), ((0, 0), (0, 1)))
    windows = np.array([[[1, 5], [2, -4]], [[3, 6], [-1, 7]]], np.float32)
    assert joined(layout, windows).tolist() == [[1, 5, 6], [2, -1, 7]]
