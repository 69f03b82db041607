"""A short name of everything that records depend on except their pictures: only a run of the same name can resume another."""

from __future__ import annotations

import hashlib

from msgspec.structs import replace

from sigrl_deploy.config import Crop
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.selection import DEFAULT_TOP
from sigrl_deploy.recognizer.thresholds import Thresholds
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

_DIFFERENCES = {
    "bundle": "another bundle",
    "engine": "another backend, precision, preprocessing or crop",
    "labels": "other labels",
    "options": "other options (top, threshold, scores or heatmaps)",
}

# `top`, `threshold`, whether all scores are written, and where and how heat maps are drawn
Chosen = tuple[int | None, float | None, bool, object]


def run_name(
    recognizer: Recognizer,
    vocabulary: Vocabulary,
    thresholds: Thresholds | None,
    chosen: Chosen,
    device_preprocess: bool = False,
) -> str:
    """The name of a run with this recognizer, these labels and these options."""
    # What was built or measured since changes no record.
    manifest = replace(recognizer.bundle.manifest, engines=(), verified=())
    engine = recognizer.engine
    crop = () if recognizer.crop is Crop.CENTRE else (recognizer.crop.value,)
    how = type(engine).__name__, engine.precision.value, device_preprocess, *crop
    top, *others = chosen
    decided = [] if thresholds is None else [thresholds.path.name, thresholds.rescale, replace(thresholds.file, calibration={})]
    options = top or (DEFAULT_TOP if thresholds is None else None), *others, *decided
    return name_run(bundle=manifest.to_json(), engine=how, labels=_names(vocabulary), options=options)


def name_run(*, bundle: object, engine: object, labels: object, options: object) -> str:
    """A short name of everything that a record depends on except its picture; it is part of every record."""
    parts = {"bundle": bundle, "engine": engine, "labels": labels, "options": options}
    return "-".join(hashlib.sha256(repr(parts[name]).encode()).hexdigest()[:8] for name in _DIFFERENCES)


def differing(theirs: str, ours: str) -> str:
    """What is different between two runs, in words."""
    pairs = list(zip(theirs.split("-"), ours.split("-"), strict=False))
    if len(pairs) != len(_DIFFERENCES) or theirs.count("-") != ours.count("-"):
        return "another version of this program"
    return " and ".join(said for said, (a, b) in zip(_DIFFERENCES.values(), pairs, strict=True) if a != b)


def _names(vocabulary: Vocabulary) -> tuple[object, ...]:
    """Everything about the labels that a record depends on; of a list of names, the names."""
    if vocabulary.readout is None:
        return vocabulary.labels
    readout = vocabulary.readout
    limits = None if readout.thresholds is None else readout.thresholds.tolist()
    return (*vocabulary.labels, readout.rows, readout.ancestors, limits)
