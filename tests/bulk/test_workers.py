"""How many workers fit, which is known before Ray would wait for them without a word."""

from __future__ import annotations

import pytest

from sigrl_deploy.bulk.cluster import Node, Workers
from sigrl_deploy.bulk.tagging import ray_errors
from sigrl_deploy.errors import ClusterError, UsageError
from tests.support.refusals import assert_refused, refused

LAPTOP, BIG, GPUS = [Node(2)], [Node(64)], [Node(4), Node(32, 4), Node(32, 4)]


@pytest.mark.parametrize(
    ("nodes", "asked", "wanted"),
    [
        (LAPTOP, (None, None, None), (2, 1, 0)),
        (LAPTOP, (2, 1, None), (2, 1, 0)),
        (LAPTOP, (None, 1, None), (2, 1, 0)),
        ([Node(1)], (None, None, None), (1, 1, 0)),
        (BIG, (None, None, None), (64, 1, 0)),
        (BIG, (3, None, None), (3, 1, 0)),
        (GPUS, (None, None, None), (8, 8, 1)),
        (GPUS, (None, 2, None), (8, 2, 1)),
        (GPUS, (None, 2, 0.5), (16, 2, 0.5)),
        (GPUS, (None, None, 0), (68, 1, 0)),
        ([Node(2), Node(3)], (None, 2, None), (2, 2, 0)),
        ([Node(0), Node(64)], (None, None, None), (64, 1, 0)),  # a head that computes nothing
        ([Node(64, 8)], (8, None, None), (8, 8, 1)),
        ([Node(64, 1)], (5, None, 0.2), (5, 12, 0.2)),
        ([Node(64, 1)], (10, None, 0.1), (10, 6, 0.1)),
        ([Node(64, 4)], (None, None, 2), (2, 32, 2)),
    ],
)
def test_workers_fill_the_nodes(nodes: list[Node], asked: tuple[object, ...], wanted: tuple[object, ...]) -> None:
    found = Workers.of(nodes, *asked)  # type: ignore[arg-type]
    assert (found.count, found.cpus, found.gpus) == wanted


@pytest.mark.parametrize(
    ("nodes", "asked", "said"),
    [
        (LAPTOP, (3, 1, None), "each is to have 1 CPU, and there are 2 CPUs and 0 GPUs on 1 node; `workers=2` fits"),
        (LAPTOP, (1, 4, None), "4 CPUs, and there are 2 CPUs and 0 GPUs on 1 node; `cpus_per_worker=2` is the most"),
        (LAPTOP, (None, 4, None), "`cpus_per_worker=2` is the most"),
        ([Node(2), Node(2)], (1, 3, None), "4 CPUs and 0 GPUs on 2 nodes; `cpus_per_worker=2` is the most"),
        (LAPTOP, (1, 1, 1), "1 CPU and 1 GPU, and there are 2 CPUs and 0 GPUs on 1 node; use `gpus_per_worker=0`"),
        (LAPTOP, (1, None, 1), "use `gpus_per_worker=0`"),
        ([], (1, None, 1), "add nodes with CPUs"),
        ([Node(0)], (None, None, None), "add nodes with CPUs"),
        (GPUS, (9, 1, 1), "`workers=8` fits"),
        (GPUS, (9, None, None), "`workers=8` fits"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(nodes: list[Node], asked: tuple[object, ...], said: str) -> None:
    assert_refused(lambda: Workers.of(nodes, *asked), UsageError, "workers=", said)  # type: ignore[arg-type]


@pytest.mark.parametrize("gpus", [1.5, float("nan"), float("inf")])
def test_parts_of_two_gpus_are_refused(gpus: float) -> None:
    assert refused(lambda: Workers.of([Node(8, 4)], 1, 1, gpus))[0] == "gpus_per_worker"


def test_a_run_that_stands_still_ends_with_one_line() -> None:
    from ray.data.exceptions import ExecutionTimeoutError

    def stands() -> None:
        with ray_errors():
            raise ExecutionTimeoutError("no progress\nfor hours")

    assert_refused(stands, ClusterError, "no file was finished in 4 hours", "the same command goes on")
