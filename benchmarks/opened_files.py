"""How often the files of a folder are opened, by whatever process: Linux says so (inotify)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_OPENED, _CLOSED = 0x20, 0x10  # IN_OPEN, IN_CLOSE_NOWRITE: of equal events that follow each other the system keeps one
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, bytes of the name that follows


@contextmanager
def counting_opens(folder: Path) -> Iterator[Counter[str]]:
    """A counter that holds, after the block, how often each file of the folder was opened in it. Raises OSError.

    The system keeps some 16,000 events; what is beyond them is lost.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(os.O_NONBLOCK)
    if queue < 0 or libc.inotify_add_watch(queue, os.fsencode(folder), _OPENED | _CLOSED) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    counts: Counter[str] = Counter()
    try:
        yield counts
        with suppress(BlockingIOError):  # when all are read
            while events := os.read(queue, 1 << 16):
                counts.update(_names(events))
    finally:
        os.close(queue)


def _names(events: bytes) -> Iterator[str]:
    place = 0
    while place < len(events):
        _, mask, _, size = _EVENT.unpack_from(events, place)
        place += _EVENT.size + size
        name = events[place - size : place].rstrip(b"\0")  # the folder itself has none
        if name and mask & _OPENED:
            yield os.fsdecode(name)
