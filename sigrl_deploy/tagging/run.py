"""One run of `sigrl-deploy infer`."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from sigrl_deploy.errors import UsageError, printable
from sigrl_deploy.progress import Progress
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.recognizer.predictions import Record
from sigrl_deploy.tagging.heatmaps import is_heatmap_name, open_folder, write_heatmaps
from sigrl_deploy.tagging.output import WRITERS, RawCsvWriter, choose_format, open_output
from sigrl_deploy.tagging.partial import Partial, check_fresh, open_partial, partial_path, records_kept
from sigrl_deploy.vocabulary.vocabulary import Vocabulary

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InferOptions:
    """The command's options; None means its default."""

    pictures: list[str]
    bundle: Path
    labels: Path | None
    top: int
    threshold: float | None
    all_scores: bool
    format: str | None
    out: Path | None
    resume: bool
    heatmaps: Path | None
    batch_size: int | None
    device: str
    cache_dir: Path | None
    backend: str = "auto"
    precision: str | None = None
    unfused: tuple[str, ...] = ()
    device_preprocess: bool = False
    build: bool = True
    overwrite: bool = False
    retry_errors: bool = False
    raw_csv: bool = False


def run_infer(options: InferOptions) -> int:
    """Tag the pictures and write the records and heat maps. Returns how many pictures of the output could not be read."""
    format_ = _check_output(options)
    recognizer = Recognizer(
        options.bundle,
        device=options.device,
        backend=options.backend,
        precision=options.precision,
        cache_dir=options.cache_dir,
        unfused=options.unfused,
        device_preprocess=options.device_preprocess,
        build=options.build,
    )
    manifest = recognizer.bundle.manifest
    if options.heatmaps:
        if not manifest.arch.has_local:
            raise UsageError(
                f"--heatmaps: {manifest.arch.value} scores whole pictures, so there is no evidence by patch; leave it out"
            )
        open_folder(options.heatmaps)
    vocabulary = recognizer.vocabulary(options.labels)
    run = _run_name(options, recognizer, vocabulary)
    asked = _without_heatmaps(options.pictures, options.heatmaps) if options.heatmaps else options.pictures
    try:
        with _opened(options, format_, run) as output:
            failed = sum(output.done.values())
            pictures = [path for path in asked if path not in output.done]
            if output.done:
                log.info("resuming: %d pictures are done, %d to go", len(asked) - len(pictures), len(pictures))
            writer = (RawCsvWriter if options.raw_csv else WRITERS[format_])(
                output.stream, vocabulary.labels, options.all_scores, run
            )
            for record in _tagged(options, recognizer, vocabulary, pictures):
                writer.write(record, write_heatmaps(record, options.heatmaps, manifest) if options.heatmaps else ())
                failed += record.error is not None
            writer.end()
    except KeyboardInterrupt:
        if options.out and format_ == "jsonl" and (kept := records_kept(options.out)):
            log.error("%s keeps %s; go on with --resume", partial_path(options.out), kept)
        elif options.out and format_ != "jsonl":
            log.error("%s is not written; with --format jsonl an interrupted run keeps what it has", options.out)
        raise
    return failed


def _tagged(options: InferOptions, recognizer: Recognizer, vocabulary: Vocabulary, pictures: list[str]) -> Iterator[Record]:
    """The records, with progress shown beside."""
    records = recognizer.stream(
        pictures,
        vocabulary,
        batch_size=options.batch_size,
        top=len(vocabulary) if options.all_scores else options.top,
        threshold=options.threshold,
        evidence=options.heatmaps is not None,
    )
    start = time.perf_counter()
    # A bar between the lines of a table would only be in the way.
    with Progress(len(pictures), "picture", hidden=options.out is None and sys.stdout.isatty()) as progress:
        for record in records:
            yield record
            progress.advance()
    log.debug("%d pictures in %.2f s", len(pictures), time.perf_counter() - start)


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
    """The format. Raises UsageError where options contradict each other, or --out cannot be written or would lose something."""
    out = options.out
    if out is not None:
        _check_place(out, [*options.pictures, options.labels or ""])
    elif sys.stdout is None:
        raise UsageError("standard output: is closed; open it, or give --out FILE")
    format_ = choose_format(options.format, out)
    if options.resume and (out is None or format_ != "jsonl"):
        raise UsageError("--resume: only a run of --format jsonl --out FILE can be resumed; give both")
    if options.resume and options.overwrite:
        raise UsageError("--resume and --overwrite: one goes on with a file, the other starts anew; give one of them")
    if options.retry_errors and not options.resume:
        raise UsageError("--retry-errors: is about a run that goes on; add --resume")
    if options.overwrite and out is None:
        raise UsageError("--overwrite: is about a file; give --out FILE, or leave it out")
    if options.raw_csv and format_ != "csv":
        raise UsageError("--raw-csv: is about --format csv; give that, or leave it out")
    if out is not None and not (options.resume or options.overwrite):
        check_fresh(out, resumable=format_ == "jsonl")
    return format_


def _check_place(out: Path, read: list[str | Path]) -> None:
    if not os.path.isdir(out.parent):
        raise UsageError(f"--out {out}: the folder {out.parent} is not there; create it, or choose another place")
    # A file is written beside and renamed, which would put a regular file in the place of a device or a pipe.
    if os.path.exists(out) and not os.path.isfile(out):
        raise UsageError(f"--out {out}: is a folder, device or pipe, expected a file; leave --out out to redirect the output")
    if any(_same_file(path, out) for path in read):
        raise UsageError(f"--out {out}: is one of the files to read and would be lost; choose another place")


def _without_heatmaps(pictures: list[str], folder: Path) -> list[str]:
    """Where DIR lies among the pictures, what an earlier run drew there would be tagged, and drawn again, by the next."""
    kept = [
        path
        for path in pictures
        if not (is_heatmap_name(os.path.basename(path)) and _same_file(os.path.dirname(path) or ".", folder))
    ]
    if len(kept) < len(pictures):
        log.info("%d heat maps in %s are not tagged", len(pictures) - len(kept), printable(str(folder)))
    return kept


def _same_file(path: str | Path, out: Path) -> bool:
    try:
        return os.path.samefile(path, out)
    except (OSError, ValueError):
        return False


def _run_name(options: InferOptions, recognizer: Recognizer, vocabulary: Vocabulary) -> str:
    """Names everything that a record depends on beside its picture."""
    # What was built or measured since changes no record.
    manifest = replace(recognizer.bundle.manifest, engines=(), verified=())
    engine = recognizer.engine
    how = type(engine).__name__, engine.precision.value, options.device_preprocess
    parts = [manifest.to_json(), how, vocabulary.labels, options.top, options.threshold, options.all_scores]
    if options.heatmaps:
        parts.append(str(options.heatmaps))
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
