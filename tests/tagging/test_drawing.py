"""What a heat map looks like: the picture's own colours, one scale for all labels, captions that can be read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.tagging.captions import caption, wrapped
from sigrl_deploy.tagging.drawing import draw_one, draw_sheet, heat
from sigrl_deploy.tagging.fonts import drawable

SIZE = (480, 360)
BOX = (60.0, 0.0, 420.0, 360.0)
GRID = (6, 6)  # patches of 60 pixels


def _noise(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def _tag(strength: Sequence[Sequence[float]] | NDArray[np.float32], label: str = "cat") -> Prediction:
    return Prediction(label, 0.25, None, np.asarray(strength, np.float32))


def _peak(value: float, grid: tuple[int, int] = GRID) -> NDArray[np.float32]:
    strength = np.zeros(grid, np.float32)
    strength[grid[0] // 2, grid[1] // 2] = value
    return strength


def _heat(picture: Image.Image, tag: Prediction) -> NDArray[np.float64]:
    return np.asarray(heat(picture, BOX, tag), np.float64)


def test_a_place_that_matches_keeps_the_colours_of_the_picture() -> None:
    picture = _noise()
    strength = np.zeros(GRID, np.float32)
    strength[1:4, 1:4] = 1
    drawn, own = _heat(picture, _tag(strength)), np.asarray(picture, np.float64)
    hot = (slice(90, 210), slice(150, 270))  # between the centres of the outer of these patches
    assert np.abs(drawn[hot] - own[hot]).max() <= 1
    for cold in ((slice(0, 360), slice(0, 60)), (slice(300, 360), slice(300, 420))):  # outside the crop, and in it
        assert drawn[cold].mean() < 0.5 * own[cold].mean()
        assert np.ptp(drawn[cold], axis=2).mean() < 0.2 * np.ptp(own[cold], axis=2).mean()
        # What is in the picture can still be seen.
        assert np.corrcoef(drawn[cold].mean(-1).ravel(), own[cold].mean(-1).ravel())[0, 1] > 0.8


def test_the_same_strength_looks_the_same_in_two_heat_maps_and_a_weak_label_looks_weak() -> None:
    picture = _noise()
    values = np.random.default_rng(2).uniform(0, 0.4, GRID).astype(np.float32)
    values[:, 4:] = 0
    strong = values.copy()
    strong[:, 4:] = 1
    weak_map, strong_map = _heat(picture, _tag(values)), _heat(picture, _tag(strong))
    shared = (slice(0, 360), slice(0, 60 + 2 * 60))  # beyond the reach of the patches that differ
    assert np.array_equal(weak_map[shared], strong_map[shared])
    dark = _heat(picture, _tag(np.zeros(GRID)))
    brighter = [np.abs(_heat(picture, _tag(_peak(value))) - dark).sum() for value in (0.1, 0.2, 0.4)]
    assert brighter[1] / brighter[0] == pytest.approx(2, rel=0.05)  # of pixels in whole numbers
    assert brighter[2] / brighter[0] == pytest.approx(4, rel=0.05)


def test_the_outline_is_light_and_dark_and_runs_where_the_strength_is_half() -> None:
    strength = np.tile(np.linspace(0, 1, 6, dtype=np.float32), (6, 1))  # half is between columns 2 and 3, at x = 60 + 180
    for brightness in (0, 255):
        row = _heat(Image.new("RGB", SIZE, (brightness,) * 3), _tag(strength))[180].mean(axis=-1)
        assert row[235:245].max() > 200
        assert row[230:250].min() < 30
        line = np.abs(np.diff(row))
        line[229:251] = 0
        assert line[65:415].max() < 10, "no other edge in the crop"
    weak = _heat(Image.new("RGB", SIZE), _tag(0.49 * strength))
    assert weak.max() == 0
    level = _heat(Image.new("RGB", SIZE), _tag(np.full(GRID, 0.5)))
    assert level.max() == 0


@pytest.mark.parametrize("grid", [(3, 7), (9, 4), (40, 60)])
def test_grids_need_not_be_square(grid: tuple[int, int]) -> None:
    picture = Image.new("RGB", SIZE, (10, 60, 250))
    strength = _peak(1, grid)
    colourful = np.ptp(_heat(picture, _tag(strength)), axis=2)
    y, x = (np.mean(found) + 0.5 for found in np.nonzero(colourful == colourful.max()))
    assert x == pytest.approx(60 + (grid[1] // 2 + 0.5) * 360 / grid[1], abs=2)
    assert y == pytest.approx((grid[0] // 2 + 0.5) * 360 / grid[0], abs=2)


def test_a_crop_may_reach_beyond_the_picture() -> None:
    picture = Image.new("RGB", SIZE, (10, 60, 250))
    strength = np.zeros((10, 10), np.float32)
    strength[4, 7] = 1
    colourful = np.ptp(np.asarray(heat(picture, (-20.0, -120.0, 580.0, 480.0), _tag(strength)), np.float64), axis=2)
    y, x = (np.mean(found) + 0.5 for found in np.nonzero(colourful == colourful.max()))
    assert (x, y) == pytest.approx((-20 + 7.5 * 60, -120 + 4.5 * 60), abs=2)
    own = np.asarray(draw_sheet(picture, (-20.0, -120.0, 580.0, 480.0), "a.jpg", []), np.float64)[15:375, 15:495]
    assert np.abs(own - (10, 60, 250)).max() <= 1, "all of it was seen"


def test_a_sheet_has_the_picture_with_its_crop_and_every_tag() -> None:
    picture = Image.new("RGB", SIZE, (10, 60, 250))
    tags = [_tag(_peak(value), f"tag {value}") for value in (1, 0.8, 0.6, 0.4)]
    sheet = np.asarray(draw_sheet(picture, BOX, "a.jpg", tags), np.float64)
    assert sheet.shape[1] > 2 * SIZE[0]
    own = (np.abs(sheet - (10, 60, 250)).max(axis=2) <= 1).sum()
    assert 0.9 * SIZE[0] * SIZE[1] < own < 1.1 * SIZE[0] * SIZE[1], "the picture, and what is strongest"
    first = sheet[15:375, 15:495]
    for x in (60, 419):  # the crop's edges, light within dark
        across = first[180, x - 8 : x + 9].mean(axis=-1)
        assert across.max() > 240
        assert across.min() < 30
    whole = np.asarray(draw_sheet(picture, (0, 0, *SIZE), "a.jpg", tags), np.float64)[15:375, 15:495]
    assert np.abs(whole - (10, 60, 250)).max() <= 1, "nothing to outline"


@pytest.mark.parametrize("size", [(96, 96), (400, 40), (40, 400), (3000, 2000)])
@pytest.mark.parametrize("tags", [1, 3, 5, 200])
def test_sheets_of_any_picture_and_number_of_tags_have_a_size_to_look_at(size: tuple[int, int], tags: int) -> None:
    sheet = draw_sheet(_noise(size), (0, 0, *size), "a.jpg", [_tag(_peak(1), f"tag {i}") for i in range(tags)])
    assert max(sheet.size) < 4000
    assert max(sheet.size) <= 4 * min(sheet.size)


def test_captions_grow_with_the_picture() -> None:
    heights = []
    for side in (256, 512, 1024):
        drawn = np.asarray(draw_one(_noise((side, side)), (0, 0, side, side), _tag(_peak(1))).convert("L"))
        rows = np.nonzero(drawn[side + side // 32 + 1 :].min(axis=1) < 100)[0]
        heights.append(np.ptp(rows) + 1)
    assert heights[1] == pytest.approx(2 * heights[0], rel=0.2)
    assert heights[2] == pytest.approx(4 * heights[0], rel=0.2)


LONG = ["a rather long label of many words that goes on and on and never seems to come to an end", "x" * 300, "猫" * 200]


@pytest.mark.parametrize("text", ["cat", *LONG])
@pytest.mark.parametrize("width", [1, 60, 300])
def test_long_labels_are_wrapped_then_cut(text: str, width: int) -> None:
    font, text = drawable(text, 14)
    lines = wrapped(text, font, width)
    assert len(lines) <= 2
    assert all(font.getlength(line) <= width for line in lines) or width == 1
    shown = " ".join(lines) if " " in text else "".join(lines)
    assert shown == text or (shown.endswith("…") and text.startswith(shown[:-1].split(" ")[0]))
    assert caption(text, width, 14, "0.25").width == width


def _ink(text: str) -> NDArray[np.uint8]:
    return np.asarray(caption(text, 400, 20))


@pytest.mark.parametrize(("text", "other"), [("čeština", "cestina"), ("Ж", "Щ"), ("αβγ", "αβδ"), ("猫", "犬")])
def test_letters_beyond_ascii_are_drawn_where_a_font_has_them(text: str, other: str) -> None:
    _, shown = drawable(text, 20)
    if shown != text:
        pytest.skip("this system has no font with these letters")
    assert not np.array_equal(_ink(text), _ink(other))
    escaped = text.encode("ascii", "backslashreplace").decode("ascii")
    assert (_ink(text) < 128).sum() < (_ink(escaped) < 128).sum()


def test_letters_that_no_font_has_are_escaped() -> None:
    unassigned = "\U000e0fff"
    assert not unassigned.isprintable()
    for text, expected in ((f"a{unassigned}b", "a\\U000e0fffb"), ("a\nb", "a\\nb"), ("a\udce9b", "a\\udce9b")):
        assert drawable(text, 20)[1] == expected
    assert drawable("cat", 20)[1] == "cat"
    hieroglyph = "\U00013000"
    assert drawable(f"cat {hieroglyph}", 20)[1] in (f"cat {hieroglyph}", "cat \\U00013000")
