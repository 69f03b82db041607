"""Records on standard output or in a file, as a table, JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import replacing
from sigrl_deploy.tagging import Record

FORMATS = ("table", "json", "jsonl", "csv")
_PATH_WIDTH = 48


class Writer:
    """Writes the records of one run to a text stream, as they come."""

    def __init__(self, stream: TextIO, labels: Sequence[str], all_scores: bool) -> None:
        self.stream = stream
        self.labels = labels
        self.all_scores = all_scores
        self.begin()

    def begin(self) -> None:
        """Write what comes before the first record."""

    def write(self, record: Record) -> None:
        """Write one record."""
        raise NotImplementedError

    def end(self) -> None:
        """Write what comes after the last record."""


def as_json(record: Record, labels: Sequence[str], all_scores: bool) -> dict[str, Any]:
    """`{"path", "tags": [{"label", "score"}]}`, `{"path", "scores": {label: score}}` or `{"path", "error"}`."""
    if record.error is not None or record.scores is None:
        return {"path": record.path, "error": record.error}
    if all_scores:
        return {"path": record.path, "scores": dict(zip(labels, map(_rounded, record.scores.tolist()), strict=True))}
    return {"path": record.path, "tags": [{"label": tag.label, "score": _rounded(tag.score)} for tag in record.tags]}


def _rounded(score: float) -> float:
    """The fp32 score without the digits that only its fp64 form has."""
    return float(f"{score:.7g}")


class JsonLinesWriter(Writer):
    """One JSON object a line; `run` names the bundle, vocabulary and options that made it: a run is resumed by its like."""

    run = ""

    def write(self, record: Record) -> None:
        values = as_json(record, self.labels, self.all_scores) | {"run": self.run}
        self.stream.write(json.dumps(values, ensure_ascii=False) + "\n")
        self.stream.flush()


class JsonWriter(Writer):
    """One JSON array."""

    def begin(self) -> None:
        self.stream.write("[")
        self.separator = "\n"

    def write(self, record: Record) -> None:
        self.stream.write(self.separator + json.dumps(as_json(record, self.labels, self.all_scores), ensure_ascii=False))
        self.separator = ",\n"

    def end(self) -> None:
        self.stream.write("\n]\n")


class CsvWriter(Writer):
    """A row a tag: path, label, score, error. With all scores a row a picture: path, error, then a column a label."""

    def begin(self) -> None:
        self.csv = csv.writer(self.stream, lineterminator="\n")
        self.csv.writerow(["path", "error", *self.labels] if self.all_scores else ["path", "label", "score", "error"])

    def write(self, record: Record) -> None:
        if self.all_scores:
            scores = [] if record.scores is None else map(_rounded, record.scores.tolist())
            self.csv.writerow([record.path, record.error or "", *scores])
        elif record.error is not None:
            self.csv.writerow([record.path, "", "", record.error])
        else:
            self.csv.writerows([record.path, tag.label, _rounded(tag.score), ""] for tag in record.tags)


class TableWriter(Writer):
    """Columns for people: picture, label, score."""

    def begin(self) -> None:
        self.label_width = min(40, max(5, *map(len, self.labels)))
        self._line("picture", "label", "  score")

    def write(self, record: Record) -> None:
        name = record.path if len(record.path) <= _PATH_WIDTH else "…" + record.path[1 - _PATH_WIDTH :]
        if record.error is not None or record.scores is None:
            self._line(name, "error", record.error or "")
            return
        tags = (
            zip(self.labels, record.scores.tolist(), strict=True)
            if self.all_scores
            else ((t.label, t.score) for t in record.tags)
        )
        for label, score in tags:
            self._line(name, label, f"{score:7.4f}")
            name = ""
        if name:
            self._line(name, "-", "no label above the threshold")

    def _line(self, name: str, label: str, rest: str) -> None:
        self.stream.write(f"{name:<{_PATH_WIDTH}}  {label:<{self.label_width}}  {rest}\n")


_WRITERS: dict[str, type[Writer]] = {"table": TableWriter, "json": JsonWriter, "jsonl": JsonLinesWriter, "csv": CsvWriter}


def choose_format(name: str | None, out: Path | None) -> str:
    """The format asked for, or the one that the output file's name ends with, or a table."""
    suffix = out.suffix.lower().lstrip(".") if out else ""
    return name or (suffix if suffix in FORMATS else "table")


@contextmanager
def open_writer(name: str, out: Path | None, stdout: TextIO, labels: Sequence[str], all_scores: bool) -> Iterator[Writer]:
    """A writer to standard output, or to a file that appears when the block ends well. See also `open_resumable`."""
    if out is None:
        writer = _WRITERS[name](stdout, labels, all_scores)
        yield writer
        writer.end()
        return
    with _out_errors(out), replacing(out) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = _WRITERS[name](stream, labels, all_scores)
        yield writer
        writer.end()


def partial_path(out: Path) -> Path:
    """Where an unfinished JSON lines run keeps its records."""
    return out.with_name(out.name + ".partial")


@contextmanager
def open_resumable(out: Path, labels: Sequence[str], all_scores: bool, run: str) -> Iterator[JsonLinesWriter]:
    """A JSON lines writer to `OUT.partial`, renamed to `OUT` when the block ends well, else kept for `--resume`."""
    partial = partial_path(out)
    with _out_errors(out):
        with partial.open("a", encoding="utf-8", newline="") as stream:
            writer = JsonLinesWriter(stream, labels, all_scores)
            writer.run = run
            yield writer
        partial.replace(out)


@contextmanager
def _out_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"--out {out}: cannot be written ({error.strerror or error}); free space or choose another place"
        ) from None


def resume(out: Path, run: str) -> tuple[set[str], int]:
    """Prepare `OUT.partial` for going on: its half-written last line is cut off. Returns the paths done, and how many failed.

    A finished `OUT` is continued too, with the pictures it has not. Raises UsageError where the file is of another run.
    """
    partial = partial_path(out)
    with _out_errors(out):
        if not partial.exists() and out.exists():
            with replacing(partial) as temporary:
                temporary.write_bytes(out.read_bytes())
        if not partial.exists():
            return set(), 0
        done: dict[str, bool] = {}
        end = 0
        with partial.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                record = _parse(line, partial, number, run)
                done[record["path"]] = "error" in record
        os.truncate(partial, end)
    return set(done), sum(done.values())


def _parse(line: bytes, path: Path, number: int, run: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        found = record["run"]
        record["path"]
    except (ValueError, KeyError, TypeError):
        raise UsageError(
            f"{path}, line {number}: no record of sigrl-deploy infer; move the file away, or give another --out"
        ) from None
    if found != run:
        raise UsageError(
            f"{path}, line {number}: was written with another bundle, vocabulary or options; run as then, or move the file away"
        )
    return record
