"""One run of `sigrl-deploy bulk`."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import pyarrow as pa

from sigrl_deploy.bulk import cluster
from sigrl_deploy.bulk.cluster import Workers
from sigrl_deploy.bulk.destination import Destination, Part, finished_units, total
from sigrl_deploy.bulk.options import BulkOptions
from sigrl_deploy.bulk.plan import Plan, make_plan, reading_of
from sigrl_deploy.bulk.sample import estimate
from sigrl_deploy.bulk.sources import find_source
from sigrl_deploy.bulk.worker import Reading, TagPictures
from sigrl_deploy.config import Crop
from sigrl_deploy.errors import ClusterError, SigRLError, UsageError
from sigrl_deploy.labels.label_set import LabelSet
from sigrl_deploy.labels.reading import read_label_set
from sigrl_deploy.progress import Progress
from sigrl_deploy.ray.preparing import Prepared, Settings, prepare
from sigrl_deploy.ray.shipping import Shipped, local_settings, put
from sigrl_deploy.recognizer.thresholds import read_thresholds
from sigrl_deploy.storage import Place, check_url
from sigrl_deploy.tagging.run_name import differing

log = logging.getLogger(__name__)

_SECONDS_TO_START = 900  # for all workers to open the bundle: TensorRT may build an engine for minutes
_SECONDS_WITHOUT_ROWS = 4 * 3600  # after which a run ends: the slowest model takes an hour for a file
_TRIES = 4  # of a unit whose worker dies
_RESTARTS = 20  # of one worker


def run_bulk(options: BulkOptions) -> int:
    """Tag the source and write the rows. Returns how many pictures could not be read, those of earlier runs included.

    Raises UsageError, LabelError and BundleError for what cannot be tagged, before anything is written, and ClusterError where
    workers die again and again.
    """
    check_url(options.out, "out")
    settings, labels = _settings(options)
    destination = Destination(Place(options.out.rstrip("/") or "/", options.endpoint), options.shard)
    with ExitStack() as ray_session:
        if options.address is not None:
            ray_session.enter_context(cluster.started(options.address))
        machines = cluster.this_machine() if options.address is None else cluster.nodes()
        workers = Workers.of(machines, options.workers, options.cpus_per_worker, options.gpus_per_worker)
        if options.dry_run:
            source = find_source(options.source, options.endpoint)
            estimate(make_plan(source, options, workers.count, ""), options, settings, labels, workers)
            return 0
        if options.address is None and workers.gpus:
            ray_session.enter_context(cluster.started(None))
            workers = Workers.of(cluster.nodes(), options.workers, options.cpus_per_worker, options.gpus_per_worker)
        prepared = _prepared(settings, labels, options.background, workers)
        plan = _plan(options, destination, workers, prepared.run)
        before = destination.done()
        left = sorted(set(range(len(plan))) - finished_units(before))
        if not left:
            return _say_finished(before, options.out)
        if options.address is None and not workers.gpus:
            ray_session.enter_context(cluster.started(None, _bytes(prepared, plan)))
        _say_start(plan, before, workers, prepared)
        shipped = put(settings, prepared)
        _run(plan, left, total(before.values())[0], shipped, destination, workers, options)
    return _check_whole(plan, destination)


def _settings(options: BulkOptions) -> tuple[Settings, LabelSet | None]:
    labels = None if options.labels is None else read_label_set(options.labels)
    settings = Settings(
        options.bundle.absolute(),
        top=options.top,
        threshold=options.threshold,
        thresholds=read_thresholds(options.thresholds, options.rescale_thresholds),
        crop=Crop(options.crop),
        batch_size=options.batch_size,
        cache_dir=options.cache_dir,
        engine=options.engine,
    )
    return settings, labels


def _prepared(settings: Settings, labels: LabelSet | None, background: str | None, workers: Workers) -> Prepared:
    """The vocabulary, made here, or where a worker's GPU is: what other engines encode would differ."""
    if not workers.gpus:
        return prepare(settings, labels, background)
    import ray

    there = ray.remote(num_cpus=workers.cpus, num_gpus=workers.gpus, max_retries=0)(_prepare_there)
    with _ray_errors():
        prepared: Prepared = ray.get(there.remote(put(settings, None), labels, background), timeout=_SECONDS_TO_START)
    return prepared


def _prepare_there(shipped: Shipped, labels: LabelSet | None, background: str | None) -> Prepared:
    return prepare(local_settings(shipped), labels, background)


def _plan(options: BulkOptions, destination: Destination, workers: Workers, run: str) -> Plan:
    """The plan of the run that began in this folder, or a new one. Raises UsageError where that was another run."""
    plan = destination.plan()
    if plan is None:
        source = find_source(options.source, options.endpoint)
        if source.skipped:
            log.warning(source.skipped)
        plan = make_plan(source, options, workers.count, run)
        destination.create()
        destination.save(plan)
        return plan
    if plan.run != run:
        problem = f"was begun with {differing(plan.run, run)}; use the same, or give an empty folder"
    elif plan.reading != reading_of(options):
        problem = "was begun with another source, column or key; use the same, or give an empty folder"
    else:
        return plan
    raise UsageError(problem, argument="out", value=options.out)


