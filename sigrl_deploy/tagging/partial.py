"""`OUT.partial`: where a run that writes JSON lines keeps its records until it is complete. One process at a time writes it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sigrl_deploy.errors import UsageError
from sigrl_deploy.files import replacing
from sigrl_deploy.tagging.output import open_text, output_errors
from sigrl_deploy.tagging.run_name import differing

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Partial:
    """The open file, and for each picture that it held at the start whether its record is an error."""

    stream: TextIO
    done: dict[str, bool]


def partial_path(out: Path) -> Path:
    """Where an unfinished JSON lines run keeps its records."""
    return out.with_name(out.name + ".partial")


def records_kept(out: Path) -> str:
    """How many records an unfinished run has, in words; "" where there are none."""
    partial = partial_path(out)
    count = partial.read_bytes().count(b"\n") if partial.exists() else 0
    return f"{count} record{'' if count == 1 else 's'}" if count else ""


def check_fresh(out: Path, resumable: bool = True) -> None:
    """Raise UsageError where a new run would lose the records of an earlier one."""
    partial = partial_path(out)
    if resumable and _holds_something(partial):
        problem = f"an interrupted run left {partial.name}; continue it with `resume`, or start again with `overwrite`"
        raise UsageError(problem, argument="out", value=out)
    if _holds_something(out):
        resume = " continue it with `resume`," if resumable else ""
        problem = f"exists already;{resume} replace it with `overwrite`, or choose another name"
        raise UsageError(problem, argument="out", value=out)


def _holds_something(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


@contextmanager
def open_partial(out: Path, run: str, *, resume: bool, retry_errors: bool, overwrite: bool) -> Iterator[Partial]:
    """`OUT.partial`, which becomes `OUT` when the block ends well. One that fails leaves it for `resume`, unless it is empty.

    With `resume` it goes on after the last whole line, without the errors where `retry_errors`; a finished `OUT` is continued
    too. `run` is what `run_name` gives.

    Raises UsageError where the file was written by another run, another process is writing it, or it cannot be written, and
    without `resume` or `overwrite` as `check_fresh` does.
    """
    path = partial_path(out)
    with output_errors(out, advice="; then continue with `resume`"):
        stream = _locked(path)
        try:
            done: dict[str, bool] = {}
            if resume:
                source = path if _holds_something(path) or not out.exists() else out
                done, end = _read_records(source, run)
                if source is path and not (retry_errors and any(done.values())):
                    os.truncate(path, end)
                else:
                    stream = _rewritten(stream, path, source, end, retry_errors)
                    done = {picture: failed for picture, failed in done.items() if not (failed and retry_errors)}
            else:
                if not overwrite:
                    check_fresh(out)
                os.truncate(path, 0)
            yield Partial(stream, done)
            stream.flush()
            if fcntl is None:
                stream.close()
            path.replace(out)
        finally:
            if not stream.closed and _is_at(stream, path) and not _holds_something(path):
                path.unlink()
            stream.close()


def _locked(path: Path) -> TextIO:
    """The file, open for appending, with a lock that ends with the file or the process."""
    while True:
        stream = open_text(path, "a")
        try:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.close()
            problem = f"another run is writing {path.name}; wait for its end, or choose another name"
            raise UsageError(problem, argument="out") from None
        except OSError:
            pass  # a file system without locks
        # The process that had the lock may have renamed or removed the file since it was opened here.
        if _is_at(stream, path):
            return stream
        stream.close()


def _is_at(stream: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _rewritten(held: TextIO, path: Path, source: Path, end: int, without_errors: bool) -> TextIO:
    """The partial file written again, locked: the first `end` bytes of `source`, or only the records there without an error."""
    taken = None
    with replacing(path) as temporary:
        with source.open("rb") as old, temporary.open("wb") as new:
            while old.tell() < end:
                line = old.readline()
                if not (without_errors and "error" in json.loads(line)):
                    new.write(line)
        if fcntl is None:  # Windows does not rename onto an open file
            held.close()
        else:
            taken = _locked(temporary)  # before others can find it by its name
    held.close()
    return taken or open_text(path, "a")


def _read_records(path: Path, run: str) -> tuple[dict[str, bool], int]:
    """Whether each path done failed, and the length in bytes of all whole lines."""
    done: dict[str, bool] = {}
    end = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                break
            end += len(line)
            record = _parse(line, path, number, run)
            done[record["path"]] = "error" in record
    return done, end


def _parse(line: bytes, path: Path, number: int, run: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
        whole = isinstance(record["path"], str) and isinstance(record["run"], str)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        problem = f"{path}, line {number}: not a record of sigrl-deploy infer; move the file away, or choose another `out`"
        raise UsageError(problem, argument="resume")
    if record["run"] != run:
        difference = differing(record["run"], run)
        problem = f"{path}, line {number}: was written with {difference}; use the same, or move the file away"
        raise UsageError(problem, argument="resume")
    return record
