"""What an engine makes when a size first comes, and keeps for the next time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Generic, TypeVar

Thing = TypeVar("Thing")


class Prepared(Generic[Thing]):
    """Things by size, made once, and at most so many of them.

    None goes alone. A CUDA graph replays on the memory of what was captured in it, so it must not outlive that; and with a
    graph go the workspaces of cuBLAS that others captured on its stream still use (pytorch/pytorch#193402).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._things: dict[Hashable, Thing] = {}

    def get(self, size: Hashable, make: Callable[[], Thing], forget: Callable[[], None]) -> Thing:
        """The thing of a size. Before one too many is made, `forget` must clear this, and whatever refers to what is here.

        What `make` raises leaves nothing behind.
        """
        if size not in self._things:
            if len(self._things) >= self._most:
                forget()
            self._things[size] = make()
        return self._things[size]

    def clear(self) -> None:
        self._things.clear()

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._things)

    def values(self) -> Collection[Thing]:
        return self._things.values()
