"""Ctrl-C, SIGTERM and SIGHUP: one line and an exit status instead of a traceback, from the first import to the last result."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SAID = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
_SOON = 0.05  # seconds


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end; `exit_code` is what a shell reports for it."""

    def __init__(self, number: int) -> None:
        super().__init__(_SAID[signal.Signals(number).name])
        self.number = number
        self.exit_code = 128 + number


def leave_at_once() -> None:
    """From now on Ctrl-C ends the process at once: for the time of imports, when there is nothing to clean up."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)


@contextmanager
def interruptible() -> Iterator[None]:
    """In the block these signals raise `Interrupted`, so that the program cleans up. One that comes during an import waits for
    its end.

    A signal that somebody else handles, or that is ignored, as under nohup, is left alone. To be used in the main thread.
    """
    ours = (signal.SIG_DFL, signal.default_int_handler, _leave)
    numbers = [getattr(signal, name) for name in _SAID if hasattr(signal, name)]
    before = {number: signal.signal(number, _raise) for number in numbers if signal.getsignal(number) in ours}
    hook = sys.unraisablehook

    def send_again(lost: Any) -> None:
        # It was raised in a callback, where Python can only report it.
        if isinstance(lost.exc_value, Interrupted):
            _send_soon(lost.exc_value.number)
        else:
            hook(lost)

    sys.unraisablehook = send_again
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def _leave(number: int, _: FrameType | None) -> None:
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> None:
    # Extension modules make ImportError, or worse, of an exception that comes while they start.
    if _in_import(frame):
        _send_soon(number)
    else:
        raise Interrupted(number)


def _in_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _send_soon(number: int) -> None:
    main = _thread.get_ident()

    def send() -> None:
        time.sleep(_SOON)
        if hasattr(signal, "pthread_kill"):  # which wakes the main thread where it waits
            signal.pthread_kill(main, number)
        else:
            signal.raise_signal(number)

    # Not threading's: its locks may be held by what the signal has interrupted.
    _thread.start_new_thread(send, ())
