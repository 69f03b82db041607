"""One run of `sigrl-deploy bulk`."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

from sigrl_deploy.bulk import cluster
from sigrl_deploy.bulk.cluster import Workers
from sigrl_deploy.bulk.destination import Destination
from sigrl_deploy.bulk.options import BulkOptions
from sigrl_deploy.bulk.parts import Key, Part, Parts, finished_units, total
from sigrl_deploy.bulk.plan import Plan, base_of, make_plan, reading_of
from sigrl_deploy.bulk.reading import Reading
from sigrl_deploy.bulk.sample import estimate
from sigrl_deploy.bulk.sources import find_source
from sigrl_deploy.bulk.tagging import SECONDS_TO_START, ray_errors, tag_units
from sigrl_deploy.config import Crop, Device
from sigrl_deploy.errors import ClusterError, UsageError
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.ray.preparing import Prepared, Settings, prepare
from sigrl_deploy.ray.shipping import Shipped, local_settings, put
from sigrl_deploy.recognizer.thresholds import read_thresholds
from sigrl_deploy.storage import Place, check_endpoint, check_url, is_remote
from sigrl_deploy.tagging.run_name import differing

log = logging.getLogger(__name__)


def run_bulk(options: BulkOptions) -> int:
    """Tag the source and write the rows. Returns how many pictures could not be read, those of earlier runs included.

    Raises UsageError, LabelError and BundleError for what cannot be tagged, before anything is written, and ClusterError where
    workers die again and again.
    """
    if not options.out.strip():
        raise UsageError("expected a folder", argument="out", value=options.out)
    check_url(options.out, "out")
    check_endpoint(options.endpoint)
    if options.engine.device is Device.CPU and options.gpus_per_worker is None:
        options = replace(options, gpus_per_worker=0)
    settings, labels = _settings(options)
    with ExitStack() as ray_session:
        if options.address is not None:
            ray_session.enter_context(cluster.started(options.address))
        machines = cluster.this_machine() if options.address is None else cluster.nodes()
        workers = _workers(machines, options)
        if options.dry_run:
            source = find_source(options.source, options.endpoint)
            estimate(make_plan(source, options, ""), options, settings, labels, workers)
            return 0
        if options.address is None and workers.gpus:
            ray_session.enter_context(cluster.started(None))
            workers = _workers(cluster.nodes(), options)
        prepared = _prepared(settings, labels, options.background, workers)
        plan, parts = _begun(options, prepared.run)
        before = parts.done()
        left = sorted(set(range(len(plan))) - finished_units(before))
        if not left:
            return _say_finished(before, options.out)
        if options.address is None and not workers.gpus:
            ray_session.enter_context(cluster.started(None, _bytes(prepared, plan)))
        if options.address is not None:
            with ray_errors():
                cluster.require_shared(_local_files(plan, parts, options), SECONDS_TO_START)
        _say_start(plan, before, workers, prepared)
        shipped = put(settings, prepared)
        tag_units(plan, left, before, shipped, parts, workers, options)
    return _check_whole(plan, parts)


def _workers(machines: list[cluster.Node], options: BulkOptions) -> Workers:
    return Workers.of(machines, options.workers, options.cpus_per_worker, options.gpus_per_worker)


def _settings(options: BulkOptions) -> tuple[Settings, LabelSet | None]:
    labels = None if options.labels is None else read_label_set(options.labels)
    settings = Settings(
        options.bundle.absolute(),
        top=options.top,
        threshold=options.threshold,
        thresholds=read_thresholds(options.thresholds, options.rescale_thresholds),
        crop=Crop(options.crop),
        batch_size=options.batch_size,
        cache_dir=None if options.cache_dir is None else options.cache_dir.absolute(),
        engine=options.engine,
    )
    return settings, labels


def _prepared(settings: Settings, labels: LabelSet | None, background: str | None, workers: Workers) -> Prepared:
    """The vocabulary, made here, or where a worker's GPU is: what other engines encode would differ."""
    if not workers.gpus:
        return prepare(settings, labels, background)
    import ray

    there = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus, max_retries=0)(_prepare_there)
    with ray_errors():
        prepared: Prepared = ray.get(there.remote(put(settings, None), labels, background), timeout=SECONDS_TO_START)
    return prepared


def _prepare_there(shipped: Shipped, labels: LabelSet | None, background: str | None) -> Prepared:
    return prepare(local_settings(shipped), labels, background)


def _begun(options: BulkOptions, run: str) -> tuple[Plan, Parts]:
    """The plan of the run that began in this folder, or a new one. Raises UsageError where that was another run."""
    folder = options.out if is_remote(options.out) else os.path.abspath(options.out)
    destination = Destination(Place(folder.rstrip("/") or "/", options.endpoint), options.shard)
    plan = destination.plan()
    if plan is None:
        source = find_source(options.source, options.endpoint)
        if source.skipped:
            log.warning(source.skipped)
        plan = make_plan(source, options, run)
    elif plan.run != run:
        problem = f"was begun with {differing(plan.run, run)}; use the same, or give an empty folder"
        raise UsageError(problem, argument="out", value=options.out)
    elif plan.reading != reading_of(options):
        problem = "was begun with another source, column, key or endpoint; use the same, or give an empty folder"
        raise UsageError(problem, argument="out", value=options.out)
    elif plan.base != base_of(options):
        problem = f"was begun in the folder {plan.base or '/'}, to which its source is relative; start the same command there"
        raise UsageError(problem, argument="out", value=options.out)
    return plan, destination.begin(plan)


def _local_files(plan: Plan, parts: Parts, options: BulkOptions) -> list[str]:
    """What lies on disks, and every node has to see: the source's first file, and the folder of the rows."""
    places = [Reading.of(options, plan).place(plan.unit(0).urls[0]), parts.place]
    return [place.path for place in places if not place.is_remote]


def _bytes(prepared: Prepared, plan: Plan) -> int:
    """What the object store needs for labels and units, at most."""
    vocabulary = prepared.vocabulary
    rows = vocabulary.label_embedding.nbytes * (1 + (vocabulary.graph_projection is not None))
    return 2 * rows + 2 * plan.table.nbytes


def _say_start(plan: Plan, before: Mapping[Key, Part], workers: Workers, prepared: Prepared) -> None:
    count = f"{len(plan):,} tar files" if plan.pictures is None else f"{plan.pictures:,} pictures"
    done = f", {total(before.values())[0]:,} of them done before" if before else ""
    size = f"{workers.cpus} CPU{'s' * (workers.cpus != 1)}" + (f" and {workers.gpus:g} GPU" if workers.gpus else "")
    log.info("%s%s; %d worker%s of %s: %s", count, done, workers.count, "s" * (workers.count != 1), size, prepared.engine)


def _say_finished(parts: Mapping[Key, Part], out: str) -> int:
    rows, errors, _ = total(parts.values())
    log.info("finished before: %s holds %s rows, %s of them with an error", out, f"{rows:,}", f"{errors:,}")
    return errors


def _check_whole(plan: Plan, parts: Parts) -> int:
    """How many rows have an error. Raises ClusterError where a file is missing after all."""
    done = parts.done()
    missing = len(plan) - len(finished_units(done))
    if missing:
        problem = f"{missing:,} of {len(plan):,} units are missing, though workers have written them"
        raise ClusterError(f"{parts.place.url}: {problem}; see that all machines write to the same place")
    rows, errors, _ = total(done.values())
    if not rows:
        log.warning("there are no pictures in these files")
    return errors