def _run(
    plan: Plan,
    left: list[int],
    done: int,
    shipped: Shipped,
    destination: Destination,
    workers: Workers,
    options: BulkOptions,
) -> None:
    """Let the workers tag the units that are left, and count what they say; `done` pictures were tagged before."""
    import ray.data

    context = ray.data.DataContext.get_current()
    on_terminal = sys.stdout is not None and sys.stdout.isatty() and log.isEnabledFor(logging.INFO)
    context.enable_progress_bars = on_terminal
    context.print_on_execution_start = False
    context.wait_for_min_actors_s = _SECONDS_TO_START
    context.execution_no_progress_timeout_s = _SECONDS_WITHOUT_ROWS
    # A block for each unit, since blocks are what workers are given. Nothing but the workers needs a CPU.
    units = ray.data.from_arrow([pa.table({"unit": [plan.unit(number).to_json()]}) for number in left])
    reading = Reading(options.column, options.key, options.endpoint)
    with warnings.catch_warnings():
        # Until release 2.64 there is no other way to say how often Ray tries again; by default it does so for ever.
        warnings.simplefilter("ignore", DeprecationWarning)
        tagged = units.map_batches(
            TagPictures,
            fn_constructor_args=[shipped, reading, destination, plan.rows_per_file],
            batch_size=1,
            batch_format="pyarrow",
            # No unit waits at one worker while another has nothing to do, and no worker is there for nothing.
            compute=ray.data.ActorPoolStrategy(size=min(workers.count, len(left)), max_tasks_in_flight_per_actor=1),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            max_restarts=_RESTARTS,
            max_task_retries=_TRIES - 1,
        )
    start = time.perf_counter()
    pictures = errors = size = 0
    hidden = on_terminal or plan.pictures is None
    with _ray_errors(), Progress(plan.pictures or 0, "picture", done=done, hidden=hidden) as progress:
        try:
            batches: Iterable[pa.Table] = tagged.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            for batch in batches:
                _raise_failure(batch)
                pictures += len(batch)
                errors += sum(batch.column("failed").to_pylist())
                size += sum(batch.column("bytes").to_pylist())
                progress.advance(len(batch))
        finally:
            seconds = time.perf_counter() - start
            log.info(_summary(pictures, errors, size, seconds, options.out))


def _summary(pictures: int, errors: int, size: int, seconds: float, out: str) -> str:
    rate = pictures / seconds if seconds else 0.0
    failed = f", {errors:,} of them with an error" if errors else ""
    return (
        f"{pictures:,} pictures{failed}, {size / 1e6:,.1f} MB, in {seconds:,.0f} s: {rate:,.1f} pictures/s; rows are in {out}"
    )


def _raise_failure(batch: pa.Table) -> None:
    for row in batch.filter(batch.column("failure").is_valid()).to_pylist():
        kind = UsageError if row["exit_code"] == UsageError.exit_code else ClusterError
        raise kind(row["failure"], argument=row["argument"], value=row["value"])


@contextmanager
def _ray_errors() -> Iterator[None]:
    """What Ray raises becomes one line. Errors that this package raised in a task stay what they are."""
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    try:
        yield
    except GetTimeoutError:
        problem = (
            f"the workers did not start within {_SECONDS_TO_START} s; see whether others use the cluster, or ask for fewer"
        )
        raise ClusterError(problem) from None
    except RayTaskError as error:
        if isinstance(error.cause, SigRLError):
            raise error.cause from None
        raise ClusterError(f"a task failed ({_line(error.cause or error)}); the same command goes on") from None
    except RayError as error:
        problem = f"workers died again and again ({_line(error)}); give each more memory, or leave out what kills them"
        raise ClusterError(f"{problem}; the same command goes on") from None


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _bytes(prepared: Prepared, plan: Plan) -> int:
    """What the object store needs for labels and units, at most."""
    vocabulary = prepared.vocabulary
    rows = vocabulary.label_embedding.nbytes * (1 + (vocabulary.graph_projection is not None))
    return 2 * rows + 2 * plan.table.nbytes


def _say_start(plan: Plan, before: dict[tuple[int, int], Part], workers: Workers, prepared: Prepared) -> None:
    count = f"{len(plan):,} tar files" if plan.pictures is None else f"{plan.pictures:,} pictures"
    done = f", {total(before.values())[0]:,} of them done before" if before else ""
    size = f"{workers.cpus} CPU{'s' * (workers.cpus != 1)}" + (f" and {workers.gpus:g} GPU" if workers.gpus else "")
    log.info("%s%s; %d worker%s of %s: %s", count, done, workers.count, "s" * (workers.count != 1), size, prepared.engine)


def _say_finished(parts: dict[tuple[int, int], Part], out: str) -> int:
    rows, errors, _ = total(parts.values())
    log.info("finished before: %s holds %s rows, %s of them with an error", out, f"{rows:,}", f"{errors:,}")
    return errors


def _check_whole(plan: Plan, destination: Destination) -> int:
    """How many rows have an error. Raises ClusterError where a file is missing after all."""
    done = destination.done()
    missing = len(plan) - len(finished_units(done))
    if missing:
        raise ClusterError(
            f"{destination.place.url}: {missing:,} of {len(plan):,} units are missing; run the same command again"
        )
    return total(done.values())[1]
