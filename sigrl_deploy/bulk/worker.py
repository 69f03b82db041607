"""What runs on the nodes: an actor of Ray that tags the units it is given, and writes their rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import ray

from sigrl_deploy.bulk.parts import Part, Parts
from sigrl_deploy.bulk.plan import Plan, Unit
from sigrl_deploy.bulk.reading import Reading, Sizes
from sigrl_deploy.errors import ClusterError, SigRLError, UsageError, printable
from sigrl_deploy.ray.shipping import Shipped
from sigrl_deploy.ray.tagger import Tagger
from sigrl_deploy.recognizer.predictions import Record
from sigrl_deploy.storage import reason

# What a worker says of each file that is there; or, where it cannot go on, of its failure.
DONE = pa.schema(
    [
        ("unit", pa.int64()),
        ("number", pa.int64()),
        ("rows", pa.int64()),
        ("errors", pa.int64()),
        ("bytes", pa.int64()),
        ("last", pa.bool_()),
        ("plan", pa.string()),
        ("failure", pa.string()),
        ("argument", pa.string()),
        ("value", pa.string()),
        ("exit_code", pa.int8()),
    ]
)


class TagPictures:
    """A failure of any kind is a row: Ray would start a worker again and again where the same failure waits for it.

    `plan` is a reference to the Plan in Ray's object store, where a node has it once, whatever its size.
    """

    def __init__(self, shipped: Shipped, plan: Any, reading: Reading, parts: Parts) -> None:
        self._shipped, self._plan_reference, self._reading, self._parts = shipped, plan, reading, parts

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """A batch of units, by their numbers in the column `unit` → a table DONE of one row for each file."""
        for unit in batch.column("unit").to_pylist():
            try:
                for number, part in enumerate(self._files(self._plan.unit(unit))):
                    yield pa.Table.from_pylist([vars(part) | {"unit": unit, "number": number}], schema=DONE)
            except Exception as error:
                yield _failure(error)
                return

    @cached_property
    def _plan(self) -> Plan:
        plan: Plan = ray.get(self._plan_reference)
        return plan

    @cached_property
    def _tagger(self) -> Tagger:
        # Not in the constructor: how often Ray repeats a task can be bounded to a few times, but not how often it constructs.
        return Tagger(self._shipped)

    def _files(self, unit: Unit) -> Iterator[Part]:
        """Write the files of a unit that are missing, and say what every one holds, from the first.

        Ray counts on it that a worker that tries again says the same.
        """
        skip = 0
        for number in itertools.count():
            part = self._parts.part(unit.number, number)
            if part is None:
                break
            yield part
            if part.last:
                return
            skip += part.rows
        sizes = Sizes()
        records = self._tagger.records(sizes.measured(self._reading.pictures(unit, skip)))
        # Without all labels' scores, which would be in memory for a whole file.
        short = (replace(record, scores=None) for record in records)
        # One record is read ahead: only then is it known whether a file is the last.
        waiting = next(short, None)
        while True:
            rows = [] if waiting is None else [waiting, *itertools.islice(short, self._plan.rows_per_file - 1)]
            waiting = next(short, None)
            yield self._write(unit, number, rows, sizes.take(len(rows)), last=waiting is None)
            if waiting is None:
                return
            number += 1

    def _write(self, unit: Unit, number: int, rows: list[Record], sizes: Sequence[int | None], last: bool) -> Part:
        if rows and all(size is None for size in sizes):
            self._require_reach(rows[0])
        errors = sum(record.error is not None for record in rows)
        part = Part(len(rows), errors, sum(size or 0 for size in sizes), last, self._parts.plan)
        self._parts.write(unit.number, number, rows, self._tagger.run, part)
        return part

    def _require_reach(self, record: Record) -> None:
        """After a file of which nothing could be opened: missing credentials or a disk that is away are no pictures' errors."""
        if not self._reading.reaches(self._plan):
            said = (record.error or "").partition(";")[0]
            problem = f"{printable(record.path)} {said}, and the same goes for others from all over the source on this machine"
            advice = "see that it reaches them, and has credentials; the same command then goes on"
            raise UsageError(f"{problem}; {advice}", argument="source")


def _failure(error: Exception) -> pa.Table:
    """The row that ends a run: an error of this package as it is, any other in one line."""
    if not isinstance(error, SigRLError):
        line = reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}".splitlines()[0]
        error = ClusterError(f"a worker cannot go on ({printable(line)})")
    value = None if error.value is None else str(error.value)
    row = {"failure": error.problem, "argument": error.argument, "value": value, "exit_code": error.exit_code}
    return pa.Table.from_pylist([row], schema=DONE)
