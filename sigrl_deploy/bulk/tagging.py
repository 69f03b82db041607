"""The part of a run that Ray Data does: handing units to workers, and counting what they say."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pyarrow as pa

from sigrl_deploy.bulk.cluster import Workers
from sigrl_deploy.bulk.options import BulkOptions
from sigrl_deploy.bulk.parts import Key, Part, Parts, finished_units, total
from sigrl_deploy.bulk.plan import Plan
from sigrl_deploy.bulk.reading import Reading
from sigrl_deploy.bulk.worker import TagPictures
from sigrl_deploy.errors import ClusterError, SigRLError, UsageError, printable
from sigrl_deploy.progress import Progress
from sigrl_deploy.ray.shipping import Shipped

log = logging.getLogger(__name__)

SECONDS_TO_START = 900  # for the processes of all workers to start
_SECONDS_WITHOUT_ROWS = 4 * 3600  # after which a run ends: the slowest model takes an hour for a file
_TRIES = 4  # of a unit whose worker dies
_RESTARTS = 20  # of one worker
_NAMED = 3  # files in a line


def tag_units(
    plan: Plan,
    left: Sequence[int],
    before: Mapping[Key, Part],
    shipped: Shipped,
    parts: Parts,
    workers: Workers,
    options: BulkOptions,
) -> None:
    """Let workers tag the units that are `left`, and write their files; those of `before` are there. Says how it goes.

    Raises ClusterError where workers die again and again or do not start, and UsageError where they cannot go on.
    """
    start, done = time.perf_counter(), dict(before)
    of_tars = plan.pictures is None  # whose pictures nobody has counted
    if of_tars:
        progress = Progress(len(plan), "tar file", done=len(plan) - len(left))
    else:
        progress = Progress(plan.pictures or 0, "picture", done=total(before.values())[0])
    detail = (lambda: f"{total(done.values())[0]:,} pictures") if of_tars else None
    try:
        with ray_errors(lambda: _in_hand(plan, left, done, workers)), progress:
            for batch in _said(plan, left, shipped, parts, workers, options):
                for key, part in _parts(batch):
                    if key not in done:  # a worker says, too, what was there
                        done[key] = part
                        progress.advance(part.last if of_tars else part.rows, detail)
    finally:
        new = [part for key, part in done.items() if key not in before]
        log.info(_summary(*total(new), time.perf_counter() - start, options.out))


def _said(
    plan: Plan, left: Sequence[int], shipped: Shipped, parts: Parts, workers: Workers, options: BulkOptions
) -> Iterable[pa.Table]:
    """What the workers say, as they say it."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # they count rows, which are files here
    context.print_on_execution_start = False
    context.target_max_block_size = 1  # the driver hears of each file at once
    context.wait_for_min_actors_s = SECONDS_TO_START
    context.execution_no_progress_timeout_s = _SECONDS_WITHOUT_ROWS
    # A block for each unit, since blocks are what workers are given. Other ways to make them run tasks, which wait without end
    # for a CPU that a cluster may not have.
    units = ray.data.from_blocks([pa.table({"unit": [number]}) for number in left])
    with warnings.catch_warnings():
        # Until release 2.64 there is no other way to say how often Ray tries again; by default it does so for ever.
        warnings.simplefilter("ignore", DeprecationWarning)
        tagged = units.map_batches(
            TagPictures,
            fn_constructor_args=[shipped, ray.put(plan), Reading.of(options, plan), parts],
            batch_size=1,
            batch_format="pyarrow",
            # No unit waits at one worker while another has nothing to do, and no worker is there for nothing.
            compute=ray.data.ActorPoolStrategy(size=min(workers.count, len(left)), max_tasks_in_flight_per_actor=1),
            num_cpus=workers.cpus,
            num_gpus=workers.gpus,
            max_restarts=_RESTARTS,
            max_task_retries=_TRIES - 1,
        )
    batches: Iterable[pa.Table] = tagged.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    return batches


def _parts(batch: pa.Table) -> Iterator[tuple[Key, Part]]:
    """The files that a worker speaks of. Raises the error that it could not go on with."""
    for row in batch.to_pylist():
        if row["failure"] is not None:
            kind = UsageError if row["exit_code"] == UsageError.exit_code else ClusterError
            raise kind(row["failure"], argument=row["argument"], value=row["value"])
        yield (row["unit"], row["number"]), Part(row["rows"], row["errors"], row["bytes"], row["last"], row["plan"])


def _summary(pictures: int, errors: int, size: int, seconds: float, out: str) -> str:
    rate = pictures / seconds if seconds else 0.0
    failed = f", {errors:,} of them with an error" if errors else ""
    return (
        f"{pictures:,} pictures{failed}, {size / 1e6:,.1f} MB, in {seconds:,.0f} s: {rate:,.1f} pictures/s; rows are in {out}"
    )


def _in_hand(plan: Plan, left: Sequence[int], done: Mapping[Key, Part], workers: Workers) -> str:
    """The files that workers had when they died. Ray hands units out in their order."""
    finished = finished_units(done)
    units = [plan.unit(number) for number in left if number not in finished][: workers.count]
    named = [printable(unit.urls[0]) + (f" to {printable(unit.urls[-1])}" if len(unit.urls) > 1 else "") for unit in units]
    return ", or ".join(named[:_NAMED]) + (f", or others of {len(named)}" if len(named) > _NAMED else "")


@contextmanager
def ray_errors(in_hand: Callable[[], str] = str) -> Iterator[None]:
    """What Ray raises becomes one line. Errors that this package raised in a task stay what they are.

    `in_hand` names what workers had when they died.
    """
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    try:
        yield
    except GetTimeoutError:
        problem = f"the workers did not start within {SECONDS_TO_START} s; see whether others use the cluster, or ask for fewer"
        raise ClusterError(problem) from None
    except ExecutionTimeoutError:
        problem = f"no file was finished in {_SECONDS_WITHOUT_ROWS / 3600:g} hours; see what the workers wait for"
        raise ClusterError(f"{problem}; the same command goes on") from None
    except RayTaskError as error:
        if isinstance(error.cause, SigRLError):
            raise error.cause from None
        raise ClusterError(f"a task failed ({_line(error.cause or error)}); the same command goes on") from None
    except RayError as error:
        advice = "give each more memory, or delete the file that kills them"
        files = f", in {found}" if (found := in_hand()) else ""
        problem = f"workers died again and again ({_line(error)}); {advice}{files}; the same command goes on"
        raise ClusterError(problem) from None


def _line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
