"""What runs on the nodes: an actor of Ray that tags the units it is given, and writes their rows."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from sigrl_deploy.bulk.destination import Destination, Part
from sigrl_deploy.bulk.parquet_files import read_rows
from sigrl_deploy.bulk.plan import Unit
from sigrl_deploy.bulk.sources import Kind
from sigrl_deploy.bulk.tar_files import read_members
from sigrl_deploy.errors import ClusterError, SigRLError, printable
from sigrl_deploy.ray.shipping import Shipped
from sigrl_deploy.ray.tagger import Tagger, content_of
from sigrl_deploy.recognizer.predictions import Record
from sigrl_deploy.recognizer.streaming import Content
from sigrl_deploy.storage import Place, reason

# A row for each picture, so that Ray's progress counts pictures; of a worker that cannot go on, one with a failure.
DONE = pa.schema(
    [
        ("bytes", pa.int64()),
        ("failed", pa.bool_()),
        ("failure", pa.string()),
        ("argument", pa.string()),
        ("value", pa.string()),
        ("exit_code", pa.int8()),
    ]
)


@dataclass(frozen=True)
class Reading:
    """How pictures are found in files; see `BulkOptions`."""

    column: str | None
    key: str | None
    endpoint: str | None

    def pictures(self, unit: Unit, skip: int = 0) -> Iterator[tuple[str, Content]]:
        """Names and contents of the pictures of a unit, without the first `skip`. Raises OSError."""
        if unit.kind is Kind.PICTURES:
            return ((url, content_of(Place(url, self.endpoint))) for url in unit.urls[skip:])
        place = Place(unit.urls[0], self.endpoint)
        if unit.kind is Kind.TAR:
            return read_members(place, skip)
        assert unit.group is not None
        assert unit.rows is not None
        return read_rows(place, unit.group, unit.rows, skip, self.column, self.key)


class TagPictures:
    """Ray shows the name of this class beside its progress. A failure of any kind is a row: Ray would start a worker again and
    again where the same failure waits for it.
    """

    def __init__(self, shipped: Shipped, reading: Reading, destination: Destination, rows_per_file: int) -> None:
        self._shipped, self._reading, self._destination, self._rows_per_file = shipped, reading, destination, rows_per_file

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """A batch of units, as JSON in the column `unit` → a table DONE for each file that is written."""
        for text in batch.column("unit").to_pylist():
            try:
                yield from map(_said, self._files(Unit.from_json(text)))
            except Exception as error:
                yield _failure(error)
                return

    @cached_property
    def _tagger(self) -> Tagger:
        # Not in the constructor: how often Ray repeats a task can be bounded to a few times, but not how often it constructs.
        return Tagger(self._shipped)

    def _files(self, unit: Unit) -> Iterator[Part]:
        """Write the files of a unit that are missing, and say what every one holds."""
        skip = 0
        for number in itertools.count():
            part = self._destination.part(unit.number, number)
            if part is None:
                break
            yield part
            if part.last:
                return
            skip += part.rows
        sizes: dict[int, int] = {}
        records = self._tagger.records(measured(self._reading.pictures(unit, skip), sizes))
        # One record is read ahead: only then is it known whether a file is the last.
        waiting = next(records, None)
        while True:
            rows = [] if waiting is None else [waiting, *itertools.islice(records, self._rows_per_file - 1)]
            waiting = next(records, None)
            yield self._write(unit, number, rows, sizes, last=waiting is None)
            if waiting is None:
                return
            number += 1

    def _write(self, unit: Unit, number: int, rows: list[Record], sizes: dict[int, int], last: bool) -> Part:
        errors = sum(record.error is not None for record in rows)
        part = Part(len(rows), errors, _taken(sizes, len(rows)), last, self._tagger.run)
        self._destination.write(unit.number, number, rows, part)
        return part


def measured(pictures: Iterator[tuple[str, Content]], sizes: dict[int, int]) -> Iterator[tuple[str, Content]]:
    """The pictures, with the bytes of each noted in `sizes` by its place, as far as they can be told."""
    for place, (name, content) in enumerate(pictures):
        sizes[place] = 0
        if isinstance(content, bytes):
            sizes[place] = len(content)
        elif isinstance(content, str):
            sizes[place] = _size(content)
        else:
            content = _noting(content, sizes, place)
        yield name, content


def _noting(read: Callable[[], bytes], sizes: dict[int, int], place: int) -> Callable[[], bytes]:
    def noted() -> bytes:
        content = read()
        sizes[place] = len(content)
        return content

    return noted


def _taken(sizes: dict[int, int], count: int) -> int:
    """The bytes of the `count` oldest pictures, which are forgotten."""
    return sum(sizes.pop(place) for place in list(itertools.islice(sizes, count)))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):
        return 0


def _said(part: Part) -> pa.Table:
    """The rows that the driver counts: the bytes of a file stand in its first row."""
    count = part.rows
    first = pa.array([part.bytes, *[0] * (count - 1)] if count else [], pa.int64())
    failed = pa.array([True] * part.errors + [False] * (count - part.errors), pa.bool_())
    return pa.Table.from_arrays([first, failed, *(pa.nulls(count, field.type) for field in list(DONE)[2:])], schema=DONE)


def _failure(error: Exception) -> pa.Table:
    """The row that ends a run: an error of this package as it is, any other in one line."""
    if not isinstance(error, SigRLError):
        line = reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}".splitlines()[0]
        error = ClusterError(f"a worker cannot go on ({printable(line)})")
    value = None if error.value is None else str(error.value)
    row = {"bytes": 0, "failed": False, "failure": error.problem, "argument": error.argument, "value": value}
    return pa.Table.from_pylist([row | {"exit_code": error.exit_code}], schema=DONE)
