"""Heat maps in files: where in a picture its labels were found."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import tempfile
import unicodedata
from pathlib import Path

from PIL import Image

from sigrl_deploy.bundle.manifest import Manifest
from sigrl_deploy.errors import ImageError, UsageError, printable
from sigrl_deploy.files import replacing
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.recognizer.predictions import Record
from sigrl_deploy.tagging.drawing import Box, draw_one, draw_sheet
from sigrl_deploy.tagging.output import Heatmaps, output_errors

log = logging.getLogger(__name__)

_SLUG_LENGTH = 40  # two slugs, two digests and a temporary ending stay below every file system's limit
# The ending tells a sheet from other files with twelve digits at the end, such as pictures with date and time.
_SHEET = ".heatmaps.png"
_NAME = re.compile(r"[a-z0-9-]*_[0-9a-f]{12}(--[a-z0-9-]*(_[0-9a-f]{12})?\.png|\.heatmaps\.png)")


def open_folder(folder: Path) -> None:
    """Create the folder if it is missing. Raises UsageError where no file can be written into it."""
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise UsageError("is not a folder; choose another name", argument="heatmaps", value=folder)
    with output_errors(folder, "heatmaps"):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def write_heatmaps(record: Record, folder: Path, manifest: Manifest, per_tag: bool = False) -> Heatmaps:
    """Draw the record's predictions, which carry their strength: all in one file, or each in a file of its own.

    The picture is read again, so that none is kept in memory while others are scored. Where it has vanished since, has another
    size or can no longer be read, the log has a warning, and nothing is drawn; nor is it for a record without predictions.
    Raises UsageError where the folder can no longer be written to.
    """
    tags = record.predictions
    nothing = Heatmaps(tags=(None,) * len(tags)) if per_tag else Heatmaps()
    if not tags:
        return nothing
    try:
        picture = read_image(record.path)
        box = record.seen or part_seen(picture, manifest)
    except ImageError as error:
        log.warning("no heat map: %s", error)
        return nothing
    if record.size not in (None, picture.size):
        log.warning("no heat map: %s: has changed since it was tagged", printable(record.path))
        return nothing
    if per_tag:
        named = ((heatmap_name(record.path, tag.label), draw_one(picture, box, tag)) for tag in tags)
        return Heatmaps(tags=tuple(_save(drawn, folder, name) for name, drawn in named))
    sheet = draw_sheet(picture, box, os.path.basename(record.path), tags)
    return Heatmaps(sheet=_save(sheet, folder, sheet_name(record.path)))


def part_seen(picture: Image.Image, manifest: Manifest) -> Box:
    """The part of the picture that the model's patches cover."""
    return manifest.preprocess.source_box(*picture.size, extent=manifest.grid[0] * manifest.patch_size)


def _save(drawn: Image.Image, folder: Path, name: str) -> str:
    path = folder / name
    with output_errors(folder, "heatmaps"), replacing(path) as temporary:
        drawn.save(temporary, "PNG", compress_level=1)  # a quarter of the default's time
    return str(path)


def sheet_name(path: str) -> str:
    """The file name for all heat maps of one picture, with the qualities of `heatmap_name`."""
    return f"{_of_picture(path)}{_SHEET}"


def heatmap_name(path: str, label: str) -> str:
    """The file name for one picture and label: always the same, lower-case ASCII, and different from every other pair's."""
    plain = _slug(label)
    unique = plain if plain == label else f"{plain}_{_digest(label.encode('utf-8', 'surrogatepass'))}"
    return f"{_of_picture(path)}--{unique}.png"


def is_heatmap_name(name: str) -> bool:
    """Whether a file name is one that `sheet_name` or `heatmap_name` gives."""
    return _NAME.fullmatch(name) is not None


def _of_picture(path: str) -> str:
    return f"{_slug(Path(path).stem)}_{_digest(os.fsencode(Path(path).absolute()))}"


def _slug(text: str) -> str:
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    return re.sub("[^a-z0-9]+", "-", ascii_only.lower())[:_SLUG_LENGTH].strip("-")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]
