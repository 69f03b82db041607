"""What a run is made of: units of work in a fixed order, and the files that their rows go to.

A unit is up to ROWS pictures, a row group of a Parquet file, or a tar file. Its rows go, in order, into files of ROWS rows
whose names follow from the plan alone. So a file that is there is done, whoever wrote it; and one that is written twice, since
a worker died or was thought to have died, is the same file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sigrl_deploy.bulk.options import BulkOptions
from sigrl_deploy.bulk.parquet_files import row_groups
from sigrl_deploy.bulk.sources import Kind, Source
from sigrl_deploy.errors import UsageError
from sigrl_deploy.storage import Place

ROWS = 1000  # of a file, at most
_FEWEST_ROWS = 16
_FILES_PER_WORKER = 8  # at least, of a small source, so that all workers end at about the same time

_SCHEMA = pa.schema([("url", pa.binary()), ("group", pa.int32()), ("rows", pa.int64())])


@dataclass(frozen=True)
class Unit:
    """One piece of work, done by one worker from its first row to its last.

    Attributes:
        number: its place in the plan, which is part of the names of its files.
        kind: what `urls` are; there are several only of pictures.
        urls: files, on a disk or in a bucket.
        group: the row group of a Parquet file.
        rows: how many pictures it has; None of a tar file, where nobody has counted them.
    """

    number: int
    kind: Kind
    urls: tuple[str, ...]
    group: int | None = None
    rows: int | None = None

    def to_json(self) -> str:
        # ASCII: file names need not be text, and JSON's escapes keep them.
        return json.dumps([self.number, self.kind.value, self.urls, self.group, self.rows])

    @classmethod
    def from_json(cls, text: str) -> Unit:
        number, kind, urls, group, rows = json.loads(text)
        return cls(number, Kind(kind), tuple(urls), group, rows)


@dataclass(frozen=True)
class Plan:
    """All units of a run, and what says whether another run may go on with it.

    Attributes:
        kind: of the source.
        table: a row for each file, or row group.
        rows_per_file: of the output.
        run: names what rows depend on besides their pictures.
        listing: a digest of the whole source, which all shards have in common.
        reading: the options that say what the pictures are, as JSON.
    """

    kind: Kind
    table: pa.Table
    rows_per_file: int
    run: str
    listing: str
    reading: str

    def __len__(self) -> int:
        return math.ceil(len(self.table) / self._rows_per_unit)

    @property
    def _rows_per_unit(self) -> int:
        return self.rows_per_file if self.kind is Kind.PICTURES else 1

    @property
    def pictures(self) -> int | None:
        """How many pictures there are; None where that is not known."""
        if self.kind is Kind.TAR:
            return None
        return len(self.table) if self.kind is Kind.PICTURES else sum(self.table.column("rows").to_pylist())

    def unit(self, number: int) -> Unit:
        rows = self.table.slice(number * self._rows_per_unit, self._rows_per_unit).to_pydict()
        urls = tuple(map(os.fsdecode, rows["url"]))
        count = len(urls) if self.kind is Kind.PICTURES else rows["rows"][0]
        return Unit(number, self.kind, urls, rows["group"][0], count)

    def units(self) -> Iterator[Unit]:
        return map(self.unit, range(len(self)))

    def to_bytes(self) -> bytes:
        """An Arrow file."""
        about = {name: getattr(self, name) for name in ("rows_per_file", "run", "listing", "reading")} | {
            "kind": self.kind.value
        }
        sink = pa.BufferOutputStream()
        schema = _SCHEMA.with_metadata({"plan": json.dumps(about)})
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, schema, options=options) as writer:
            writer.write_table(self.table.replace_schema_metadata(schema.metadata))
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> Plan:
        """The inverse of `to_bytes`. Raises ValueError where these are no such bytes."""
        try:
            table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
            about: dict[str, Any] = json.loads(table.schema.metadata[b"plan"])
            return cls(Kind(about.pop("kind")), table.cast(_SCHEMA), **about)
        except (pa.ArrowException, KeyError, TypeError) as error:
            raise ValueError(str(error) or type(error).__name__) from None


def make_plan(source: Source, options: BulkOptions, workers: int, run: str) -> Plan:
    """The plan of a source, or of one shard: every `shard.count`-th file, or row group.

    Raises UsageError where a Parquet file cannot be read, and where nothing is left for the shard.
    """
    shard, rows = options.shard, list(_rows(source, options))
    listing = hashlib.sha256()
    for row in rows:
        listing.update(repr(row).encode())
    own = rows[shard.number - 1 :: shard.count]
    if not own:
        problem = f"there are only {len(rows)} to share; use fewer shards"
        raise UsageError(problem, argument="shard", value=f"{shard.number}/{shard.count}")
    url, group, count = zip(*own, strict=True)
    table = pa.table({"url": url, "group": group, "rows": count}, schema=_SCHEMA)
    known = len(own) if source.kind is Kind.PICTURES else sum(n or 0 for n in count)
    few = math.ceil(known / (workers * _FILES_PER_WORKER)) if known else ROWS
    rows_per_file = min(ROWS, max(_FEWEST_ROWS, few))
    return Plan(source.kind, table, rows_per_file, run, listing.hexdigest(), reading_of(options))


def reading_of(options: BulkOptions) -> str:
    """What the options say about where pictures are, for `Plan.reading`."""
    return json.dumps([[source.rstrip("/") for source in options.source], options.column, options.key])


def _rows(source: Source, options: BulkOptions) -> Iterator[tuple[bytes, int | None, int | None]]:
    if source.kind is Kind.PARQUET:
        places = [Place(url, options.endpoint) for url in source.urls]
        for url, group, count in row_groups(places, options.column, options.key):
            yield os.fsencode(url), group, count
    else:
        yield from ((os.fsencode(url), None, None) for url in source.urls)
