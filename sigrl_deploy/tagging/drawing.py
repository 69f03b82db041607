"""Draws heat maps: a picture in full colour where a label matches, and dark elsewhere."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.recognizer.predictions import Prediction
from sigrl_deploy.tagging.captions import PAPER, caption, line_height

# Left, top, right and bottom edge, in pixels of the picture; it may reach beyond the picture.
Box = tuple[float, float, float, float]

MIN_SIDE, MAX_SIDE = 256, 1024  # of the longer side of a heat map in a file of its own, in pixels
MIN_PANEL, MAX_PANEL = 320, 512  # of the longer side of each picture of a sheet
MOST_TAGS, MOST_COLUMNS = 23, 4

DIMMED, COLOUR_LEFT = 0.42, 0.2  # brightness, and share of the colours, of places that do not match
OUTLINED = 0.5  # strength at the outline
_SHAPE = 1.5  # width by height of a sheet, as near as its panels allow
_LIGHT, _DARK = (255, 255, 255), (16, 16, 16)  # of outlines: one of them shows on any picture


def draw_sheet(
    picture: Image.Image, box: Box, name: str, predictions: Sequence[Prediction], columns: int | None = None
) -> Image.Image:
    """The picture, called `name`, with the outline of `box`, which the model saw; then a heat map of each prediction.

    Only the MOST_TAGS first predictions are drawn.
    """
    picture, box = scaled(picture, box, MIN_PANEL, MAX_PANEL)
    panels = [(_with_outline(picture, box), name, "")]
    panels += [(heat(picture, box, tag), tag.label, f"{tag.score:.2f}") for tag in predictions[:MOST_TAGS]]
    return _arranged(panels, columns)


def draw_one(picture: Image.Image, box: Box, prediction: Prediction) -> Image.Image:
    """The heat map of one prediction, with a caption."""
    picture, box = scaled(picture, box, MIN_SIDE, MAX_SIDE)
    return _arranged([(heat(picture, box, prediction), prediction.label, f"{prediction.score:.2f}")], 1)


def heat(picture: Image.Image, box: Box, prediction: Prediction) -> Image.Image:
    """The picture, dark and nearly grey but for places inside `box` where the prediction is strong.

    The stronger, the more of its own light and colour a place keeps; strength is interpolated between the patches' centres. A
    line runs where it is OUTLINED. The same strength looks the same in all heat maps of a picture.
    """
    assert prediction.strength is not None
    left, top, right, bottom = _whole(box, picture.size)
    resized = Image.fromarray(prediction.strength).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    # A part beyond the picture is cut off; a part of the picture beyond the box is 0.
    whole = resized.crop((-left, -top, picture.width - left, picture.height - top))
    strength: FloatArray = np.asarray(whole, np.float32).clip(0, 1)
    bright: FloatArray = np.asarray(picture, np.float32)
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    dark = DIMMED * (grey + COLOUR_LEFT * (bright - grey))
    pixels = (dark + strength[..., None] * (bright - dark)).astype(np.float32)
    if prediction.strength.max() >= OUTLINED:
        seen = (slice(max(top, 0), bottom), slice(max(left, 0), right))
        _draw_outline(pixels[seen], strength[seen], max(1.5, max(picture.size) / 250))
    return Image.fromarray(pixels.round().astype(np.uint8))


def _draw_outline(pixels: FloatArray, strength: FloatArray, width: float) -> None:
    """Draw, into pixels [H, W, 3], a light line of `width` pixels with dark edges where the strength [H, W] is OUTLINED."""
    if min(strength.shape) < 2:
        return
    slope = np.hypot(*np.gradient(strength))
    # A level place has no line, even if it is OUTLINED all over.
    distance = np.divide(np.abs(strength - OUTLINED), slope, out=np.full_like(strength, np.inf), where=slope > 1e-4)
    for colour, reach in ((_DARK, width), (_LIGHT, width / 2)):
        cover = (reach - distance + 0.5).clip(0, 1)[..., None]
        pixels += cover * (np.array(colour, np.float32) - pixels)


def _with_outline(picture: Image.Image, box: Box) -> Image.Image:
    """The picture with the outline of `box`, if that is not all of it and has room for lines."""
    left, top, right, bottom = _whole(box, picture.size)
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, picture.width), min(bottom, picture.height)
    width = max(2, round(max(picture.size) / 200))
    if (left, top, right, bottom) == (0, 0, *picture.size) or min(right - left, bottom - top) <= 4 * width:
        return picture
    drawn = picture.copy()
    draw = ImageDraw.Draw(drawn)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=_DARK, width=2 * width)
    inner = width // 2
    draw.rectangle((left + inner, top + inner, right - 1 - inner, bottom - 1 - inner), outline=_LIGHT, width=width)
    return drawn


def _whole(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box in whole pixels, with at least one of a picture of `size`."""
    left, top = (min(round(edge), side - 1) for edge, side in zip(box[:2], size, strict=True))
    return left, top, max(round(box[2]), left + 1, 1), max(round(box[3]), top + 1, 1)


def scaled(picture: Image.Image, box: Box, least: int, most: int) -> tuple[Image.Image, Box]:
    """The picture with its longer side between `least` and `most` pixels, and the box in it."""
    long = max(picture.size)
    scale = min(max(long, least), most) / long
    width, height = (max(1, round(side * scale)) for side in picture.size)
    x, y = width / picture.width, height / picture.height
    return picture.resize((width, height), Image.Resampling.BICUBIC), (box[0] * x, box[1] * y, box[2] * x, box[3] * y)


def _arranged(panels: Sequence[tuple[Image.Image, str, str]], columns: int | None) -> Image.Image:
    """Pictures of one size in rows, each with its caption and what stands beside that."""
    width, height = panels[0][0].size
    side = max(width, height)
    gap, size = side // 32, max(13, side // 20)
    cell = max(width, round(0.7 * side))
    captions = [caption(text, cell, size, beside) for _, text, beside in panels]
    below = max(text.height for text in captions) + line_height(size) // 3
    columns = columns or _columns(len(panels), cell + gap, height + below + gap)
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (height + below + gap) + gap), PAPER)
    for i, ((panel, *_), text) in enumerate(zip(panels, captions, strict=True)):
        x, y = gap + i % columns * (cell + gap), gap + i // columns * (height + below + gap)
        sheet.paste(panel, (x + (cell - width) // 2, y))
        sheet.paste(text, (x, y + height + line_height(size) // 4))
    return sheet


def _columns(panels: int, width: int, height: int) -> int:
    """How many columns bring a sheet near _SHAPE with few empty places."""

    def cost(columns: int) -> float:
        rows = math.ceil(panels / columns)
        empty = rows * columns - panels
        return abs(math.log(columns * width / (rows * height) / _SHAPE)) + 0.2 * empty

    return min(range(1, min(panels, MOST_COLUMNS) + 1), key=cost)


def data_uri(image: Image.Image) -> str:
    """A picture as a `data:` URI, for pages and JSON that need no other file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
