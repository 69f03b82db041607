"""How far a long computation has come, on standard error: a bar on a terminal, elsewhere a line every half minute."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

SECONDS = 30.0  # between lines
_SOON = 1.0  # seconds before a bar appears, and between details on it


class Progress:
    """A context: `with Progress(total, "picture") as progress:`, with `progress.advance()` after each picture.

    Shows nothing unless this package's log is at level INFO: not in a program that has not asked for it, nor after --quiet.

    Args:
        total: how many there are.
        unit: what is counted, in the singular.
        done: how many were done before.
        hidden: show nothing.
    """

    def __init__(self, total: int, unit: str, *, done: int = 0, hidden: bool = False) -> None:
        self._total = total
        self._unit = unit
        self._shown = log.isEnabledFor(logging.INFO) and not hidden
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._before = self._done = done

    def __enter__(self) -> Progress:
        self._started = self._said = time.monotonic()
        self._open = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def advance(self, count: int = 1, detail: Callable[[], str] | None = None) -> None:
        """Count more as done, or none. `detail` gives a text to show beside the count; it is called only when that is due."""
        self._done += count
        if not self._shown:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(count)
        elif self._terminal and now - self._started >= _SOON:
            self._bar = self._open.enter_context(tqdm(total=self._total, initial=self._done, unit=self._unit))
            self._open.enter_context(logging_redirect_tqdm())  # lines of the log go above the bar
        elif not self._terminal and now - self._said >= SECONDS and self._done < self._total:
            self._said = now
            log.info("%s", self._line(now - self._started) + (f", {detail()}" if detail else ""))
        if self._bar is not None and detail and now - self._said >= _SOON:
            self._said = now
            self._bar.set_postfix_str(detail())

    def _line(self, seconds: float) -> str:
        rate = (self._done - self._before) / seconds
        if not rate:
            return f"{self._done:,} of {self._total:,} {self._unit}s"
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        left = _duration((self._total - self._done) / rate)
        return f"{self._done:,} of {self._total:,} {self._unit}s, {speed}/s, {left} to go"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
