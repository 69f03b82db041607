"""One run of `sigrl-deploy infer`."""

from __future__ import annotations

import hashlib
import logging
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sigrl_deploy.errors import UsageError
from sigrl_deploy.output import Writer, choose_format, open_resumable, open_writer, partial_path, resume
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
    batch_size: int | None
    device: str
    cache_dir: Path | None


def run_infer(options: InferOptions) -> int:
    """Tag the pictures and write the records. Returns how many pictures of the output could not be read."""
    format_ = choose_format(options.format, options.out)
    _check_out(options, format_)
    recognizer = Recognizer(options.bundle, device=options.device, cache_dir=options.cache_dir)
    vocabulary = recognizer.vocabulary(options.labels)
    run = _run_name(options, recognizer, vocabulary)
    done, failed = resume(options.out, run) if options.resume and options.out else (set(), 0)
    pictures = [path for path in options.pictures if path not in done]
    if done:
        log.info("resuming: %d pictures are done, %d to go", len(options.pictures) - len(pictures), len(pictures))
    records = tag_pictures(
        recognizer,
        vocabulary,
        pictures,
        batch_size=options.batch_size or (16 if recognizer.engine.device == "cuda" else 1),
        top=len(vocabulary) if options.all_scores else options.top,
        threshold=options.threshold,
    )
    # A bar between the lines of a table would only be in the way.
    hidden = options.out is None and sys.stdout.isatty()
    with _writer(options, format_, vocabulary, run) as writer:
        for record in tqdm(records, total=len(pictures), unit="picture", disable=True if hidden else None):
            writer.write(record)
            failed += record.error is not None
    return failed


def _check_out(options: InferOptions, format_: str) -> None:
    if options.resume and (options.out is None or format_ != "jsonl"):
        raise UsageError("--resume: only a run of --format jsonl --out FILE can be resumed; give both")
    if options.out is None:
        return
    if options.out.is_dir() or not options.out.parent.is_dir():
        raise UsageError(f"--out {options.out}: expected a file in a folder that exists")
    if format_ == "jsonl" and not options.resume and partial_path(options.out).exists():
        raise UsageError(
            f"--out {options.out}: an interrupted run left {partial_path(options.out).name}; go on with --resume, "
            "or remove that file"
        )


def _writer(options: InferOptions, format_: str, vocabulary: Vocabulary, run: str) -> AbstractContextManager[Writer]:
    if format_ == "jsonl" and options.out is not None:
        return open_resumable(options.out, vocabulary.labels, options.all_scores, run)
    return open_writer(format_, options.out, sys.stdout, vocabulary.labels, options.all_scores)


def _run_name(options: InferOptions, recognizer: Recognizer, vocabulary: Vocabulary) -> str:
    """Names everything that a record depends on beside its picture."""
    manifest = recognizer.bundle.manifest
    parts = [
        sorted(manifest.files.items()),
        vocabulary.digest,
        manifest.topk,
        options.top,
        options.threshold,
        options.all_scores,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
