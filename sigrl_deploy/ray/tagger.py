"""The callable class for `ray.data.Dataset.map_batches`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial

import pyarrow as pa
import ray
from threadpoolctl import threadpool_limits

from sigrl_deploy.engines.options import EngineOptions
from sigrl_deploy.errors import BundleError, ImageError, UsageError, kind_of
from sigrl_deploy.pictures.structure.limits import MAX_FILE_BYTES
from sigrl_deploy.ray.columns import FIELDS, columns
from sigrl_deploy.ray.preparing import Prepared
from sigrl_deploy.ray.shipping import Shipped, local_settings
from sigrl_deploy.recognizer.predictions import Record
from sigrl_deploy.recognizer.streaming import Content, Picture
from sigrl_deploy.storage import Place, is_outage, is_remote, reason


class Tagger:
    """Tags the pictures of batches, which are Arrow tables: give `map_batches` `batch_format="pyarrow"`.

    A batch comes back with the columns `labels`, `scores`, `thresholds`, `probabilities` and `children`, lists of one length
    with the best label first, and `error`. A picture that cannot be read has an `error`, and no lists. See `ship` for an
    example. It computes with as many threads as Ray gave its actor CPUs.

    Args:
        shipped: what `ship` gave on the driver.
        column: the pictures: bytes of picture files, or text, which is a path, `s3://…` or `gs://…`.
        endpoint: the server of `s3://` and `gs://`, where it is not Amazon's or Google's.

    Raises:
        BundleError, UsageError: the bundle cannot be opened on this node.
    """

    def __init__(self, shipped: Shipped, column: str = "bytes", *, endpoint: str | None = None) -> None:
        self._column, self._endpoint = column, endpoint
        threads = cpus_given()
        # numpy's BLAS, which matching runs in, was loaded before Ray said how many CPUs there are.
        threadpool_limits(threads)
        self.settings = local_settings(shipped)
        prepared: Prepared = ray.get(shipped.prepared)
        self.vocabulary, self.run = prepared.vocabulary, prepared.run
        self._recognizer = self.settings.open(with_threads(self.settings.engine, threads))
        if self.settings.run_name(self._recognizer, self.vocabulary) != self.run:
            engine = self._recognizer.engine.description
            problem = f"a worker would run {engine}, and the labels were encoded by {prepared.engine}"
            raise BundleError(f"{problem}; give `backend`, `device` and `precision` that all workers have")

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The batch with the new columns.

        Raises UsageError for a batch that is no Arrow table, has no such column, or has columns of these names already.
        """
        # Without all labels' scores, which would be in memory for the whole batch.
        records = [replace(record, scores=None) for record in self.records(self._pictures(batch))]
        for name, values in columns(records).items():
            batch = batch.append_column(name, values)
        return batch

    def records(self, pictures: Iterable[Picture]) -> Iterator[Record]:
        """As `Recognizer.stream`, with the labels and options that were shipped."""
        settings = self.settings
        return self._recognizer.stream(
            pictures,
            self.vocabulary,
            top=settings.top,
            threshold=settings.threshold,
            thresholds=settings.thresholds,
            batch_size=settings.batch_size,
        )

    def _pictures(self, batch: pa.Table) -> Iterator[Picture]:
        if not isinstance(batch, pa.Table):
            problem = f"is {kind_of(batch)}, expected an Arrow table; give map_batches batch_format='pyarrow'"
            raise UsageError(problem, argument="batch")
        if self._column not in batch.column_names:
            names = ", ".join(batch.column_names)
            raise UsageError(f"the batch has no such column, only {names}", argument="column", value=self._column)
        for field in FIELDS:
            if field.name in batch.column_names:
                raise UsageError(f"has a column {field.name} already; rename or drop it", argument="batch")
        return (self._picture(row, value.as_py()) for row, value in enumerate(batch.column(self._column)))

    def _picture(self, row: int, value: object) -> tuple[str, Content]:
        if isinstance(value, str):
            return value, content_of(Place(value, self._endpoint))
        if value is None:
            return f"row {row}", b""
        if not isinstance(value, bytes):
            problem = f"holds {kind_of(value)}, expected bytes of picture files, or paths"
            raise UsageError(problem, argument="column", value=self._column)
        return f"row {row}", value


def content_of(place: Place) -> Content:
    """A picture file for `Recognizer.stream`: a path, or what reads an object of a bucket."""
    return partial(_read_object, place) if is_remote(place.url) else place.url


def _read_object(place: Place) -> bytes:
    """Raises OSError or ImageError where that is about this object, and UsageError where all others would fail too."""
    try:
        return place.read(MAX_FILE_BYTES)
    except OSError as error:
        require_no_outage(error, place.url)
        raise
    except ValueError as error:
        raise ImageError(f"cannot be opened ({reason(error)}); check its name") from None


def require_no_outage(error: OSError, url: str) -> None:
    """Raise UsageError where a file could not be read since no other could be, either."""
    if is_outage(error):
        advice = "run the same again when it can; if it never can, delete it"
        raise UsageError(f"{url}: cannot be read now ({reason(error)}); {advice}") from None


def cpus_given() -> int:
    """How many CPUs Ray gave this actor or task, at least 1."""
    return max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)))


def with_threads(engine: EngineOptions, threads: int) -> EngineOptions:
    """The options with so many threads, unless they have a number."""
    return engine if engine.threads is not None else replace(engine, threads=threads)
