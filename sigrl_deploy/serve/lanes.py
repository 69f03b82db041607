"""What waits for a worker: a lane for each vocabulary, the one first whose head has waited longest."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """Something that waits."""

    @property
    def vocabulary(self) -> Hashable:
        """Its lane: only what has the same one may share a batch."""

    @property
    def arrived(self) -> float:
        """When it came, by `time.monotonic()`."""


Item = TypeVar("Item", bound=Waiting)


class Lanes(Generic[Item]):
    """Threads may share it. `room` is how many may be in it; None for any number."""

    def __init__(self, room: int | None = None) -> None:
        self._room = room
        self._lanes: dict[Hashable, deque[Item]] = {}
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._count

    def put(self, item: Item) -> bool:
        """Add an item to the end of its lane, as soon as there is room. Returns False, and adds nothing, where it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._room is None or self._count < self._room)
            if self._closed:
                return False
            self._lanes.setdefault(item.vocabulary, deque()).append(item)
            self._count += 1
            self._changed.notify_all()
            return True

    def take(self, most: int, patience: float = 0.0) -> list[Item]:
        """Up to `most` items of one lane, oldest first, as soon as there are any; none once it is closed and empty.

        For a full batch it waits until the head of the lane is `patience` seconds old.
        """
        with self._changed:
            while self._count or not self._closed:
                if not self._count:
                    self._changed.wait()
                    continue
                lane = min(self._lanes.values(), key=lambda lane: lane[0].arrived)
                left = lane[0].arrived + patience - time.monotonic()
                if left > 0 and len(lane) < most and not self._closed:
                    self._changed.wait(left)
                    continue
                taken = [lane.popleft() for _ in range(min(most, len(lane)))]
                self._removed(taken[0].vocabulary, len(taken))
                return taken
            return []

    def discard(self, item: Item) -> None:
        """Take an item out, if it is there."""
        with self._changed:
            lane = self._lanes.get(item.vocabulary, deque())
            if item in lane:
                lane.remove(item)
                self._removed(item.vocabulary, 1)

    def close(self) -> None:
        """Take nothing more. What is in it can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def drop(self) -> list[Item]:
        """Close it, and take everything out."""
        with self._changed:
            left = [item for lane in self._lanes.values() for item in lane]
            self._lanes.clear()
            self._count = 0
            self.close()
            return left

    def _removed(self, vocabulary: Hashable, count: int) -> None:
        if not self._lanes[vocabulary]:
            del self._lanes[vocabulary]
        self._count -= count
        self._changed.notify_all()
