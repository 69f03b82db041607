"""Heat maps: where in a picture a label's per-patch evidence lies, drawn over that picture."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.manifest import Manifest
from sigrl_deploy.errors import ImageError, UsageError, printable
from sigrl_deploy.files import replacing
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.recognizer.predictions import Prediction, Record
from sigrl_deploy.tagging.output import output_errors

log = logging.getLogger(__name__)

MIN_SIDE, MAX_SIDE = 256, 1024  # of the drawn picture's longer side, in pixels
OPACITY = 0.55  # of the colours on the picture
DIMMED = 0.5  # brightness of the part that the model did not see

# Evenly spaced from least to most. Lightness rises steadily, so that the order shows in grey and to the colour-blind too.
_COLOURS = np.array([(20, 24, 82), (98, 28, 128), (190, 50, 102), (242, 126, 54), (254, 232, 110)], np.float64)

Box = tuple[float, float, float, float]  # left, top, right and bottom edge

_FONT_SIZE, _LINE, _MARGIN = 14, 22, 8
_SLUG_LENGTH = 40  # two slugs, two digests and a temporary ending stay below every file system's limit
_NAME = re.compile(r"[a-z0-9-]*_[0-9a-f]{12}--[a-z0-9-]*(_[0-9a-f]{12})?\.png")


def open_folder(folder: Path) -> None:
    """Create the folder if it is missing. Raises UsageError where no file can be written into it."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UsageError("is not a folder; choose another name", argument="heatmaps", value=folder)
    with output_errors(folder, "heatmaps"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def write_heatmaps(record: Record, folder: Path, manifest: Manifest) -> tuple[str | None, ...]:
    """Draw one file for each of the record's predictions, which carry evidence; returns the files' paths.

    The picture is read again, so that none is kept in memory while others are scored. Where it has vanished since, or changed
    so that it cannot be read, the log has a warning, and the paths are None. Raises UsageError where the folder can no longer
    be written to.
    """
    if not record.predictions:
        return ()
    try:
        picture = read_image(record.path)
        box = record.seen or manifest.preprocess.source_box(*picture.size, extent=manifest.grid[0] * manifest.patch_size)
    except ImageError as error:
        log.warning("no heat map: %s", error)
        return (None,) * len(record.predictions)
    picture, box = _to_drawn_size(picture, box)
    paths = []
    for prediction in record.predictions:
        path = folder / heatmap_name(record.path, prediction.label)
        drawn = draw_heatmap(picture, box, prediction)
        with output_errors(folder, "heatmaps"), replacing(path) as temporary:
            drawn.save(temporary, "PNG", compress_level=1)  # a quarter of the default's time
        paths.append(str(path))
    return tuple(paths)


def heatmap_name(path: str, label: str) -> str:
    """The file name for one picture and label: always the same, lower-case ASCII, and different from every other pair's."""
    digest = _digest(os.fsencode(Path(path).absolute()))
    plain = _slug(label)
    unique = plain if plain == label else f"{plain}_{_digest(label.encode('utf-8', 'surrogatepass'))}"
    return f"{_slug(Path(path).stem)}_{digest}--{unique}.png"


def is_heatmap_name(name: str) -> bool:
    """Whether a file name is one that `heatmap_name` gives."""
    return _NAME.fullmatch(name) is not None


def _slug(text: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return re.sub("[^a-z0-9]+", "-", ascii_only.lower())[:_SLUG_LENGTH].strip("-")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def draw_heatmap(picture: Image.Image, box: Box, prediction: Prediction) -> Image.Image:
    """The picture with the evidence of a prediction over `box`, its edges in pixels of the picture, and a caption below.

    The colour of a place is the label's match with the patch there, from dark blue for the weakest patch of this picture to
    yellow for the strongest, interpolated between the patches' centres. So colours compare places within one heat map only:
    yellow shows where the label matches best, not that it matches well, and nearly every heat map has some. The score cannot be
    read from them: it takes the mean of the k best patches, normalises it over all labels, and adds the match of the picture as
    a whole, which has no place in it. Inside `box` the picture is grey; outside, where the model did not look, it is dimmed.
    """
    assert prediction.evidence is not None
    left, top = (min(round(edge), side - 1) for edge, side in zip(box[:2], picture.size, strict=True))
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    heat = Image.fromarray(_normalised(prediction.evidence)).resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    # In grey, so that no colour of the picture looks like evidence.
    crop = picture.crop((left, top, right, bottom)).convert("L").convert("RGB")
    seen = Image.blend(crop, _coloured(np.asarray(heat)), OPACITY)
    drawn = Image.blend(Image.new("RGB", picture.size), picture, DIMMED)
    drawn.paste(seen, (left, top))
    return _with_caption(drawn, prediction)


def _normalised(evidence: FloatArray) -> FloatArray:
    lowest, highest = evidence.min(), evidence.max()
    span = highest - lowest
    return (evidence - lowest) / span if span > 0 else np.zeros_like(evidence)


def _coloured(heat: FloatArray) -> Image.Image:
    """heat [H, W] in 0..1 → RGB."""
    anchors = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(heat, anchors, channel) for channel in _COLOURS.T]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def _to_drawn_size(picture: Image.Image, box: Box) -> tuple[Image.Image, Box]:
    long = max(picture.size)
    scale = min(max(long, MIN_SIDE), MAX_SIDE) / long
    width, height = (max(1, round(side * scale)) for side in picture.size)
    x, y = width / picture.width, height / picture.height
    return picture.resize((width, height), Image.Resampling.BICUBIC), (box[0] * x, box[1] * y, box[2] * x, box[3] * y)


def _with_caption(drawn: Image.Image, prediction: Prediction) -> Image.Image:
    """Two lines below the picture: label and score, and which colour is which."""
    font = ImageFont.load_default(size=_FONT_SIZE)
    canvas = Image.new("RGB", (max(drawn.width, MIN_SIDE), drawn.height + 2 * _LINE + _MARGIN), "white")
    canvas.paste(drawn, ((canvas.width - drawn.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    # Pillow's own font has glyphs for ASCII only; all others would be the same empty box.
    label, score = printable(prediction.label).encode("ascii", "backslashreplace").decode("ascii"), f"  {prediction.score:.4f}"
    room = canvas.width - 2 * _MARGIN - font.getlength(score)
    if font.getlength(label) > room:
        while label and font.getlength(label + "...") > room:
            label = label[:-1]
        label += "..."
    draw.text((_MARGIN, drawn.height + _MARGIN // 2), label + score, "black", font)
    y = drawn.height + _LINE
    draw.text((_MARGIN, y + _MARGIN // 2), "weakest", "black", font)
    x = _MARGIN + round(font.getlength("weakest")) + _MARGIN
    scale = _coloured(np.tile(np.linspace(0, 1, 96, dtype=np.float32), (_FONT_SIZE, 1)))
    canvas.paste(scale, (x, y + _MARGIN // 2))
    draw.text((x + scale.width + _MARGIN, y + _MARGIN // 2), "strongest", "black", font)
    return canvas
