"""Processes that examine files while their time, memory, output and open files are watched."""

from __future__ import annotations

import importlib
import logging
import os
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from random import Random
from types import ModuleType

HANG_SECONDS = 60.0
_ADDRESS_SPACE = 8 * 2**30  # a bound for the machine's sake, far above the one that is tested


@dataclass(frozen=True)
class Outcome:
    """The result of one file. `fault` is a traceback, a signal, a hang, or what was printed or left open; "" if none."""

    case: int
    read: bool
    seconds: float  # of CPU, all threads together
    megabytes: float  # the most that the process grew by
    fault: str = ""


def outcomes(target: str, cases: range, processes: int) -> Iterator[Outcome]:
    """Each case of a target, which is a module's name, in no order. A process that dies or hangs is replaced."""
    waiting = iter(cases)
    workers = {worker.connection: worker for worker in (_Worker(target, waiting) for _ in range(processes))}
    while workers:
        answered = wait(list(workers), timeout=1.0)
        for connection, worker in list(workers.items()):
            if connection not in answered and time.monotonic() < worker.deadline:
                continue
            outcome = worker.outcome(answered=connection in answered)
            if outcome is not None:
                yield outcome
            if outcome is not None and outcome.fault and not worker.process.is_alive():
                del workers[connection]
                worker = _Worker(target, waiting)
                workers[worker.connection] = worker
            elif not worker.next_case():
                worker.stop()
                del workers[connection]


class _Worker:
    """One process, which is given a case at a time."""

    def __init__(self, target: str, waiting: Iterator[int]) -> None:
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(target, theirs, os.getpid()), daemon=True)
        self.process.start()
        theirs.close()
        self._waiting = waiting
        self._case: int | None = None
        self.deadline = time.monotonic() + HANG_SECONDS  # for its imports

    def next_case(self) -> bool:
        self._case = next(self._waiting, None)
        if self._case is None:
            return False
        self.connection.send(self._case)
        self.deadline = time.monotonic() + HANG_SECONDS
        return True

    def outcome(self, answered: bool) -> Outcome | None:
        """None for the first answer, which only tells that the process is ready."""
        with suppress(EOFError, OSError):
            if answered:
                return self.connection.recv()
        self.process.join(0 if not answered else 10)
        how = "hangs" if self.process.is_alive() else f"ends the process with {self.process.exitcode}"
        self.stop()
        if self._case is None:
            raise RuntimeError(f"a worker {how} before its first case")
        return Outcome(self._case, False, HANG_SECONDS, 0.0, how)

    def stop(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.join()


def make_case(target: str, case: int) -> bytes:
    """The file of a case, the same in every process."""
    module = importlib.import_module(target)
    files = module.corpus()
    rng = Random(case)
    return module.mutate(files[rng.choice(sorted(files))], list(files.values()), rng)


def _work(target: str, connection: Connection, parent: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    module = importlib.import_module(target)
    logging.disable(logging.WARNING)  # warnings of the package are not faults
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        for data in module.corpus().values():  # loads what is loaded once
            module.examine(data)
        connection.send(None)
        while os.getppid() == parent:
            case = connection.recv()
            connection.send(_measured(module, case, make_case(target, case), printed.fileno()))


def _measured(module: ModuleType, case: int, data: bytes, printed: int) -> Outcome:
    before, open_before, start = _reset_peak(), _open_files(), time.process_time()
    fault, read = "", False
    try:
        read = module.examine(data)
    except Exception:
        fault = traceback.format_exc()
    seconds, megabytes = time.process_time() - start, max(0.0, _peak() - before)
    sys.stderr.flush()
    if words := os.pread(printed, 500, 0):
        fault += f"prints {words!r}"
        os.ftruncate(printed, 0)
        os.lseek(printed, 0, os.SEEK_SET)
    if _open_files() > open_before:
        fault += "leaves a file open"
    return Outcome(case, read, seconds, megabytes, fault)


def _reset_peak() -> float:
    """The process's memory now, in MB, from which its peak counts anew where the system can do that."""
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _peak()


def _peak() -> float:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
