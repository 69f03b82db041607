"""A bundle on the user's own pictures: every backend that runs here, side by side, against one reference."""

from __future__ import annotations

import dataclasses
import io
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from sigrl_deploy.arrays import FloatArray
from sigrl_deploy.bundle.bundle import Bundle
from sigrl_deploy.bundle.manifest import VOCABULARY, Manifest, change_manifest
from sigrl_deploy.checkpoints.options import CheckpointOptions
from sigrl_deploy.comparison import agreement, compared, flips, lowest_cosine, overlap, score_errors, unit_of
from sigrl_deploy.config import Backend, Device, Precision
from sigrl_deploy.datasets.dataset import UNKNOWN, Dataset
from sigrl_deploy.datasets.labelled_folder import LABELS_CSV, read_folder
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import ExportError, LabelError, SigRLError, UsageError
from sigrl_deploy.evaluation.metrics import evaluate_scores, require_scikit_learn
from sigrl_deploy.evaluation.scoring import Model, score_pictures
from sigrl_deploy.evaluation.sources import PictureList, Restricted
from sigrl_deploy.extras import require
from sigrl_deploy.labels.background import with_background
from sigrl_deploy.labels.label_set import LabelSet, label_set
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.pictures.finding import find_pictures
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.thresholds import Thresholds, read_thresholds
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)

_IN_PARENTHESES = re.compile(r" \([^)]*\)")
_SHOWN_LABELS = 10  # that flip most
TAGS = 5  # per picture that pass the default threshold


@dataclass(frozen=True)
class VerifyOptions:
    """What to compare. None means: every backend that runs here, each precision's own tolerance, labels of the bundle or of
    `labels.csv`, a threshold that lets about five tags a picture pass. The checkpoint's other options are the bundle's.
    """

    bundle: Path
    pictures: list[str]
    labels: Path | None = None
    checkpoint: CheckpointOptions | None = None
    backends: tuple[str, ...] = ()
    precisions: tuple[Precision, ...] = ()
    device: str = "auto"
    tolerance: float | None = None
    threshold: float | None = None
    background: str | None = None
    thresholds: Path | None = None
    rescale_thresholds: bool = False
    batch_size: int = 1
    cache_dir: Path | None = None


@dataclass(frozen=True)
class Comparison:
    """How a model's scores [N, C] differ from the reference's; shares are from 0 to 1.

    Errors of probabilities are those before the sigmoid. Beyond ±1 they are counted in the largest score.

    `cosine` is the lowest of any picture's scores, `top1_agreement` the share of pictures with the same best label,
    `top5_overlap` the share of the five best labels that are the same, `flips` the share of scores on the other side of the
    threshold, `flipping` in how many pictures each label is there, the most first, and `map` the mean average precision where
    the pictures' labels are known.
    """

    description: str
    precision: str
    tolerance: float
    largest_error: float
    mean_error: float
    cosine: float
    top1_agreement: float
    top5_overlap: float
    flips: float
    map: float | None
    flipping: dict[str, int] = field(default_factory=dict)

    @property
    def within(self) -> bool:
        return self.largest_error <= self.tolerance


@dataclass(frozen=True)
class Verification:
    """What `verify` found: the reference and the others, in order, and why which backends and precisions did not open."""

    reference: str
    reference_map: float | None
    comparisons: tuple[Comparison, ...]
    not_run: dict[str, SigRLError]
    threshold: float | str
    pictures: int
    labels: int
    unreadable: dict[str, str]


class NothingToCompareError(UsageError):
    """Fewer than two models were opened. `not_run` says why the others were not, as in `Verification`."""

    def __init__(self, problem: str, bundle: Path, not_run: dict[str, SigRLError]) -> None:
        super().__init__(problem, argument="bundle", value=bundle)
        self.not_run = not_run


