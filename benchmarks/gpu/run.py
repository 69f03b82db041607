"""One run: its results so far, the time that is left, and guards, so that a failed measurement loses only itself."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch

from benchmarks.gpu.setup import Setup
from sigrl_deploy.files import replacing

Result = TypeVar("Result")
Section = Callable[["Run"], None]
IDENTITY = ("section", "what", "backend", "kernel", "form", "stage", "precision", "batch", "labels")  # of an entry in a list
LAST = 4  # seconds kept for writing and ending


class OutOfTimeError(BaseException):
    """The time is over. Not an Exception, so that no library catches it."""


class NotRunError(Exception):
    """A measurement that this machine, or the time left, does not allow; the message says why."""


class GpuLostError(BaseException):
    """A kernel broke the CUDA context: nothing more runs on the GPU in this process."""


class Run:
    """Results as they grow, in `path`, and the clock. `device` is "cuda" or "cpu", `variant` a key of VARIANTS."""

    def __init__(self, device: str, variant: str, path: Path, seconds: float, results: dict[str, Any]) -> None:
        self.device, self.variant, self.path, self.results = device, variant, path, results
        self._end = time.monotonic() + seconds
        self._section = ""
        self._stream = torch.cuda.Stream() if device == "cuda" else None
        if self._stream is not None:  # one stream for all: work on several would wait for each other, or worse, not wait
            torch.cuda.set_stream(self._stream)

    @property
    def left(self) -> float:
        """Seconds until the run must be over."""
        return self._end - time.monotonic() - LAST

    @property
    def small(self) -> bool:
        """Whether this is a rehearsal on a CPU, at sizes that take no time."""
        return self.device == "cpu"

    @cached_property
    def setup(self) -> Setup:
        return Setup(self.device, self.variant)

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Append to one of the lists of results, in place of an earlier run's record of the same."""
        same = [entry.get(name) for name in IDENTITY]
        kept = [old for old in self.results.get(key, ()) if [old.get(name) for name in IDENTITY] != same]
        self.results[key] = [*kept, entry]

    def section(self, name: str, measure: Section) -> None:
        """Run a section and write what was found."""
        begun, self._section = time.monotonic(), name
        self.results["left_out"] = [entry for entry in self.results["left_out"] if entry["section"] != name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.attempt("all of it", lambda: measure(self))
        self.results["sections"][name] = round(time.monotonic() - begun, 1)
        self.write()
        print(f"{name}: {self.results['sections'][name]} s, {max(0, self.left):.0f} s left", file=sys.stderr, flush=True)

    def attempt(self, what: str, measure: Callable[[], Result], needs: float = 1) -> Result | None:
        """The result of one measurement, or None and a reason in the results: no time left (`needs` seconds), or an error.

        Raises GpuLostError where the GPU is of no more use to this process.
        """
        if self.left < needs:
            self._leave_out(what, f"not run: {max(0, self.left):.0f} s were left, it needs about {needs:.0f}")
            return None
        try:
            with alarm(self.left):
                return measure()
        except OutOfTimeError:
            self._leave_out(what, "not run: the time was over")
            return None
        except NotRunError as error:
            self._leave_out(what, f"not run: {error}")
            return None
        except torch.OutOfMemoryError:
            reason = "out of memory"
        except Exception as error:  # the compiler, the driver and every library have their own
            reason = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        self._leave_out(what, reason)
        self._recover()
        return None

    def _leave_out(self, what: str, reason: str) -> None:
        self.add("left_out", {"section": self._section, "what": what, "reason": reason})
        print(f"{self._section}, {what}: {reason}", file=sys.stderr, flush=True)

    def reason(self) -> str:
        """Why the last measurement that was left out gave no result."""
        return str(self.results["left_out"][-1]["reason"])

    def _recover(self) -> None:
        if self._stream is None:
            return
        try:
            torch.cuda.set_stream(self._stream)  # a failed capture leaves another one
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except Exception as error:
            raise GpuLostError(str(error)) from None

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in the main thread after `seconds`. An outer alarm must end after those inside it."""

    def over(*_: object) -> None:
        raise OutOfTimeError

    previous = signal.signal(signal.SIGALRM, over)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, max(0.01, seconds))
    begun = time.monotonic()
    try:
        yield
    finally:
        rest = max(0.01, outer - (time.monotonic() - begun)) if outer else 0.0
        signal.setitimer(signal.ITIMER_REAL, rest)
        signal.signal(signal.SIGALRM, previous)
