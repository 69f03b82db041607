"""Ray: starting it here or joining a cluster, and whether the workers fit."""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sigrl_deploy.errors import UsageError, printable
from sigrl_deploy.machine import cpus
from sigrl_deploy.machine.gpu import gpus_at_hand

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 256 << 20  # beside the bundle's labels: pictures never go through it
_LONGEST_FOLDER = 40  # characters of a temporary folder: Ray's sockets lie below it, and have short names


@dataclass(frozen=True)
class Node:
    """What one machine has for workers."""

    cpus: int
    gpus: float = 0

    def holds(self, cpus: int, gpus: float) -> int:
        """How many workers of such a size it holds."""
        by_cpu = self.cpus // cpus
        if not gpus:
            return by_cpu
        # Several may share a GPU, but none has parts of two. 1 / 0.2 is a little less than 5 where it is rounded.
        by_gpu = int(self.gpus // gpus) if gpus >= 1 else int(self.gpus) * int(1 / gpus + 1e-9)
        return min(by_cpu, by_gpu)


@dataclass(frozen=True)
class Workers:
    """How many processes tag, and what each has."""

    count: int
    cpus: int
    gpus: float

    @classmethod
    def of(cls, nodes: Sequence[Node], count: int | None, cpus: int | None, gpus: float | None) -> Workers:
        """What was asked for, and defaults that use all nodes: one GPU a worker where there are any, else one CPU.

        Threads of one worker wait for each other, and for Ray's own processes.

        Raises UsageError where the nodes do not hold so many: Ray would wait for ever, without a word.
        """
        if gpus is not None and not (math.isfinite(gpus) and (gpus <= 1 or gpus == int(gpus))):
            raise UsageError("expected a whole number, or a part of 1", argument="gpus_per_worker", value=gpus)
        gpus = (1.0 if any(node.gpus for node in nodes) else 0.0) if gpus is None else gpus
        if cpus is None:
            shares = [node.cpus / max(1, node.gpus / gpus) for node in nodes if node.cpus and node.gpus] if gpus else []
            cpus = max(1, math.floor(min(shares, default=1)))
        most = sum(node.holds(cpus, gpus) for node in nodes)
        if count is None:
            count = max(1, most)
        if count > most:
            raise UsageError(_too_many(nodes, count, cpus, gpus, most), argument="workers", value=count)
        return cls(count, cpus, gpus)


def _too_many(nodes: Sequence[Node], count: int, cpus: int, gpus: float, most: int) -> str:
    """What is too small, and what would fit."""
    size = f"{_count(cpus, 'CPU')}" + (f" and {_count(gpus, 'GPU')}" if gpus else "")
    there = f"{_count(sum(node.cpus for node in nodes), 'CPU')} and {_count(sum(node.gpus for node in nodes), 'GPU')}"
    where = f"{there} on {_count(len(nodes), 'node')}"
    largest = max((node.cpus for node in nodes), default=0)
    if not largest:
        fits = "add nodes with CPUs"
    elif most:
        fits = f"`workers={most}` fits"
    elif gpus and not any(node.holds(1, gpus) for node in nodes):
        fits = "use `gpus_per_worker=0`, or add GPUs"
    else:
        fits = f"`cpus_per_worker={largest}` is the most"
    return f"each is to have {size}, and there are {where}; {fits}" if count else ""


def _count(number: float, unit: str) -> str:
    return f"{number:g} {unit}{'' if number == 1 else 's'}"


def quiet_ray() -> None:
    """Before Ray is imported: no usage statistics, and no lines of its own beside ours."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a worker without a GPU sees none
    logging.getLogger("ray").setLevel(logging.ERROR)


@contextmanager
def started(address: str | None, object_store_bytes: int = 0) -> Iterator[None]:
    """Ray, on this machine or joined at `address`, until the block ends.

    Raises UsageError where there is no cluster, or Ray cannot start.
    """
    quiet_ray()
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    folder: str | None = None
    if address is None:
        folder = _temporary_folder()
        options |= {
            "address": "local",
            "num_cpus": cpus.threads(),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES + object_store_bytes,
            "_temp_dir": folder,
        }
    else:
        options["address"] = address
    kept = True
    log.info("starting Ray" if address is None else f"joining the Ray cluster at {printable(address)}")
    try:
        try:
            with _native_lines_hidden(), _without_messages(), _own_signals():
                ray.init(**options)
        except Exception as error:  # of a node that starts too slowly Ray raises Exception itself
            line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            if address is None:
                raise UsageError(f"Ray could not start ({line})") from None
            problem = (
                f"no cluster answers ({line}); expected such as ray-head:6379, and RAY_AUTH_MODE=token where it has a token"
            )
            raise UsageError(problem, argument="address", value=address) from None
        _quiet_data()
        yield
        kept = False
    finally:
        ray.shutdown()
        if folder is not None:
            if kept and log.isEnabledFor(logging.DEBUG):
                log.debug("Ray's own logs are in %s", folder)
            else:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _without_messages() -> Iterator[None]:
    """Ray prints on standard output that a worker died, which is mended, or becomes an error of this program."""
    from ray._private import worker

    listen = getattr(worker, "listen_error_messages", None)
    if listen is None:
        yield
        return
    worker.listen_error_messages = lambda *_: None
    try:
        yield
    finally:
        worker.listen_error_messages = listen


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray puts a handler of its own in the place of this program's, which cleans up and says what is kept."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _native_lines_hidden() -> Iterator[None]:
    """Ray's C++ says on standard error how it is configured, whatever its level. What goes wrong is an exception."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _temporary_folder() -> str | None:
    folder = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="sigrl-ray-", dir=folder if len(folder) <= _LONGEST_FOLDER else "/tmp")


def _quiet_data() -> None:
    """Ray Data says a lot on the terminal, and all of it in its log too."""
    import ray.data  # noqa: F401 - it makes its handlers

    for handler in logging.getLogger("ray.data").handlers:
        on_terminal = isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
        if on_terminal and handler not in logging.getLogger().handlers:  # those are the program's own
            handler.setLevel(logging.CRITICAL)


def nodes() -> list[Node]:
    """The machines of the cluster that Ray has joined."""
    import ray

    alive = [node.get("Resources", {}) for node in ray.nodes() if node["Alive"]]
    return [Node(int(resources.get("CPU", 0)), float(resources.get("GPU", 0))) for resources in alive]


def this_machine() -> list[Node]:
    """The node that Ray would make of this machine."""
    return [Node(cpus.threads(), gpus_at_hand())]


def require_shared(paths: Sequence[str], seconds: float) -> None:
    """Raise UsageError where a node of the cluster does not see what lies on this machine's disks."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not paths:
        return
    task = ray.remote(num_cpus=0)(_missing)
    alive = [node for node in ray.nodes() if node["Alive"]]
    on = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in alive]
    answers = ray.get([task.options(scheduling_strategy=there).remote(paths) for there in on], timeout=seconds)
    for node, missing in zip(alive, answers, strict=True):
        if missing is not None:
            problem = f"{printable(missing)} is not there on node {node['NodeManagerAddress']}"
            raise UsageError(f"{problem}; use a folder that all nodes share, or a bucket", argument="address")


def _missing(paths: Sequence[str]) -> str | None:
    return next((path for path in paths if not os.path.exists(path)), None)
