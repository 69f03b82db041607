"""The demo: the SigRL model that comes with the package, exported and run on pictures that it has never seen."""

from __future__ import annotations

import logging
from pathlib import Path

from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import MANIFEST
from sigrl_deploy.config import Device
from sigrl_deploy.datasets.scenes import UNSEEN, Scenes, labels_of
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import BundleError
from sigrl_deploy.export.run import ExportOptions, export_bundle
from sigrl_deploy.tagging.run import InferOptions, run_infer

log = logging.getLogger(__name__)

DATA = Path(__file__).parent / "data"
CHECKPOINT = DATA / "scenes-sigrl.safetensors"
LABELS = DATA / "scenes-labels.txt"
PICTURES = DATA / "scenes"


def run_demo(out: Path) -> int:
    """Export to `out`/bundle, print the tags of the package's scenes and what is in them, draw heat maps into `out`/heatmaps.

    An existing bundle is replaced if the demo made it. Returns how many pictures could not be read. Raises what export and
    infer raise.
    """
    log.info("exporting %s to %s", CHECKPOINT.name, out / "bundle")
    export_bundle(ExportOptions(CHECKPOINT, out / "bundle", labels=LABELS, force=_is_ours(out / "bundle")))
    failed = run_infer(
        InferOptions(
            pictures=[str(path) for path in sorted(PICTURES.glob("*.jpg"))],
            bundle=out / "bundle",
            labels=None,
            top=4,
            threshold=None,
            all_scores=False,
            format="table",
            out=None,
            resume=False,
            heatmaps=out / "heatmaps",
            batch_size=None,
            cache_dir=out / "cache",
            engine=EngineOptions(device=Device.CPU),
        )
    )
    test = Scenes("test")
    log.info("what was drawn in them (* is in no training picture):")
    for i, path in enumerate(sorted(PICTURES.glob("*.jpg"))):
        present = dict.fromkeys(label for thing in test.things(i) for label in labels_of(thing))
        log.info("%s  %s", path.name, ", ".join(f"{label}*" if label in UNSEEN else label for label in present))
    log.info("heat maps: %s; what the model can and cannot do: MODEL_CARD.md beside %s", out / "heatmaps", CHECKPOINT)
    return failed


def _is_ours(bundle: Path) -> bool:
    """Whether a bundle was exported from the demo's checkpoint."""
    if not (bundle / MANIFEST).exists():
        return False
    try:
        return bool(Bundle(bundle).manifest.source["checkpoint"]["file"] == CHECKPOINT.name)
    except (BundleError, KeyError, TypeError):
        return False
