"""What a model is shown of a picture, and where on the picture that lies: one square, or several tiles along its long side.

With S the model's input in pixels, p a patch, and E = S // p * p what the patches of a tile cover:

- `centre`: what the preprocessing contract does.
- `pad`: the whole picture, its long side scaled to S, in the middle of a square of S x S. Around it is the mean colour, which
  is exactly 0 after normalisation; in uint8 it is the mean times 255, rounded to the nearest whole number.
- `tiles`: the picture is resized as the contract does it, and cut as the contract does it in the short direction only. Along
  the long side, L pixels after resizing, lie 1 + ceil((L - S) / E) tiles of S x S. The first and the last one end where the
  picture does. The others are evenly spaced, each moved on to the next multiple of p, so that their patches coincide with those
  of the first. A square picture has one tile, the contract's own crop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sigrl_deploy.arrays import Pixels
from sigrl_deploy.config import Crop
from sigrl_deploy.errors import ImageError
from sigrl_deploy.pictures.preprocess import Preprocess, channels_first, crop_corner, require_rgb

MOST_TILES = 16

Box = tuple[float, float, float, float]  # left, top, right and bottom edge


@dataclass(frozen=True)
class Layout:
    """Where on a picture the patches of its tiles lie, once the tiles' grids are put together to one.

    Attributes:
        seen: the part of the picture that the one grid covers, in pixels of the picture, whose pixel i covers [i, i + 1). With
            `pad` it may reach beyond the picture, by less than a patch on each side.
        shape: rows and columns of the one grid, which divide `seen` evenly. With `tiles`, patches that do not coincide with
            those of the first tile are placed at most half a patch from where they lie.
        window: the rows and columns of a tile's grid that are part of it.
        corners: for each tile the row and column in the one grid where its window begins.
    """

    seen: Box
    shape: tuple[int, int]
    window: tuple[slice, slice]
    corners: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class View:
    """A picture of `size`, width and height, as a model is shown it: `pixels` [T, 3, S, S] of its tiles, as in `layout`."""

    pixels: Pixels
    layout: Layout
    size: tuple[int, int]


class Views:
    """Makes views of pictures. Threads may share it.

    Args:
        preprocess: the contract; for `pad` and `tiles` one that ends in a centre crop.
        patch_size: p, a patch's side in pixels.
        crop: which view.
        prepare: the contract on an RGB picture, which gives pixels [3, S, S].
        uint8: whether `prepare` gives uint8, so that the other views do so too.
    """

    def __init__(
        self, preprocess: Preprocess, patch_size: int, crop: Crop, prepare: Callable[[Image.Image], Pixels], *, uint8: bool
    ) -> None:
        assert crop is Crop.CENTRE or preprocess.finish == "center-crop"
        self._preprocess, self._patch, self._crop, self._prepare, self._uint8 = preprocess, patch_size, crop, prepare, uint8
        self._side = preprocess.image_size
        self._grid = self._side // patch_size
        self._whole = slice(0, self._grid), slice(0, self._grid)

    def __call__(self, picture: Image.Image) -> View:
        """The view of an upright RGB picture.

        Raises ImageError for a picture of another mode, of size 0, or too elongated: to resize, or for MOST_TILES.
        """
        require_rgb(picture)
        if self._crop is Crop.PAD:
            return self._padded(picture)
        if self._crop is Crop.TILES:
            resized = self._preprocess.resized_size(*picture.size)
            if resized[0] != resized[1]:
                return self._tiles(picture, resized)
        return self._contract(picture)

    def _contract(self, picture: Image.Image) -> View:
        pixels = self._prepare(picture)
        seen = self._preprocess.source_box(*picture.size, extent=self._grid * self._patch)
        return View(pixels[None], Layout(seen, (self._grid, self._grid), self._whole, ((0, 0),)), picture.size)

    def _padded(self, picture: Image.Image) -> View:
        size = fitted_size(*picture.size, self._side)
        left, top = ((self._side - length) // 2 for length in size)
        rows, columns = (self._patches(start, length) for start, length in ((top, size[1]), (left, size[0])))
        x, y = picture.width / size[0], picture.height / size[1]
        p = self._patch
        seen = (
            (columns.start * p - left) * x,
            (rows.start * p - top) * y,
            (columns.stop * p - left) * x,
            (rows.stop * p - top) * y,
        )
        shape = rows.stop - rows.start, columns.stop - columns.start
        scaled = self._preprocess.scaled(picture, size)
        return View(self._on_mean(scaled, left, top)[None], Layout(seen, shape, (rows, columns), ((0, 0),)), picture.size)

    def _patches(self, start: int, length: int) -> slice:
        """The patches that `length` pixels from `start` on lie on, at least in part."""
        return slice(start // self._patch, min(-(-(start + length) // self._patch), self._grid))

    def _on_mean(self, scaled: Image.Image, left: int, top: int) -> Pixels:
        pixels: Pixels = np.zeros((3, self._side, self._side), np.uint8 if self._uint8 else np.float32)
        if self._uint8:
            pixels += mean_colour(self._preprocess)[:, None, None]
        pixels[:, top : top + scaled.height, left : left + scaled.width] = self._finished(scaled)
        return pixels

    def _finished(self, image: Image.Image) -> Pixels:
        return channels_first(image) if self._uint8 else self._preprocess.normalise(image)

    def _tiles(self, picture: Image.Image, resized: tuple[int, int]) -> View:
        offsets = tile_offsets(max(resized), self._side, self._patch)
        if len(offsets) > MOST_TILES:
            raise ImageError(
                f"picture of {picture.width} x {picture.height} pixels: takes {len(offsets)} tiles, expected {MOST_TILES} at "
                "most; crop it"
            )
        corner = crop_corner(resized, self._side)
        starts = [(offset, corner[1]) if resized[0] > resized[1] else (corner[0], offset) for offset in offsets]
        scaled = self._preprocess.scaled(picture, resized)
        boxes = [(left, top, left + self._side, top + self._side) for left, top in starts]
        pixels = np.stack([self._finished(scaled.crop(box)) for box in boxes])
        scale = picture.width / resized[0], picture.height / resized[1]
        return View(pixels, self._joined(starts, scale), picture.size)

    def _joined(self, starts: list[tuple[int, int]], scale: tuple[float, float]) -> Layout:
        """The layout of tiles with these left and top edges in the resized picture, which is `scale` times smaller."""
        extent, (x, y) = self._grid * self._patch, scale
        (left, top), (right, bottom) = starts[0], starts[-1]
        seen = left * x, top * y, (right + extent) * x, (bottom + extent) * y
        corners = tuple((round((y0 - top) / self._patch), round((x0 - left) / self._patch)) for x0, y0 in starts)
        shape = corners[-1][0] + self._grid, corners[-1][1] + self._grid
        return Layout(seen, shape, self._whole, corners)


def fitted_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height of a picture whose long side is scaled to `side`; the short one is rounded, and at least 1."""
    return (side, max(1, round(height * side / width))) if width >= height else (max(1, round(width * side / height)), side)


def mean_colour(preprocess: Preprocess) -> NDArray[np.uint8]:
    """What a contract normalises to nearly 0, as uint8 [3]: its mean times 255, rounded."""
    return np.round(np.array(preprocess.mean) * 255).astype(np.uint8)


def tile_offsets(long: int, side: int, patch: int) -> list[int]:
    """Where tiles of `side` pixels begin along `long` pixels, at least `side`; see the top of this file.

    The patches of neighbouring tiles leave no gap between them.
    """
    last = long - side
    count = -(-last // (side // patch * patch))
    # Rounded up, so that no two are further apart than `last / count` and a rounding: a whole number of patches.
    return [min(-(-i * last // (count * patch)) * patch, last) for i in range(count)] + [last]
