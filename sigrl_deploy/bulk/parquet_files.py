"""Pictures in the rows of Parquet files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from sigrl_deploy.errors import ImageError, UsageError
from sigrl_deploy.ray.tagger import content_of
from sigrl_deploy.recognizer.streaming import Content
from sigrl_deploy.storage import Place, is_outage, is_remote, storage_errors

_COLUMNS = ("bytes", "image", "path")  # what holds the pictures, unless an option says so
_KEYS = ("key", "path")
_ROWS_AT_ONCE = 16
_BUFFER = 1 << 20
_THREADS = 16


@dataclass(frozen=True)
class Columns:
    """Names of the columns with the pictures and with their keys; a key of None is made of file and row."""

    picture: str
    key: str | None

    @classmethod
    def of(cls, schema: pa.Schema, url: str, column: str | None, key: str | None) -> Columns:
        """Raises UsageError where there are no such columns, or they hold neither bytes nor text."""
        found = next((name for name in _COLUMNS if name in schema.names), None) if column is None else column
        names = ", ".join(schema.names)
        if found is None:
            expected = ", ".join(_COLUMNS)
            raise UsageError(f"{url} has no column {expected}, only {names}; say which with `column`", argument="source")
        if found not in schema.names:
            raise UsageError(f"{url} has no such column, only {names}", argument="column", value=found)
        if not (
            _is_bytes(schema.field(found).type) or _is_text(schema.field(found).type) or _is_image(schema.field(found).type)
        ):
            kind = schema.field(found).type
            problem = f"holds {kind} in {url}, expected bytes of picture files, or paths"
            raise UsageError(problem, argument="column", value=found)
        if key is not None and key not in schema.names:
            raise UsageError(f"{url} has no such column, only {names}", argument="key", value=key)
        named = key or next((name for name in _KEYS if name in schema.names and _is_text(schema.field(name).type)), None)
        return cls(found, found if named is None and _is_text(schema.field(found).type) else named)


def row_groups(places: Sequence[Place], column: str | None, key: str | None) -> Iterator[tuple[str, int, int]]:
    """Name, row group and number of rows of every row group that has some. Raises UsageError for a file that cannot be used."""

    def read(place: Place) -> list[tuple[str, int, int]]:
        file = _opened(place)
        Columns.of(file.schema_arrow, place.url, column, key)
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        return [(place.url, group, count) for group, count in enumerate(counts) if count]

    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(read, places):
            yield from found


def read_rows(
    place: Place, group: int, rows: int, skip: int, column: str | None, key: str | None
) -> Iterator[tuple[str, Content]]:
    """Name and content of the pictures of a row group, without the first `skip`. Its rows are read as they are needed.

    Where the file is damaged the pictures that cannot be read have that as their error.
    """
    file = _opened(place)
    columns = Columns.of(file.schema_arrow, place.url, column, key)
    first = sum(file.metadata.row_group(before).num_rows for before in range(group))
    wanted = list(dict.fromkeys(name for name in (columns.picture, columns.key) if name is not None))
    row = 0
    try:
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=wanted):
            for at in range(max(0, skip - row), len(batch)):
                yield _picture(batch, at, columns, place, first + row + at)
            row += len(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and is_outage(error):
            raise
        problem = f"{place.url} is damaged ({_line(error)})"
        for at in range(max(row, skip), rows):
            yield f"{place.url}#{first + at}", partial(_refuse, problem)


def _picture(batch: pa.RecordBatch, at: int, columns: Columns, place: Place, row: int) -> tuple[str, Content]:
    value = batch.column(columns.picture)[at].as_py()
    name = f"{place.url}#{row}"
    if columns.key is not None:
        key = batch.column(columns.key)[at].as_py()
        name = name if key is None else str(key)
    if isinstance(value, dict):  # as Hugging Face's data sets store pictures
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return name, content_of(_beside(place, value))
    return name, value or b""


def _beside(place: Place, path: str) -> Place:
    """A path in a Parquet file; a relative one begins at the file's folder."""
    if "://" in path or os.path.isabs(path):
        return Place(path, place.endpoint)
    folder = place.url.rpartition("/")[0]
    return Place(f"{folder}/{path}" if is_remote(place.url) or folder else path, place.endpoint)


def _opened(place: Place) -> pq.ParquetFile:
    with storage_errors(place.url, "source", "check the name and its permissions"):
        try:
            stream = place.filesystem.open_input_file(place.path)
            # Without the buffer, all of a row group's bytes would be in memory at once.
            return pq.ParquetFile(stream, buffer_size=_BUFFER, pre_buffer=False)
        except pa.ArrowInvalid as error:
            raise UsageError(f"is no Parquet file ({_line(error)})", argument="source", value=place.url) from None


def _refuse(problem: str) -> bytes:
    raise ImageError(problem)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:300]


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_image(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
