"""Compiles all candidates at once, with one process per core, into Triton's cache, which this process then reads.

A child runs its kernels, on the GPU and at the sizes that come later, since the cache goes by arguments too. A candidate that
crashes, or never ends, takes only its child with it; it is recorded, and no later section runs it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import Empty, SimpleQueue
from typing import Any

import torch

from benchmarks.gpu.cases import BEHIND_ENGINE, ERRORS, PRECISIONS, REHEARSED, TIMES, Kernel, kernels
from benchmarks.gpu.run import Run
from sigrl_deploy.config import ModelConfig
from sigrl_deploy.model.sigrl import SigRL
from sigrl_deploy.model.towers import typed

LONGEST = 60  # seconds that a candidate may take
SHARE = 0.4  # of the time that is left, at most, for all of them
PROCESSES = 16


@dataclass(frozen=True)
class Task:
    """One candidate, by its place in the tables, since candidates cannot be pickled."""

    kernel: str
    precision: int
    launch: int


@dataclass(frozen=True)
class Work:
    """What a child needs to build the tables itself, and the sizes (batch, labels) that it runs."""

    config: ModelConfig
    device: str
    sizes: tuple[tuple[int, int], ...]


def compiling(run: Run) -> None:
    """Into `compiled` how many candidates there are, and those that fail."""
    tasks, names = [], {}
    for kernel in kernels(run.setup.config, run.setup.typed, run.device):
        for number, (dtype, precision) in enumerate(PRECISIONS.items()):
            for place, launch in enumerate(kernel.launches(dtype) if dtype in kernel.dtypes else ()):
                task = Task(kernel.name, number, place)
                tasks.append(task)
                names[task] = {"kernel": kernel.name, "precision": precision.value, "launch": launch.name}
    tasks.sort(key=lambda task: task.precision)
    work = Work(run.setup.config, run.device, tuple(dict.fromkeys((*ERRORS[:3], *TIMES, *BEHIND_ENGINE))))
    if run.small:  # the interpreter compiles nothing; one task shows that children do their work
        tasks, work = tasks[:1], Work(work.config, work.device, (REHEARSED,))
    end = run.left * (1 - SHARE)
    processes = min(PROCESSES, len(os.sched_getaffinity(0)), len(tasks))
    failed = in_children(tasks, child, work, processes, lambda: run.left - end)
    reasons = [names[task] | {"reason": reason} for task, reason in failed.items()]
    run.results["compiled"] = {"candidates": len(tasks), "processes": processes, "failed": reasons}


def usable(run: Run, kernel: Kernel, dtype: torch.dtype) -> list[Any]:
    """The candidates of a kernel that did not fail in a child; what was not compiled there is compiled when it is used."""
    failed = {tuple(entry.values())[:3] for entry in run.results.get("compiled", {}).get("failed", ())}
    return [how for how in kernel.launches(dtype) if (kernel.name, PRECISIONS[dtype].value, how.name) not in failed]


def in_children(
    tasks: list[Any], target: Callable[..., None], work: Any, processes: int, left: Callable[[], float]
) -> dict[Any, str]:
    """The tasks that fail, with a reason. `target(connection, work)` answers each task it receives by (reason, goes on)."""
    queue: SimpleQueue[Any] = SimpleQueue()
    for task in tasks:
        queue.put(task)
    with ThreadPoolExecutor(processes) as pool:
        parts = list(pool.map(_drive, *map(repeat, (queue, target, work, left)), range(processes)))
    return {task: reason for part in parts for task, reason in part.items()}


def _drive(
    queue: SimpleQueue[Any], target: Callable[..., None], work: Any, left: Callable[[], float], _: int
) -> dict[Any, str]:
    """One child after the other, until nothing, or no time, is left."""
    failed: dict[Any, str] = {}
    process, connection = None, None
    while left() > 0:
        try:
            task = queue.get_nowait()
        except Empty:
            break
        if process is None or connection is None:
            connection, theirs = get_context("spawn").Pipe()
            process = get_context("spawn").Process(target=target, args=(theirs, work), daemon=True)
            process.start()
            theirs.close()  # so that its end is seen here
        reason, goes_on = _ask(connection, task, min(LONGEST, left()))
        if reason:
            failed[task] = reason
        if not goes_on:
            _end(process)
            process = None
    if process is not None:
        _end(process)
    return failed


def _end(process: BaseProcess) -> None:
    process.kill()
    process.join()


def _ask(connection: Connection, task: Any, seconds: float) -> tuple[str, bool]:
    try:
        connection.send(task)
        if connection.poll(max(1, seconds)):
            answer: tuple[str, bool] = connection.recv()
            return answer
    except (EOFError, OSError):
        return "its process died", False
    return f"did not end in {seconds:.0f} s", False


def child(connection: Connection, work: Work) -> None:
    """Runs candidates as they are asked for."""
    torch.set_num_threads(1)
    with torch.inference_mode():
        table = {kernel.name: kernel for kernel in kernels(work.config, cache(lambda p: _model(work, p)), work.device)}
        while True:
            task = connection.recv()
            connection.send(_outcome(table[task.kernel], task, work))


def _model(work: Work, precision: Any) -> SigRL:
    with torch.device(work.device):
        return typed(SigRL(work.config), precision).eval().requires_grad_(False)


def _outcome(kernel: Kernel, task: Task, work: Work) -> tuple[str, bool]:
    """Why a candidate fails, or nothing, and whether this process can go on."""
    dtype = list(PRECISIONS)[task.precision]
    try:
        how = kernel.launches(dtype)[task.launch]
        for batch, labels in work.sizes:
            kernel.run(*kernel.inputs(labels, batch, dtype), how)
        _wait(work.device)
        return "", True
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    try:
        _wait(work.device)
        return reason, True
    except Exception:  # the context is lost
        return reason, False


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
