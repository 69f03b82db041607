"""One run of `sigrl-deploy infer`."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sigrl_deploy.bundle.manifest import MANIFEST, Manifest
from sigrl_deploy.config import Crop
from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import UsageError
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.progress import Progress
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.predictions import Record
from sigrl_deploy.recognizer.selection import Selection, no_places
from sigrl_deploy.recognizer.thresholds import Thresholds, read_thresholds
from sigrl_deploy.recognizer.vocabularies import asked_labels
from sigrl_deploy.tagging.drawing import MOST_TAGS
from sigrl_deploy.tagging.heatmaps import is_heatmap_name, open_folder, write_heatmaps
from sigrl_deploy.tagging.output import WRITERS, Heatmaps, RawCsvWriter, Shown, check_place, choose_format, open_output
from sigrl_deploy.tagging.partial import Partial, check_fresh, open_partial
from sigrl_deploy.tagging.run_name import run_name
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferOptions:
    """What to tag, with what, and where the records go. None means the default.

    pictures: paths; `find_pictures` makes them of folders and globs.
    named: those of them that were named one by one, and are tagged even where they look like heat maps.
    labels: a label file; None is the bundle's own vocabulary.
    background: in place of what the label file says, see `LabelSet`.
    thresholds: a file of thresholds; `rescale_thresholds` lets it be one for other labels.
    all_scores: every label's score in place of the best labels.
    format: "table", "json", "jsonl" or "csv"; None goes by the ending of `out`.
    out: a file; None is standard output.
    resume: continue the JSON lines of an interrupted run; `retry_errors` then tries pictures again that failed.
    overwrite: replace `out`, and what an interrupted run left of it.
    heatmaps: the folder for heat maps, one file for each picture; with `heatmap_per_tag` one for each tag.
    raw_csv: no quote before text that a spreadsheet would run as a formula.

    The others are those of `Recognizer`, with `engine` for its `options`, and of `Recognizer.stream`.
    """

    pictures: list[str]
    bundle: Path
    labels: Path | None
    top: int | None
    threshold: float | None
    all_scores: bool
    format: str | None
    out: Path | None
    resume: bool
    heatmaps: Path | None
    batch_size: int | None
    cache_dir: Path | None
    engine: EngineOptions
    crop: Crop | str = Crop.CENTRE
    overwrite: bool = False
    retry_errors: bool = False
    raw_csv: bool = False
    named: frozenset[str] = frozenset()
    heatmap_per_tag: bool = False
    background: str | None = None
    thresholds: Path | None = None
    rescale_thresholds: bool = False


def run_infer(options: InferOptions) -> int:
    """Tag the pictures and write the records and heat maps. Returns how many pictures of the output could not be read."""
    format_ = _check_output(options)
    thresholds = read_thresholds(options.thresholds, options.rescale_thresholds)
    labels = None if options.labels is None else read_label_set(options.labels)
    recognizer = Recognizer(
        options.bundle,
        cache_dir=options.cache_dir,
        crop=options.crop,
        options=options.engine,
    )
    manifest = recognizer.bundle.manifest
    if options.heatmaps:
        if not manifest.arch.has_places:
            raise UsageError(no_places(manifest.arch), argument="heatmaps")
        open_folder(options.heatmaps)
        most = math.inf if options.top is None and thresholds is not None else options.top or 0
        if most > MOST_TAGS and not options.heatmap_per_tag:
            log.warning("heat maps show the %d best tags of a picture; `heatmap_per_tag` draws all", MOST_TAGS)
    vocabulary = recognizer.vocabulary(asked_labels(labels, options.background, recognizer.vocabulary))
    # Refused before the output begins.
    selection = recognizer.selection(vocabulary, options.top, options.threshold, thresholds, options.heatmaps is not None)
    drawn = options.heatmaps and (str(options.heatmaps), "per tag" if options.heatmap_per_tag else "per picture")
    chosen = options.top, options.threshold, options.all_scores, drawn
    run = run_name(recognizer, vocabulary, thresholds, chosen, options.engine.device_preprocess)
    shown = Shown(
        vocabulary.labels,
        options.all_scores,
        recognizer.crop,
        _of_tags(vocabulary, selection),
        None if thresholds is None else thresholds.path.name,
    )
    asked = _without_heatmaps(options.pictures, options.named)
    with _opened(options, format_, run) as output:
        failed = sum(output.done.values())
        pictures = [path for path in asked if path not in output.done]
        if output.done:
            log.info("resuming: %d pictures are done, %d to go", len(asked) - len(pictures), len(pictures))
        writer = (RawCsvWriter if options.raw_csv else WRITERS[format_])(output.stream, shown, run)
        for record in _tagged(options, recognizer, vocabulary, thresholds, pictures):
            writer.write(record, _drawn(options, record, manifest))
            failed += record.error is not None
        writer.end()
    return failed


def _of_tags(vocabulary: Vocabulary, selection: Selection) -> list[str]:
    """What tags say besides label and score. A threshold that is the same for all goes without saying."""
    readout = vocabulary.readout
    said = {
        "threshold": selection.limits is not None or (readout is not None and readout.thresholds is not None),
        "probability": selection.probabilities is not None,
        "child": readout is not None and any(readout.ancestors),
    }
    return [name for name, is_said in said.items() if is_said]


def _tagged(
    options: InferOptions, recognizer: Recognizer, vocabulary: Vocabulary, thresholds: Thresholds | None, pictures: list[str]
) -> Iterator[Record]:
    """The records, with progress shown beside."""
    records = recognizer.stream(
        pictures,
        vocabulary,
        batch_size=options.batch_size,
        top=len(vocabulary) if options.all_scores else options.top,
        threshold=options.threshold,
        thresholds=thresholds,
        evidence=options.heatmaps is not None,
    )
    start = time.perf_counter()
    # A bar between the lines of a table would only be in the way.
    with Progress(len(pictures), "picture", hidden=options.out is None and sys.stdout.isatty()) as progress:
        for record in records:
            yield record
            progress.advance()
    log.debug("%d pictures in %.2f s", len(pictures), time.perf_counter() - start)


def _drawn(options: InferOptions, record: Record, manifest: Manifest) -> Heatmaps | None:
    if options.heatmaps is None:
        return None
    return write_heatmaps(record, options.heatmaps, manifest, options.heatmap_per_tag)


@contextmanager
def _opened(options: InferOptions, format_: str, run: str) -> Iterator[Partial]:
    if options.out and format_ == "jsonl":
        how = {name: getattr(options, name) for name in ("resume", "retry_errors", "overwrite")}
        with open_partial(options.out, run, **how) as partial:
            yield partial
    else:
        with open_output(format_, options.out) as stream:
            yield Partial(stream, {})


def _check_output(options: InferOptions) -> str:
    """The format. Raises UsageError where options contradict each other, or `out` cannot be written or would lose something."""
    out = options.out
    if out is not None:
        read = [options.labels, options.thresholds, options.background, options.bundle / MANIFEST]
        check_place(out, [*options.pictures, *(path for path in read if path)])
    elif sys.stdout is None:
        raise UsageError("standard output is closed; open it, or give `out`")
    format_ = choose_format(options.format, out)
    if options.resume and (out is None or format_ != "jsonl"):
        raise UsageError("only a run with `format='jsonl'` and `out` can be resumed; give both", argument="resume")
    if options.resume and options.overwrite:
        raise UsageError("continues a file, and `overwrite` starts it again; give one of the two", argument="resume")
    if options.retry_errors and not options.resume:
        raise UsageError("is for a run that is continued; add `resume`", argument="retry_errors")
    if options.overwrite and out is None:
        raise UsageError("is for a file; give `out`, or leave it out", argument="overwrite")
    if options.heatmap_per_tag and options.heatmaps is None:
        raise UsageError("says how heat maps are drawn; give `heatmaps` too, or leave it out", argument="heatmap_per_tag")
    if options.raw_csv and format_ != "csv":
        raise UsageError("is for `format='csv'`; give that, or leave it out", argument="raw_csv")
    if out is not None and not (options.resume or options.overwrite):
        check_fresh(out, resumable=format_ == "jsonl")
    return format_


def _without_heatmaps(pictures: list[str], named: frozenset[str]) -> list[str]:
    """Heat maps that an earlier run drew into a folder of pictures are no pictures to tag."""
    kept = [path for path in pictures if path in named or not is_heatmap_name(os.path.basename(path))]
    if len(kept) < len(pictures):
        count = len(pictures) - len(kept)
        log.info("%d heat map%s of an earlier run %s left out", count, *(("", "is") if count == 1 else ("s", "are")))
    return kept
