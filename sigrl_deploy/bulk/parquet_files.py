"""Pictures in the rows of Parquet files."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from sigrl_deploy.errors import ImageError, UsageError
from sigrl_deploy.ray.tagger import content_of, require_no_outage
from sigrl_deploy.recognizer.streaming import Content
from sigrl_deploy.storage import Place, is_remote, reason, storage_errors

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
        kind = _plain(schema.field(found).type)
        if not (_is_bytes(kind) or _is_text(kind) or _is_image(kind)):
            problem = f"holds {schema.field(found).type} in {url}, expected bytes of picture files, or paths"
            raise UsageError(problem, argument="column", value=found)
        if key is not None and key not in schema.names:
            raise UsageError(f"{url} has no such column, only {names}", argument="key", value=key)
        texts = {field.name for field in schema if _is_text(_plain(field.type))}
        named = key or next((name for name in _KEYS if name in texts), None)
        return cls(found, found if named is None and found in texts else named)


@dataclass(frozen=True)
class Rows:
    """Some rows of a Parquet file: `count` of a row group, from row `first` of the file on."""

    group: int
    first: int
    count: int


def rows_of(places: Sequence[Place], column: str | None, key: str | None, most: int) -> Iterator[list[Rows]]:
    """All rows of each file, in pieces of `most` rows at most. Raises UsageError for a file that cannot be used."""

    def read(place: Place) -> list[Rows]:
        with _errors(place):
            file = _opened(place)
        Columns.of(file.schema_arrow, place.url, column, key)
        starts = _starts(file)
        pieces = [(group, first) for group, start in enumerate(starts[:-1]) for first in range(start, starts[group + 1], most)]
        return [Rows(group, first, min(most, starts[group + 1] - first)) for group, first in pieces]

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(read, places)


def read_rows(
    place: Place, name: str, rows: Rows, skip: int, column: str | None, key: str | None
) -> Iterator[tuple[str, Content]]:
    """Name and content of the pictures in some rows of a file, without the first `skip`; they are read as they are needed.

    A row without a key is NAME#ROW. Where the file is damaged or missing the pictures that cannot be read have that as their
    error. Raises UsageError where it cannot be read now.
    """
    at, end, opened = rows.first + skip, rows.first + rows.count, False
    try:
        file = _opened(place)
        opened = True
        columns = Columns.of(file.schema_arrow, name, column, key)
        start = _starts(file)[rows.group]
        names = list(dict.fromkeys(name for name in (columns.picture, columns.key) if name is not None))
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[rows.group], columns=names):
            while at < min(end, start + len(batch)):
                yield _picture(batch, at - start, columns, place, f"{name}#{at}")
                at += 1
            if at == end:
                return
            start += len(batch)
        raise pa.ArrowInvalid("rows are missing")
    except MemoryError:
        raise  # Arrow's, too
    except (pa.ArrowException, OSError) as error:
        failure: Exception = ImageError(f"{name} is damaged ({reason(error)})")
        if isinstance(error, OSError):
            require_no_outage(error, name)
            failure = failure if opened else error
    yield from ((f"{name}#{row}", partial(_fail, failure)) for row in range(at, end))


def _starts(file: pq.ParquetFile) -> list[int]:
    """The first row of each row group, and the number of all rows."""
    return [0, *itertools.accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))]


def _picture(batch: pa.RecordBatch, at: int, columns: Columns, place: Place, name: str) -> tuple[str, Content]:
    try:
        key = None if columns.key is None else batch.column(columns.key)[at].as_py()
        value = batch.column(columns.picture)[at].as_py()
    except UnicodeDecodeError:
        return name, partial(_fail, ImageError("its row holds text that is not UTF-8"))
    if key is not None:
        name = key.decode("utf-8", "backslashreplace") if isinstance(key, bytes) else str(key)
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
    # Without the buffer, all of a row group's bytes would be in memory at once.
    return pq.ParquetFile(place.filesystem.open_input_file(place.path), buffer_size=_BUFFER, pre_buffer=False)


@contextmanager
def _errors(place: Place) -> Iterator[None]:
    with storage_errors(place.url, "source", "check the name and its permissions"):
        try:
            yield
        except pa.ArrowInvalid as error:
            raise UsageError(f"is no Parquet file ({reason(error)})", argument="source", value=place.url) from None


def _fail(error: Exception) -> bytes:
    raise error


def _plain(kind: pa.DataType) -> pa.DataType:
    """Without the dictionary of a column whose values repeat."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    fields = {field.name: field.type for field in kind}
    return {"bytes", "path"} <= fields.keys() and _is_bytes(fields["bytes"]) and _is_text(fields["path"])
