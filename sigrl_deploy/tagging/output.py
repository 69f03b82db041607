"""Records on standard output or in a file, as a table, JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

import numpy as np

from sigrl_deploy.config import Crop
from sigrl_deploy.errors import UsageError, printable
from sigrl_deploy.files import replacing
from sigrl_deploy.recognizer.predictions import Prediction, Record

_PATH_WIDTH = 48
_ENCODING_ERRORS = "backslashreplace"
_FORMATS = {".jsonl": "jsonl", ".json": "json", ".csv": "csv", ".txt": "table"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes text that begins so for a formula


@dataclass(frozen=True)
class Heatmaps:
    """The files that were drawn for a picture; None in place of one that could not be drawn.

    `tags` has one for each prediction; where it is None, `sheet` is one for all.
    """

    sheet: str | None = None
    tags: tuple[str | None, ...] | None = None


@dataclass(frozen=True)
class Shown:
    """What the records of a run say besides paths, labels and scores.

    labels: of the vocabulary; with `all_scores` a record has the score of each of them in place of tags.
    crop: the recognizer's.
    of_tags: which of a prediction's `threshold`, `probability` and `child` a tag has.
    thresholds: the file that decided, by name.
    """

    labels: Sequence[str]
    all_scores: bool = False
    crop: Crop = Crop.CENTRE
    of_tags: Sequence[str] = ()
    thresholds: str | None = None


class Writer:
    """Writes the records of one run to a text stream, as they come.

    `run` names the bundle, labels and options that make the records, as `run_name` does: only the same can resume it.
    """

    def __init__(self, stream: TextIO, shown: Shown, run: str) -> None:
        self.stream = stream
        self.shown = shown
        self.run = run
        self.begin()

    def begin(self) -> None:
        """Write what comes before the first record."""

    def write(self, record: Record, heatmaps: Heatmaps | None = None) -> None:
        """Write one record."""
        raise NotImplementedError

    def end(self) -> None:
        """Write what comes after the last record."""


def as_json(record: Record, shown: Shown, heatmaps: Heatmaps | None = None) -> dict[str, Any]:
    """`{"path", "tags": [{"label", "score"}]}`, `{"path", "scores": {label: score}}` or `{"path", "error"}`.

    Where heat maps were asked for, a record with tags names their file as "heatmap", or each tag its own: null where there is
    none, since the picture had vanished or has no tags. A "crop" other than the contract's is named behind the path, and the
    file of "thresholds" where one decided. Tags have their "threshold" and "probability" where there is one, and parents the
    "child" that brought them.
    """
    if record.error is not None or record.scores is None:
        return {"path": record.path, "error": record.error}
    picture = {"path": record.path} | ({} if shown.crop is Crop.CENTRE else {"crop": shown.crop.value})
    if shown.all_scores:
        return picture | {"scores": dict(zip(shown.labels, map(rounded, record.scores.tolist()), strict=True))}
    picture |= {} if shown.thresholds is None else {"thresholds": shown.thresholds}
    tags = [_tag(prediction, shown.of_tags) for prediction in record.predictions]
    if heatmaps is None:
        return picture | {"tags": tags}
    if heatmaps.tags is None:
        return picture | {"tags": tags, "heatmap": heatmaps.sheet}
    return picture | {"tags": [tag | {"heatmap": file} for tag, file in zip(tags, heatmaps.tags, strict=True)]}


def _tag(prediction: Prediction, more: Sequence[str]) -> dict[str, Any]:
    values = {"label": prediction.label, "score": rounded(prediction.score)}
    for name in more:
        value = getattr(prediction, name)
        if value is not None:
            values[name] = rounded(value) if isinstance(value, float) else value
    return values


def rounded(score: float) -> float:
    """The fewest digits that read back as the same fp32 score."""
    return float(str(np.float32(score)))


class JsonLinesWriter(Writer):
    """One JSON object per line, written out at once: an interrupted run keeps what it has done."""

    def write(self, record: Record, heatmaps: Heatmaps | None = None) -> None:
        values = as_json(record, self.shown, heatmaps) | {"run": self.run}
        self.stream.write(json.dumps(values, ensure_ascii=False) + "\n")
        self.stream.flush()


class JsonWriter(Writer):
    """One JSON array."""

    def begin(self) -> None:
        self.stream.write("[")
        self.separator = "\n"

    def write(self, record: Record, heatmaps: Heatmaps | None = None) -> None:
        values = as_json(record, self.shown, heatmaps)
        self.stream.write(self.separator + json.dumps(values, ensure_ascii=False))
        self.separator = ",\n"

    def end(self) -> None:
        self.stream.write("\n]\n")


class CsvWriter(Writer):
    """One row per tag: path, label, score, error. A picture without tags has a row with neither label nor error.

    Where tags have a threshold, a probability or a child, they are columns behind the score; the file of thresholds is the last
    column. With all scores, one row per picture: path, error, then one column per label. Text that a spreadsheet would run as a
    formula begins with a single quote.
    """

    def begin(self) -> None:
        # Text is always quoted: before Python 3.13 the writer leaves a carriage return in a file name bare.
        self.csv = csv.writer(self.stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        shown = self.shown
        self.decided = [] if shown.thresholds is None else [shown.thresholds]
        columns = ["path", "label", "score", *shown.of_tags, "error", *["thresholds"] * len(self.decided)]
        self._row(*(["path", "error", *shown.labels] if shown.all_scores else columns))

    def write(self, record: Record, heatmaps: Heatmaps | None = None) -> None:
        error, shown = record.error or "", self.shown
        if shown.all_scores:
            scores = [""] * len(shown.labels) if record.scores is None else map(rounded, record.scores.tolist())
            self._row(record.path, error, *scores)
        elif record.predictions:
            for prediction in record.predictions:
                tag = _tag(prediction, shown.of_tags)
                cells = [tag.get(name, "") for name in ("label", "score", *shown.of_tags)]
                self._row(record.path, *cells, "", *self.decided)
        else:
            self._row(record.path, "", "", *[""] * len(shown.of_tags), error, *self.decided)

    def _row(self, *cells: str | float) -> None:
        self.csv.writerow([self.text(cell) if isinstance(cell, str) else cell for cell in cells])

    def text(self, cell: str) -> str:
        """A text as it is written."""
        return f"'{cell}" if cell.startswith(_FORMULA) else cell


class RawCsvWriter(CsvWriter):
    """The same with every text unchanged: for programs, which do not run formulas."""

    def text(self, cell: str) -> str:
        """See `CsvWriter.text`."""
        return cell


class TableWriter(Writer):
    """Columns for people: picture, label, score."""

    def begin(self) -> None:
        self.label_width = min(40, max(5, *(len(printable(label)) for label in self.shown.labels)))
        self._line("picture", "label", "  ".join(["  score", *self.shown.of_tags]))

    def write(self, record: Record, heatmaps: Heatmaps | None = None) -> None:
        name = printable(record.path)
        name = name if len(name) <= _PATH_WIDTH else "…" + name[1 - _PATH_WIDTH :]
        if record.error is not None or record.scores is None:
            self._line(name, "error", record.error or "")
            return
        if self.shown.all_scores:
            rows = [(label, f"{score:7.4f}") for label, score in zip(self.shown.labels, record.scores.tolist(), strict=True)]
        else:
            rows = [(tag.label, self._rest(tag)) for tag in record.predictions]
        for label, rest in rows:
            self._line(name, printable(label), rest)
            name = ""
        if name:
            self._line(name, "-", "no label above the threshold")

    def _rest(self, tag: Prediction) -> str:
        """What follows the label: score, and what else the tags of this run have."""
        cells = [f"{tag.score:7.4f}"]
        for column in self.shown.of_tags:
            value = getattr(tag, column)
            cells.append(f"{value:{len(column)}.4f}" if isinstance(value, float) else printable(value or "").ljust(len(column)))
        return "  ".join(cells).rstrip()

    def _line(self, name: str, label: str, rest: str) -> None:
        self.stream.write(f"{name:<{_PATH_WIDTH}}  {label:<{self.label_width}}  {rest}\n")


WRITERS: dict[str, type[Writer]] = {"table": TableWriter, "json": JsonWriter, "jsonl": JsonLinesWriter, "csv": CsvWriter}


def choose_format(name: str | None, out: Path | None) -> str:
    """The format asked for, or the one that fits the ending of the output file; a table on standard output.

    Raises UsageError where the ending is none of those known.
    """
    if name or out is None:
        return name or "table"
    if out.suffix.lower() not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise UsageError(f"no format has this ending; expected {known} (a table), or give `format`", argument="out", value=out)
    return _FORMATS[out.suffix.lower()]


def check_place(out: Path, read: Sequence[str | Path], argument: str = "out") -> None:
    """Raise UsageError where a file cannot be written in its place, or is one of those to read; `argument` named it."""
    if not os.path.isdir(out.parent):
        problem = f"the folder {out.parent} does not exist; create it, or choose another place"
        raise UsageError(problem, argument=argument, value=out)
    # A file is written beside and renamed, which would put a regular file in the place of a device or a pipe.
    if os.path.exists(out) and not os.path.isfile(out):
        problem = "is a folder, device or pipe, expected a file; leave it out to redirect standard output"
        raise UsageError(problem, argument=argument, value=out)
    if any(_same_file(path, out) for path in read):
        problem = "is one of the files to read and would be lost; choose another place"
        raise UsageError(problem, argument=argument, value=out)


def _same_file(path: str | Path, out: Path) -> bool:
    try:
        return os.path.samefile(path, out)
    except (OSError, ValueError):
        return False


@contextmanager
def open_output(format_: str, out: Path | None) -> Iterator[TextIO]:
    """Standard output (`out` None), or a file that appears when the block ends without an error.

    JSON lines that can be resumed are written by `open_partial` instead.

    Bytes of a file name that are not text are written as `\\udcXX`, which in JSON is the escape that reads back as the same
    name.

    Raises UsageError where the output cannot be written, BrokenPipeError where nobody reads standard output any more.
    """
    if out is None:
        with output_errors(None):
            _set_encoding(sys.stdout, format_)
            yield sys.stdout
            sys.stdout.flush()
    else:
        with output_errors(out), replacing(out) as temporary, open_text(temporary, "w") as stream:
            yield stream


def _set_encoding(stream: TextIO, format_: str) -> None:
    if isinstance(stream, io.TextIOWrapper):
        # A table is for the terminal, in its encoding; the other formats are for programs, and always UTF-8.
        stream.reconfigure(encoding=stream.encoding if format_ == "table" else "utf-8", errors=_ENCODING_ERRORS)


def open_text(path: Path, mode: str) -> TextIO:
    """A file of records, which can hold any name that a picture may have."""
    return cast(TextIO, path.open(mode, encoding="utf-8", errors=_ENCODING_ERRORS, newline=""))


@contextmanager
def output_errors(path: Path | None, argument: str = "out", advice: str = "") -> Iterator[None]:
    """An OSError in the block becomes a UsageError: `path`, or standard output, cannot be written. A BrokenPipeError stays one.

    `advice` goes on behind the error's own.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        problem = f"cannot be written ({error.strerror or error}); free space or choose another place{advice}"
        if path is None:
            raise UsageError(f"standard output {problem}") from None
        raise UsageError(problem, argument=argument, value=path) from None
