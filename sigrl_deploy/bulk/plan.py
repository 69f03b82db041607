"""What a run is made of: units of work in a fixed order, and the files that their rows go to.

A unit is some pictures, some rows of a Parquet file, or a tar file. Its rows go, in order, into files of ROWS rows at most,
whose names follow from the plan alone. So a file that is there is done, whoever wrote it; and one that is written twice, since
a worker died or was thought to have died, is the same file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sigrl_deploy.bulk.options import BulkOptions
from sigrl_deploy.bulk.parquet_files import Rows, rows_of
from sigrl_deploy.bulk.sources import Kind, Source
from sigrl_deploy.errors import UsageError
from sigrl_deploy.storage import Place, is_remote, storage_errors

ROWS = 1000  # of a file, at most
_FEWEST_ROWS = 16
_FILES = 64  # at least, of a source that is not small, so that all workers end at about the same time
_MOST_ROWS = 10_000  # of a unit of Parquet: those before it in the row group are read for nothing
_THREADS = 16

# A file's name, which need not be text; of a tar or Parquet file its bytes and when it was changed, in ns; and of the latter a
# row group, a row of the file in it, and how many there are from that on.
_SCHEMA = pa.schema(
    [
        ("url", pa.binary()),
        ("size", pa.int64()),
        ("changed", pa.int64()),
        ("group", pa.int32()),
        ("first", pa.int64()),
        ("rows", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Unit:
    """One piece of work, done by one worker from its first row to its last.

    Attributes:
        number: its place in the plan, which is part of the names of its files.
        kind: what `urls` are; there are several only of pictures.
        urls: files, on a disk or in a bucket.
        was: bytes of a tar or Parquet file, and when it was changed, as `Place.size_and_time` says.
        rows: those of a Parquet file.
    """

    number: int
    kind: Kind
    urls: tuple[str, ...]
    was: tuple[int, int] | None = None
    rows: Rows | None = None


@dataclass(frozen=True)
class Plan:
    """All units of a run, and what says whether another run may go on with it.

    Attributes:
        kind: of the source.
        table: a row for each file, or piece of a Parquet file.
        rows_per_file: of the output.
        run: names what rows depend on besides their pictures.
        listing: a digest of the whole source, which all shards have in common.
        reading: the options that say what the pictures are, as JSON.
        base: the folder that local names are relative to, "" where none is.
    """

    kind: Kind
    table: pa.Table
    rows_per_file: int
    run: str
    listing: str
    reading: str
    base: str

    @cached_property
    def id(self) -> str:
        """The same for all shards of a run, and for every other start of it."""
        parts = [self.kind.value, self.rows_per_file, self.run, self.listing, self.reading]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

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
        return len(self.table) if self.kind is Kind.PICTURES else _sum(self.table.column("rows"))

    def unit(self, number: int) -> Unit:
        rows = self.table.slice(number * self._rows_per_unit, self._rows_per_unit).to_pydict()
        urls = tuple(map(os.fsdecode, rows["url"]))
        if self.kind is Kind.PICTURES:
            return Unit(number, self.kind, urls)
        piece = Rows(rows["group"][0], rows["first"][0], rows["rows"][0]) if self.kind is Kind.PARQUET else None
        return Unit(number, self.kind, urls, (rows["size"][0], rows["changed"][0]), piece)

    def units(self) -> Iterator[Unit]:
        return map(self.unit, range(len(self)))

    def to_bytes(self) -> bytes:
        """An Arrow file."""
        about = {name: getattr(self, name) for name in ("rows_per_file", "run", "listing", "reading", "base")}
        sink = pa.BufferOutputStream()
        schema = _SCHEMA.with_metadata({"plan": json.dumps(about | {"kind": self.kind.value})})
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


def make_plan(source: Source, options: BulkOptions, run: str) -> Plan:
    """The plan of a source, or of one shard: every `shard.count`-th file, or piece of a Parquet file.

    Raises UsageError where a tar or Parquet file cannot be read, and where nothing is left for the shard.
    """
    shard, whole = options.shard, _table(source, options)
    if not len(whole):
        raise UsageError("its Parquet files have no rows", argument="source", value=options.source[0])
    table = whole.take(pa.array(range(shard.number - 1, len(whole), shard.count), pa.int64())).combine_chunks()
    if not len(table):
        problem = f"there are only {len(whole)} to share; use fewer shards"
        raise UsageError(problem, argument="shard", value=f"{shard.number}/{shard.count}")
    # From the whole source alone, so that it is the same for all shards, on machines of any size.
    known = len(whole) if source.kind is Kind.PICTURES else _sum(whole.column("rows"))
    few = math.ceil(known / (_FILES * shard.count)) if known else ROWS
    rows_per_file = min(ROWS, max(_FEWEST_ROWS, few))
    listing = _digest(source, whole)
    return Plan(source.kind, table, rows_per_file, run, listing, reading_of(options), base_of(options))


def _digest(source: Source, whole: pa.Table) -> str:
    found = hashlib.sha256()
    # Not when a file was changed, which may differ between machines that have it from elsewhere.
    parts: Sequence[object] = source.urls if source.kind is Kind.PICTURES else whole.drop(["changed"]).to_pylist()
    for part in parts:
        found.update(repr(part).encode())
    return found.hexdigest()


def _sum(column: pa.ChunkedArray) -> int:
    return pc.sum(column).as_py() or 0  # None where nothing is known


def reading_of(options: BulkOptions) -> str:
    """What the options say about where pictures are, for `Plan.reading`."""
    sources = [source.rstrip("/") for source in options.source]
    return json.dumps([sources, options.column, options.key, options.endpoint])


def base_of(options: BulkOptions) -> str:
    """What the options' sources are relative to, for `Plan.base`."""
    return "" if all(is_remote(source) or os.path.isabs(source) for source in options.source) else os.getcwd()


def _table(source: Source, options: BulkOptions) -> pa.Table:
    """What `Plan.table` is of a whole source."""
    urls = pa.array(map(os.fsencode, source.urls), pa.binary())
    if source.kind is Kind.PICTURES:
        return pa.Table.from_arrays([urls, *(pa.nulls(len(urls), field.type) for field in list(_SCHEMA)[1:])], schema=_SCHEMA)
    places = [Place(url, options.endpoint) for url in source.urls]
    with ThreadPoolExecutor(_THREADS) as pool:
        states = list(pool.map(_state, places))
    if source.kind is Kind.TAR:
        rows: list[tuple[int | None, ...]] = [(*state, None, None, None) for state in states]
    else:
        found = list(rows_of(places, options.column, options.key, _MOST_ROWS))
        urls = urls.take(pa.array([file for file, pieces in enumerate(found) for _ in pieces], pa.int64()))
        both = zip(states, found, strict=True)
        rows = [(*state, piece.group, piece.first, piece.count) for state, pieces in both for piece in pieces]
    columns = zip(*rows, strict=True) if rows else [[]] * 5
    return pa.table([urls, *columns], schema=_SCHEMA)


def _state(place: Place) -> tuple[int, int]:
    with storage_errors(place.url, "source", "check the name and its permissions"):
        return place.size_and_time() or (0, 0)
