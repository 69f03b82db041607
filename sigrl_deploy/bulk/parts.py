"""Parquet files of rows: each is written whole or not at all, under a name that follows from the plan."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from sigrl_deploy.bulk.options import Shard
from sigrl_deploy.ray.columns import FIELDS, columns, text
from sigrl_deploy.recognizer.predictions import Record
from sigrl_deploy.storage import Place, storage_errors

SCHEMA = pa.schema([pa.field("path", pa.string(), nullable=False), *FIELDS, pa.field("run", pa.string(), nullable=False)])
PART_NAME = re.compile(r"part-(\d+of\d+-)?(\d{6,})-(\d{4,})\.parquet")

_METADATA = b"sigrl_deploy"
_THREADS = 32
_ADVICE = "check the name, permissions and free space; the same command then goes on"

Key = tuple[int, int]  # a unit, and which of its files it is


@dataclass(frozen=True)
class Part:
    """What a file says about its rows: how many there are, with how many errors, from how many bytes of pictures.

    `last` says that it ends its unit; `plan` is `Plan.id`.
    """

    rows: int
    errors: int
    bytes: int
    last: bool
    plan: str


@dataclass(frozen=True)
class Parts:
    """The files of one plan in a folder, which processes on several machines may share."""

    place: Place
    shard: Shard
    plan: str

    def done(self) -> dict[Key, Part]:
        """The files that are there. One that is damaged, or of another plan, is not. Raises UsageError."""
        with self.errors():
            names = [match for name, _ in self.place.entries() if (match := PART_NAME.fullmatch(name))]
        own = [(int(match[2]), int(match[3])) for match in names if (match[1] or "") == self.shard.name]
        with ThreadPoolExecutor(_THREADS) as pool, self.errors():
            found = pool.map(lambda key: self.part(*key), own)
            return {key: part for key, part in zip(own, found, strict=True) if part is not None}

    def part(self, unit: int, number: int) -> Part | None:
        """What one file says, or None where it is missing, damaged or of another plan. Raises OSError."""
        file = self.place.below(self.name(unit, number))
        try:
            with file.filesystem.open_input_file(file.path) as stream:
                metadata = pq.read_metadata(stream).metadata or {}
            part = Part(**json.loads(metadata[_METADATA]))
        except (FileNotFoundError, pa.ArrowInvalid, KeyError, ValueError, TypeError):
            return None
        return part if part.plan == self.plan else None

    def write(self, unit: int, number: int, records: Sequence[Record], run: str, about: Part) -> None:
        """Write the rows of one file. Raises UsageError where that fails."""
        values = [pa.array([text(record.path) for record in records], pa.string()), *columns(records).values()]
        values.append(pa.array([run] * len(records), pa.string()))
        schema = SCHEMA.with_metadata({_METADATA: json.dumps(asdict(about))})
        file = io.BytesIO()
        pq.write_table(pa.Table.from_arrays(values, schema=schema), file, compression="zstd")
        with self.errors():
            self.place.below(self.name(unit, number)).write(file.getvalue())

    def name(self, unit: int, number: int) -> str:
        return f"part-{self.shard.name}{unit:06}-{number:04}.parquet"

    def errors(self) -> AbstractContextManager[None]:
        """An OSError in the block becomes a UsageError about the output."""
        return storage_errors(self.place.url, "out", _ADVICE)


def finished_units(done: Mapping[Key, Part]) -> set[int]:
    """The units all of whose files are there."""
    last = {unit: number for (unit, number), part in done.items() if part.last}
    return {unit for unit, number in last.items() if all((unit, before) in done for before in range(number))}


def total(parts: Iterable[Part]) -> tuple[int, int, int]:
    """Rows, errors and bytes of several files."""
    parts = list(parts)
    return sum(p.rows for p in parts), sum(p.errors for p in parts), sum(p.bytes for p in parts)
