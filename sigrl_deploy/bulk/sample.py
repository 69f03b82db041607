"""`--dry-run`: how many pictures there are, and about how long they take."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace

import click

from sigrl_deploy.bulk.cluster import Workers
from sigrl_deploy.bulk.options import BulkOptions
from sigrl_deploy.bulk.plan import Plan
from sigrl_deploy.bulk.reading import Reading, Sizes
from sigrl_deploy.bulk.sources import Kind
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.ray.preparing import Settings
from sigrl_deploy.ray.tagger import with_threads
from sigrl_deploy.recognizer.predictions import Record
from sigrl_deploy.recognizer.streaming import Content
from sigrl_deploy.recognizer.vocabularies import asked_labels

_PICTURES = 32  # of the sample, at most
_UNITS = 8  # that it is taken from
_SECONDS = 20.0
_WARM_UP = 2  # pictures that are not timed


def estimate(plan: Plan, options: BulkOptions, settings: Settings, labels: LabelSet | None, workers: Workers) -> None:
    """Print counts, and an estimate from pictures spread over the source, tagged here as one worker would.

    Raises what `run_bulk` raises.
    """
    sizes = Sizes()
    with settings.open(with_threads(settings.engine, workers.cpus)) as recognizer:
        vocabulary = recognizer.vocabulary(asked_labels(labels, options.background, recognizer.vocabulary))
        records = recognizer.stream(
            sizes.measured(_sample(plan, options)),
            vocabulary,
            top=settings.top,
            threshold=settings.threshold,
            thresholds=settings.thresholds,
            batch_size=settings.batch_size,
        )
        first = list(itertools.islice(records, _WARM_UP))
        timed, seconds = _timed(records)
    tagged = [*first, *timed]
    size = sum(each or 0 for each in sizes.take(len(tagged))) / max(1, len(tagged))
    pictures, about = _count(plan, size)
    click.echo(
        f"{about}{pictures:,} pictures in {len(plan.table):,} {_things(plan.kind)}, about {pictures * size / 1e6:,.1f} MB"
    )
    failed = sum(record.error is not None for record in tagged)
    click.echo(f"of {len(tagged)} that were tried, {failed} cannot be read")
    if timed:
        rate = len(timed) / seconds
        total = rate * workers.count
        click.echo(
            f"{rate:,.1f} pictures/s with {workers.cpus} CPUs here; {workers.count} such workers, if each is as fast: "
            f"{total:,.1f} pictures/s, {pictures / total / 3600:,.2f} hours"
        )


def _timed(records: Iterator[Record]) -> tuple[list[Record], float]:
    found, start = [], time.perf_counter()
    for record in records:
        found.append(record)
        if time.perf_counter() - start > _SECONDS:
            break
    return found, time.perf_counter() - start


def _sample(plan: Plan, options: BulkOptions) -> Iterator[tuple[str, Content]]:
    """Pictures from units that are evenly spread over the source."""
    reading = Reading.of(options, plan)
    numbers = sorted({len(plan) * i // _UNITS for i in range(_UNITS)})
    most = -(-_PICTURES // len(numbers))
    for number in numbers:
        unit = plan.unit(number)
        if plan.kind is Kind.PICTURES:
            step = max(1, len(unit.urls) // most)
            unit = replace(unit, urls=unit.urls[::step])
        yield from itertools.islice(reading.pictures(unit), most)


def _count(plan: Plan, size: float) -> tuple[int, str]:
    """How many pictures there are; of tar files, whose members nobody has counted, as many as their bytes could hold."""
    if plan.pictures is not None:
        return plan.pictures, ""
    if not size:
        return len(plan.table), "at least "  # one a file: of none that was tried is the size known
    return int(sum(plan.table.column("size").to_pylist()) / size), "at most "


def _things(kind: Kind) -> str:
    return {Kind.PICTURES: "files", Kind.PARQUET: "pieces of Parquet files", Kind.TAR: "tar files"}[kind]