def verify(options: VerifyOptions) -> Verification:
    """Score the pictures with every model, compare, and write the result into the bundle's manifest.

    Backends that fail to open are left out and reported, unless they were asked for by name. A manifest that cannot be written
    is a warning. Raises UsageError for options that cannot be used; NothingToCompareError, a UsageError, where fewer than two
    models run.
    """
    bundle = Bundle(options.bundle)
    labels = _asked(options, bundle)
    dataset = _dataset(options, bundle, labels)
    models, not_run = _models(options, bundle)
    if len(models) < 2:
        only = f"only {short_name(models[0].description)} runs here" if models else "nothing runs here"
        limited = [f"`{name}`" for name in ("backends", "precisions") if getattr(options, name)]
        advice = ["give the `checkpoint` that it was exported from"] * (options.checkpoint is None)
        advice += [f"leave out {' and '.join(limited)}"] * bool(limited)
        advice = advice or ["repair one of the others"]
        raise NothingToCompareError(f"{only}, so there is nothing to compare; {', or '.join(advice)}", options.bundle, not_run)
    labels = labels or label_set(dataset.labels)
    thresholds = read_thresholds(options.thresholds, options.rescale_thresholds)
    limits = None if thresholds is None else _limits(thresholds, labels, models)
    scored = score_pictures(dataset, range(len(dataset)), labels, models, options.batch_size)
    unreadable = {dataset.name(i): reason for i, reason in scored.unreadable.items()}
    if len(scored.targets) == 0:
        raise UsageError(f"no picture to compare: {len(unreadable)} cannot be read, such as {next(iter(unreadable))}")
    exact, known = scored.scores[0], bool((scored.targets != UNKNOWN).any())
    maps = [_map(scores, scored.targets) if known else None for scores in scored.scores]
    threshold = _threshold(exact) if options.threshold is None else options.threshold
    comparisons = tuple(
        compare(exact, scores, model, labels.names, options.tolerance, threshold if limits is None else limits, its_map)
        for model, scores, its_map in list(zip(models, scored.scores, maps, strict=True))[1:]
    )
    across = threshold if options.thresholds is None else options.thresholds.name
    found = Verification(
        models[0].description, maps[0], comparisons, not_run, across, len(exact), len(labels.names), unreadable
    )
    _record(options.bundle, found)
    return found


def short_name(description: str) -> str:
    """An engine's description without what is in parentheses, such as the reason for its device."""
    return _IN_PARENTHESES.sub("", description)


def _asked(options: VerifyOptions, bundle: Bundle) -> LabelSet | None:
    """The label set of the file, with its background, or None."""
    given = None if options.labels is None else read_label_set(options.labels)
    if given is None and options.background is not None:
        given = label_set(_own_labels(bundle))
    if given is None:
        return None
    given = given if options.background is None else replace(given, background=options.background)
    return with_background(given, _own_labels(bundle) if given.background == "bundle" else None)


def _limits(thresholds: Thresholds, labels: LabelSet, models: Sequence[Model]) -> FloatArray:
    """Thresholds [C]. Raises UsageError where the file is for other labels or another bundle; any precision may try them."""
    recognizer = next(model.scorer for model in models if isinstance(model.scorer, Recognizer))
    vocabulary = recognizer.vocabulary(labels)
    scope = replace(recognizer.scope(vocabulary), precision=thresholds.file.scope.precision)
    return thresholds.limits(scope, vocabulary)


def _dataset(options: VerifyOptions, bundle: Bundle, labels: LabelSet | None) -> Dataset:
    first = Path(options.pictures[0])
    labelled = len(options.pictures) == 1 and (first.suffix.lower() == ".csv" or (first / LABELS_CSV).is_file())
    if labelled:
        known = read_folder(first)
        return known if labels is None else Restricted(known, labels)
    names = _own_labels(bundle) if labels is None else labels.names
    found = find_pictures(options.pictures, sys.stdin.buffer if sys.stdin else io.BytesIO())
    if found.skipped_line:
        log.warning(found.skipped_line)
    return PictureList(found.paths, names)


def _own_labels(bundle: Bundle) -> tuple[str, ...]:
    if not bundle.has(VOCABULARY):
        raise LabelError("the bundle has no vocabulary of its own; give a label file", argument="labels")
    return Vocabulary.read(
        bundle.file(VOCABULARY), graph=bundle.manifest.arch.has_graph, width=bundle.manifest.embed_dim
    ).labels


def _models(options: VerifyOptions, bundle: Bundle) -> tuple[list[Model], dict[str, SigRLError]]:
    """The models, the reference first: the checkpoint, or the bundle's most exact graph. And why which others do not open."""
    models = [_checkpoint(options.checkpoint, options.device, bundle.manifest)] if options.checkpoint else []
    not_run: dict[str, SigRLError] = {}
    held = bundle.precisions(None)
    for precision in options.precisions:
        bundle.precisions(precision)
    chosen = [p for p in held if not options.precisions or p in options.precisions]
    by_fineness = sorted(chosen, key=lambda precision: (precision.tolerance, list(Precision).index(precision)))
    for backend in options.backends or [backend.value for backend in Backend.named()]:
        opened = 0
        for precision in by_fineness:
            try:
                models.append(_open(options, bundle, backend, precision))
                opened += 1
            except SigRLError as error:
                not_run[f"{backend} {precision.value}"] = error
        if not opened and options.backends:
            failed = not_run[f"{backend} {by_fineness[0].value}"]
            if failed.argument in ("precision", "precisions") and not options.precisions:  # which nobody gave
                raise UsageError(f"runs none of {', '.join(p.value for p in by_fineness)}", argument="backends", value=backend)
            raise failed
    return models, not_run


