"""Runs the demo: export, tags, heat maps, page."""

from __future__ import annotations

import logging
from pathlib import Path

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import MANIFEST
from sigrl_deploy.config import Device
from sigrl_deploy.datasets.scenes import Scenes
from sigrl_deploy.demo.marked import Marked, mark
from sigrl_deploy.demo.page import check_replaceable, write_page
from sigrl_deploy.demo.table import table
from sigrl_deploy.errors import BundleError
from sigrl_deploy.export.options import ExportOptions
from sigrl_deploy.export.run import export_bundle
from sigrl_deploy.files import replacing
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.tagging.heatmaps import open_folder, write_heatmaps
from sigrl_deploy.tagging.output import open_output

log = logging.getLogger(__name__)

DATA = Path(__file__).parents[1] / "data"
CHECKPOINT = DATA / "scenes-sigrl.safetensors"
LABELS = DATA / "scenes-labels.txt"
PICTURES = DATA / "scenes"
CARD = DATA / "MODEL_CARD.md"
_TAGS = 4  # for each picture


def run_demo(out: Path) -> int:
    """Export to `out`/bundle, tag the package's scenes, and show what was found.

    Prints the tags, marked right and wrong, draws heat maps into `out`/heatmaps, and writes both into the page
    `out`/index.html, with the model's card beside it. An existing bundle, page or card is replaced if the demo made it. Returns
    how many pictures could not be read. Raises what export and infer raise.
    """
    page = out / "index.html"
    check_replaceable(page)
    check_replaceable(out / CARD.name, CARD.read_bytes().partition(b"\n")[0])
    log.info("exporting %s to %s", CHECKPOINT.name, out / "bundle")
    export_bundle(ExportOptions(CHECKPOINT, out / "bundle", labels=LABELS, force=_is_ours(out / "bundle")))
    with Recognizer(out / "bundle", device=Device.CPU, cache_dir=out / "cache") as recognizer:
        pictures = _tagged(recognizer, out / "heatmaps")
        read = [picture for picture in pictures if picture.record.error is None]
        if read:
            write_page(page, read, recognizer.bundle.manifest, len(recognizer.vocabulary()))
            with replacing(out / CARD.name) as copy:  # the page links to it
                copy.write_bytes(CARD.read_bytes())
    with open_output("table", None) as stream:
        stream.write(f"{table(pictures)}\n")
        if read:
            stream.write(f"\nthe same with heat maps, for a browser: {page.resolve()}\n")
            stream.write(f"what the model can and cannot do: {(out / CARD.name).resolve()}\n")
    return len(pictures) - len(read)


def _tagged(recognizer: Recognizer, heatmaps: Path) -> list[Marked]:
    """The scenes that ship, which are the first of the test split."""
    open_folder(heatmaps)
    test, pictures = Scenes("test"), []
    for i, record in enumerate(recognizer.stream(sorted(PICTURES.glob("*.jpg")), top=_TAGS, evidence=True)):
        write_heatmaps(record, heatmaps, recognizer.bundle.manifest)
        pictures.append(mark(record, test.things(i)))
    return pictures


def _is_ours(bundle: Path) -> bool:
    """Whether a bundle was exported from the demo's checkpoint."""
    if not (bundle / MANIFEST).exists():
        return False
    try:
        return bool(Bundle(bundle).manifest.source["checkpoint"]["file"] == CHECKPOINT.name)
    except (BundleError, KeyError, TypeError):
        return False
