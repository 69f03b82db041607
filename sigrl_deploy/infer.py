"""One run of `sigrl-deploy infer`."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from sigrl_deploy.errors import UsageError, printable
from sigrl_deploy.heatmaps import is_heatmap_name, open_folder, write_heatmaps
from sigrl_deploy.output import WRITERS, choose_format, open_output, partial_path, resume
from sigrl_deploy.recognizer import Recognizer
from sigrl_deploy.tagging import tag_pictures
from sigrl_deploy.vocabulary import Vocabulary

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


def run_infer(options: InferOptions) -> int:
    """Tag the pictures and write the records and heat maps. Returns how many pictures of the output could not be read."""
    format_ = choose_format(options.format, options.out)
    _check_out(options, format_)
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
    done, failed = resume(options.out, run) if options.resume and options.out else (set(), 0)
    asked = _without_heatmaps(options.pictures, options.heatmaps) if options.heatmaps else options.pictures
    pictures = [path for path in asked if path not in done]
    if done:
        log.info("resuming: %d pictures are done, %d to go", len(asked) - len(pictures), len(pictures))
    records = tag_pictures(
        recognizer,
        vocabulary,
        pictures,
        batch_size=options.batch_size or (16 if recognizer.engine.device == "cuda" else 1),
        top=len(vocabulary) if options.all_scores else options.top,
        threshold=options.threshold,
        evidence=options.heatmaps is not None,
    )
    # A bar between the lines of a table would only be in the way.
    hidden = options.out is None and sys.stdout.isatty()
    try:
        with open_output(format_, options.out, options.resume) as stream:
            writer = WRITERS[format_](stream, vocabulary.labels, options.all_scores, run)
            for record in tqdm(records, total=len(pictures), unit="picture", disable=True if hidden else None):
                writer.write(write_heatmaps(record, options.heatmaps, manifest) if options.heatmaps else record)
                failed += record.error is not None
            writer.end()
    except KeyboardInterrupt:
        if options.out and format_ == "jsonl":
            log.error("%s keeps what is done; go on with --resume", partial_path(options.out))
        raise
    return failed


def _check_out(options: InferOptions, format_: str) -> None:
    out = options.out
    if options.resume and (out is None or format_ != "jsonl"):
        raise UsageError("--resume: only a run of --format jsonl --out FILE can be resumed; give both")
    if out is None:
        if sys.stdout is None:
            raise UsageError("standard output: is closed; open it, or give --out FILE")
        return
    if not os.path.isdir(out.parent):
        raise UsageError(f"--out {out}: the folder {out.parent} is not there; create it, or choose another place")
    # A file is written beside and renamed, which would put a regular file in the place of a device or a pipe.
    if os.path.exists(out) and not os.path.isfile(out):
        raise UsageError(f"--out {out}: is a folder, device or pipe, expected a file; leave --out out to redirect the output")
    read = [*options.pictures, options.labels or ""]
    if any(_same_file(path, out) for path in read):
        raise UsageError(f"--out {out}: is one of the files to read and would be lost; choose another place")
    if format_ == "jsonl" and not options.resume and os.path.exists(partial_path(out)):
        raise UsageError(
            f"--out {out}: an interrupted run left {partial_path(out).name}; go on with --resume, or remove that file"
        )


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