def _open(options: VerifyOptions, bundle: Bundle, backend: str, precision: Precision) -> Model:
    how = EngineOptions(Backend(backend), Device(options.device), precision, build=False)
    recognizer = Recognizer(bundle.path, cache_dir=options.cache_dir, options=how)
    engine = recognizer.engine
    if backend == "tensorrt" and not hasattr(engine, "key"):  # it fell back
        raise UsageError("the bundle has no engine for this machine; build it with sigrl-deploy export tensorrt")
    return Model(bundle.path, engine.description, bundle.manifest.arch, precision, engine.device, recognizer)


def _checkpoint(checkpoint: CheckpointOptions, device: str, manifest: Manifest) -> Model:
    """The reference: the checkpoint, used as the bundle's manifest says."""
    require("torch", "open_clip", extra="export", argument="checkpoint", value=checkpoint.checkpoint)
    from sigrl_deploy.checkpoints.eager import load_eager

    as_exported = dataclasses.replace(
        checkpoint,
        arch=manifest.arch,
        topk=manifest.topk,
        template=manifest.template,
    )
    # The manifest's own fields: those of its contract's name may be others, as for weights that open_clip lists so.
    eager = dataclasses.replace(load_eager(as_exported, device=device), preprocess=manifest.preprocess)
    log.info("engine: %s", eager.description)
    path = Path(checkpoint.checkpoint)
    return Model(path, f"checkpoint, {eager.description}", manifest.arch, Precision.FP32, eager.device, eager)


def compare(
    exact: FloatArray,
    scores: FloatArray,
    model: Model,
    labels: Sequence[str],
    tolerance: float | None,
    threshold: float | FloatArray,
    its_map: float | None,
) -> Comparison:
    """exact, scores [N, C] fp32 of the same pictures and labels, threshold one or [C] → how they differ."""
    probabilities = model.arch.gives_probabilities
    expected = compared(exact, probabilities)
    errors, unit = score_errors(expected, compared(scores, probabilities)), unit_of(expected)
    flipped = flips(exact, scores, threshold)
    most = [int(i) for i in np.argsort(-flipped, kind="stable")[:_SHOWN_LABELS] if flipped[i]]
    return Comparison(
        description=model.description,
        precision=model.precision.value,
        tolerance=model.precision.tolerance if tolerance is None else tolerance,
        largest_error=errors.largest / unit,
        mean_error=errors.mean / unit,
        cosine=lowest_cosine(exact, scores),
        top1_agreement=agreement(exact, scores, 1),
        top5_overlap=overlap(exact, scores, 5),
        flips=float(flipped.sum() / exact.size),
        map=its_map,
        flipping={labels[i]: int(flipped[i]) for i in most},
    )


def _threshold(exact: FloatArray) -> float:
    """About TAGS labels per picture pass it. It lies between two neighbouring scores, so that rounding moves few across it."""
    ordered = -np.sort(-exact, axis=None)
    passing = min(TAGS * len(exact), max(1, ordered.size // 2))
    return float(ordered[passing - 1 : passing + 1].mean())


def _map(scores: FloatArray, targets: NDArray[np.int8]) -> float | None:
    try:
        require_scikit_learn()
    except UsageError as error:
        log.warning("mAP is left out: %s", error)
        return None
    return evaluate_scores(scores, targets).map_present


def _record(folder: Path, found: Verification) -> None:
    """Write the comparisons into the manifest, in place of earlier ones of the same engines."""
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    about = {"date": when, "reference": found.reference, "pictures": found.pictures, "labels": found.labels}
    new = [about | asdict(comparison) | {"within": comparison.within} for comparison in found.comparisons]
    said = {comparison.description for comparison in found.comparisons}

    def changed(manifest: Manifest) -> Manifest:
        kept = [entry for entry in manifest.verified if entry.get("description") not in said]
        return replace(manifest, verified=(*kept, *new))

    try:
        change_manifest(folder, changed)
    except ExportError as error:
        log.warning("the result was not recorded: %s", error)
