"""What each crop shows of pictures far from square: all of it, at the place that the layout says."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from sigrl_deploy.config import Crop
from sigrl_deploy.errors import ImageError
from sigrl_deploy.pictures.crops import MOST_TILES, View, Views, tile_offsets
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.recognizer.tiles import joined
from tests.support.picture_files import scene

SIZES = [(500, 375), (375, 500), (301, 777), (777, 301), (97, 96), (81, 80), (640, 639), (1050, 90), (64, 640)]
CONTRACTS = ["zero-shot", "clip"]
# Image sizes and patches; of the last, 8 pixels of each tile lie in no patch.
MODELS = [(80, 16), (224, 16), (225, 25), (88, 16)]

contracts = pytest.mark.parametrize("contract", CONTRACTS)
models = pytest.mark.parametrize(("side", "patch"), MODELS)
sizes = pytest.mark.parametrize("size", SIZES)


def _views(contract: str, side: int, patch: int, crop: str, *, plain: bool = False, uint8: bool = False) -> Views:
    preprocess = Preprocess.for_contract(contract, side)
    if plain:  # brightness as it is, and black around a padded picture
        preprocess = msgspec.structs.replace(preprocess, mean=(0.0,) * 3, std=(1.0,) * 3)
    return Views(preprocess, patch, Crop(crop), preprocess.uint8 if uint8 else preprocess, uint8=uint8)


def _patch_means(view: View, patch: int) -> np.ndarray:
    """A model whose evidence is the brightness of each patch: the grids of the tiles, put together."""
    grids = []
    for tile in view.pixels.mean(axis=1):
        count = tile.shape[0] // patch
        inside = tile[: count * patch, : count * patch]
        grids.append(inside.reshape(count, patch, count, patch).mean(axis=(1, 3)).astype(np.float32)[view.layout.window])
    return joined(view.layout, np.stack(grids))


@pytest.mark.parametrize("crop", ["centre", "pad", "tiles"])
@contracts
@models
@sizes
def test_the_grid_lies_where_the_layout_says(crop: str, contract: str, side: int, patch: int, size: tuple[int, int]) -> None:
    """White blocks at known places of a black picture, found again by the centroids of what lights up in the one grid."""
    views = _views(contract, side, patch, crop, plain=True)
    black = views(Image.new("RGB", size)).layout
    rows, columns = black.shape
    left, top, right, bottom = black.seen
    cell = (right - left) / columns, (bottom - top) / rows
    block = [min(3 * step, 0.9 * length) for step, length in zip(cell, size, strict=True)]
    for x, y in itertools.product((0.05, 0.35, 0.6, 0.95), (0.1, 0.5, 0.9)):
        # Within the picture, and within what is seen of it.
        low = [max(edge, 0.0) for edge in (left, top)]
        high = [min(edge, length) for edge, length in zip((right, bottom), size, strict=True)]
        room = [max(h - low_ - b, 0.0) for low_, h, b in zip(low, high, block, strict=True)]
        x0, y0 = (round(low_ + share * r) for low_, share, r in zip(low, (x, y), room, strict=True))
        x1, y1 = (min(round(start + b), length) for start, b, length in zip((x0, y0), block, size, strict=True))
        picture = Image.new("RGB", size)
        picture.paste("white", (x0, y0, x1, y1))
        heat = _patch_means(views(picture), patch).astype(np.float64)
        assert heat.shape == black.shape
        found = (
            left + cell[0] * (heat.sum(axis=0) @ (np.arange(columns) + 0.5)) / heat.sum(),
            top + cell[1] * (heat.sum(axis=1) @ (np.arange(rows) + 0.5)) / heat.sum(),
        )
        # The centroid of a block smaller than a patch is off by half a patch, of a larger one by less. Where tiles overlap,
        # a patch lies at most half a patch from its place, and the larger of two values widens a block by as much.
        expected = ((x0 + x1) / 2, (y0 + y1) / 2)
        loose = [(0.75 if crop == "tiles" else 0.2) if b >= c else 0.55 for b, c in zip(block, cell, strict=True)]
        assert found[0] == pytest.approx(expected[0], abs=loose[0] * cell[0])
        assert found[1] == pytest.approx(expected[1], abs=loose[1] * cell[1])


@contracts
@models
@pytest.mark.parametrize("size", [size for size in SIZES if max(size) > 1.1 * min(size)])
def test_tiles_show_the_whole_long_side(contract: str, side: int, patch: int, size: tuple[int, int]) -> None:
    """Along the long side a picture gets ever brighter, which says where a tile of it begins."""
    wide, long = size[0] > size[1], max(size)
    ramp = np.tile(np.linspace(0, 255, long).astype(np.uint8), (min(size), 1))
    picture = Image.fromarray(ramp if wide else ramp.T).convert("RGB")
    resized = np.asarray(picture.resize(_resized(contract, side, size), Image.Resampling.BICUBIC))[..., 0]
    expected = resized.mean(axis=0 if wide else 1) / 255
    view = _views(contract, side, patch, "tiles", plain=True)(picture)
    lines = view.pixels[:, 0].mean(axis=1 if wide else 2)
    places = np.lib.stride_tricks.sliding_window_view(expected, side)
    offsets = [int(np.abs(places - line).max(axis=1).argmin()) for line in lines]
    for offset, line in zip(offsets, lines, strict=True):
        np.testing.assert_allclose(places[offset], line, atol=1e-5)  # the same 8-bit values, in fp32
    reach = side // patch * patch
    # Up to a few columns of one brightness.
    assert offsets[0] <= 5
    assert offsets[-1] >= len(expected) - side - 5
    assert max(np.diff(offsets)) <= reach + 5
    assert len(offsets) == 1 + -(-(len(expected) - side) // reach)


def _resized(contract: str, side: int, size: tuple[int, int]) -> tuple[int, int]:
    short = int(side / 0.875) if contract == "zero-shot" else side
    long = int(short * max(size) / min(size))
    return (long, short) if size[0] > size[1] else (short, long)


@models
def test_tiles_leave_no_gap_and_are_as_few_as_cover(side: int, patch: int) -> None:
    reach = side // patch * patch
    for long in range(side, 14 * side, 7):
        offsets = tile_offsets(long, side, patch)
        assert offsets[0] == 0
        assert offsets[-1] == long - side
        steps = np.diff(offsets)
        assert (steps > 0).all()
        assert (steps <= reach).all()
        assert len(offsets) == 1 or (len(offsets) - 2) * reach < long - side
        assert all(offset % patch == 0 for offset in offsets[:-1])
        assert len(steps) < 2 or np.ptp(steps[:-1]) <= patch


@contracts
def test_tiles_whose_patches_coincide_are_put_together_without_a_shift(contract: str) -> None:
    side, patch = 80, 16
    short = 91 if contract == "zero-shot" else 80
    # Of exactly 80 + 7 * 16 pixels after resizing, which changes nothing.
    noise = np.random.default_rng(0).integers(0, 256, (short, 192, 3), dtype=np.uint8)
    view = _views(contract, side, patch, "tiles", plain=True)(Image.fromarray(noise))
    top = round((short - side) / 2)
    inside = noise[top : top + side].astype(np.float64).mean(axis=2) / 255
    expected = inside.reshape(5, patch, 12, patch).mean(axis=(1, 3))
    assert view.layout.seen == (0, top, 192, top + side)
    np.testing.assert_allclose(_patch_means(view, patch), expected, atol=1e-6)  # fp32


@pytest.mark.parametrize("uint8", [False, True])
@contracts
@pytest.mark.parametrize("size", [(300, 300), (91, 91), (7, 7), (1000, 1001)])
def test_a_square_picture_has_one_tile_which_is_the_contract_s_to_the_bit(
    contract: str, size: tuple[int, int], uint8: bool
) -> None:
    picture = scene(*size)
    centre, tiles = (_views(contract, 80, 16, crop, uint8=uint8)(picture) for crop in ("centre", "tiles"))
    assert centre.pixels.dtype == (np.uint8 if uint8 else np.float32)
    assert centre.pixels.tobytes() == tiles.pixels.tobytes()
    assert centre.layout == tiles.layout
    if contract == "clip" and size[0] == size[1]:
        assert _views(contract, 80, 16, "pad", uint8=uint8)(picture).pixels.tobytes() == centre.pixels.tobytes()


@contracts
@models
@sizes
def test_pad_shows_the_whole_picture_on_the_mean_colour(contract: str, side: int, patch: int, size: tuple[int, int]) -> None:
    picture = scene(*size)
    preprocess = Preprocess.for_contract(contract, side)
    view, plain = (_views(contract, side, patch, "pad", uint8=uint8)(picture) for uint8 in (False, True))
    short = max(1, round(min(size) * side / max(size)))
    fitted = (side, short) if size[0] > size[1] else (short, side)
    left, top = ((side - length) // 2 for length in fitted)
    inside = np.zeros((side, side), bool)
    inside[top : top + fitted[1], left : left + fitted[0]] = True
    whole = np.asarray(picture.resize(fitted, Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(plain.pixels[0][:, inside], whole.reshape(-1, 3).T)
    expected = (whole.reshape(-1, 3) / 255 - preprocess.mean) / preprocess.std
    np.testing.assert_allclose(view.pixels[0][:, inside], expected.T, atol=1e-5)  # fp32 values of up to 3
    assert (view.pixels[0][:, ~inside] == 0).all()
    grey = [round(255 * mean) for mean in preprocess.mean]
    assert (plain.pixels[0][:, ~inside] == np.array(grey)[:, None]).all()
    assert view.layout == plain.layout
    # The patches that lie on the picture, and no others: less than one beyond it on each side.
    seen = np.array(view.layout.seen)
    cell = max(size) / side * patch
    beyond = np.concatenate([-seen[:2], seen[2:] - size])
    assert (beyond < cell).all()
    assert (beyond > -cell).all() if side % patch else (beyond > -1e-9).all()


def test_the_colour_around_a_padded_picture_is_that_of_the_contract() -> None:
    corner = _views("zero-shot", 224, 16, "pad", uint8=True)(Image.new("RGB", (200, 20), "white")).pixels[0, :, 0, 0]
    assert corner.tolist() == [124, 116, 104]


@contracts
@pytest.mark.parametrize("size", [(1, 1), (1, 3), (3, 1), (2, 7)])
@pytest.mark.parametrize("crop", ["pad", "tiles"])
def test_pictures_of_a_few_pixels(contract: str, size: tuple[int, int], crop: str) -> None:
    view = _views(contract, 80, 16, crop)(scene(*size))
    assert view.pixels.shape[1:] == (3, 80, 80)
    assert np.isfinite(view.pixels).all()
    assert min(view.layout.shape) >= 1


@contracts
def test_a_picture_too_long_for_the_tiles_is_refused_before_any_is_made(contract: str) -> None:
    tiles, pad = (_views(contract, 80, 16, crop) for crop in ("tiles", "pad"))
    longest = next(long for long in itertools.count(80) if _count(tiles, long) is None) - 1
    assert _count(tiles, longest) == MOST_TILES
    for size in ((longest + 1, 80), (80, longest + 1), (60000, 1)):
        with pytest.raises(ImageError, match="crop it"):
            tiles(Image.new("RGB", size))
        assert pad(Image.new("RGB", size)).pixels.shape == (1, 3, 80, 80)


def _count(views: Views, long: int) -> int | None:
    try:
        return len(views(Image.new("RGB", (long, 80))).pixels)
    except ImageError:
        return None


@pytest.mark.parametrize("crop", list(Crop))
@pytest.mark.parametrize("image", [Image.new("L", (4, 9)), Image.new("RGB", (0, 4))])
def test_pictures_that_are_not_rgb_are_refused(crop: Any, image: Image.Image) -> None:
    with pytest.raises(ImageError, match="expected RGB"):
        _views("clip", 8, 4, crop)(image)
