"""What an engine makes at the first use of a size, and keeps for the next one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class SizeCache(Generic[Item]):
    """Items by size, each made once, at most `most` of them.

    Items are never dropped one by one, only all together. A CUDA graph replays on the memory of what was captured in it, so it
    must not outlive that. And dropping one graph frees cuBLAS workspaces that other graphs captured on its stream still use
    (pytorch/pytorch#193402).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: dict[Hashable, Item] = {}

    def get(self, size: Hashable, make: Callable[[], Item], forget: Callable[[], None]) -> Item:
        """The item of a size, made by `make` where there is none.

        Where the cache is full, `forget` is called first: it must clear the cache, and whatever refers to its items. Nothing is
        kept where `make` raises.
        """
        if size not in self._items:
            if len(self._items) >= self._most:
                forget()
            self._items[size] = make()
        return self._items[size]

    def clear(self) -> None:
        self._items.clear()

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._items)

    def values(self) -> Collection[Item]:
        return self._items.values()
