"""The demo's results as one page that needs no other file and no network."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import jinja2

from sigrl_deploy.bundle.manifest import Manifest
from sigrl_deploy.demo.marked import Marked, summary
from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import read_bounded, replacing
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.tagging.drawing import MAX_PANEL, MIN_PANEL, data_uri, heat, scaled
from sigrl_deploy.tagging.heatmaps import part_seen
from sigrl_deploy.tagging.output import output_errors

_TEMPLATE = Path(__file__).parent / "page.html"
_FIGURES = Path(__file__).parents[1] / "data" / "scenes-figures.json"
_OURS = b'<meta name="generator" content="sigrl-deploy demo">'
_MOST_BYTES = 2**26


def check_replaceable(path: Path, mark: bytes = _OURS) -> None:
    """Raise UsageError where `path` is a file that the demo has not written: its files have `mark` in them."""
    if not os.path.lexists(path):
        return
    try:
        ours = mark in read_bounded(path, _MOST_BYTES)
    except (OSError, ValueError):
        ours = False
    if not ours:
        raise UsageError("exists already, and the demo did not write it; choose another folder", argument="out", value=path)


def write_page(path: Path, pictures: Sequence[Marked], manifest: Manifest, labels: int) -> None:
    """Write the page. Every picture can be read, its tags are the best of `labels`, and they have their strength."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    shown = [_shown(picture, manifest) for picture in pictures]
    figures = json.loads(_FIGURES.read_text(encoding="utf-8"))
    page = template.render(pictures=shown, labels=labels, summary=summary(pictures), figures=figures)
    with output_errors(path), replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _shown(picture: Marked, manifest: Manifest) -> dict[str, object]:
    """What the template needs of a picture."""
    image = read_image(picture.record.path)
    image, box = scaled(image, part_seen(image, manifest), MIN_PANEL, MAX_PANEL)
    maps = [data_uri(heat(image, box, tag.prediction)) for tag in picture.tags]
    return {
        "name": picture.name,
        "image": data_uri(image),
        "tags": list(zip(picture.tags, maps, strict=True)),
        "drawn": picture.drawn,
    }
