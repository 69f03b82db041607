"""How far long work has come, on standard error: a bar on a terminal, else a plain line every half minute."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import ExitStack

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

SECONDS = 30.0  # between plain lines
_SOON = 1.0  # seconds that need no bar


class Progress:
    """To be used as a context: `with Progress(total, "picture") as progress:`, then `progress.advance()` after each.

    Says nothing where this package's log is not at level INFO: in a program that has not asked for it, or after --quiet.
    """

    def __init__(self, total: int, unit: str, hidden: bool = False) -> None:
        self._total = total
        self._unit = unit
        self._shown = log.isEnabledFor(logging.INFO) and not hidden
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar: tqdm | None = None
        self._done = 0

    def __enter__(self) -> Progress:
        self._started = self._said = time.monotonic()
        self._open = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def advance(self, count: int = 1) -> None:
        """So many more are done."""
        self._done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self._shown:
            now = time.monotonic()
            if self._terminal and now - self._started >= _SOON:
                self._bar = self._open.enter_context(tqdm(total=self._total, initial=self._done, unit=self._unit))
                self._open.enter_context(logging_redirect_tqdm())  # lines of the log go above the bar
            elif not self._terminal and now - self._said >= SECONDS and self._done < self._total:
                self._said = now
                log.info("%s", self._line(now - self._started))

    def _line(self, seconds: float) -> str:
        rate = self._done / seconds
        speed = f"{rate:,.0f}" if rate >= 10 else f"{rate:.1f}"
        left = _duration((self._total - self._done) / rate)
        return f"{self._done:,} of {self._total:,} {self._unit}s, {speed}/s, {left} to go"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
