"""Pictures of one or several tiles: into batches of tiles for an engine, and what it gives back by picture."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from sigrl_deploy.arrays import FloatArray, Pixels
from sigrl_deploy.pictures.crops import Layout, View

Result = TypeVar("Result")


def by_picture(
    batches: Iterable[Sequence[View]], most: int, run: Callable[[Iterable[Pixels]], Iterable[Iterable[Result]]]
) -> Iterator[list[tuple[Layout, list[Result]]]]:
    """For each batch of pictures, in order: each picture's layout, and the results of its tiles.

    Args:
        batches: may be taken from some batches ahead of what is yielded, as far as `run` does.
        most: tiles that `run` gets at once.
        run: batches of tiles [B, 3, S, S] → a result for each tile of each batch, in order.
    """
    waiting: deque[list[Layout]] = deque()

    def tiles() -> Iterator[Pixels]:
        for views in batches:
            waiting.append([view.layout for view in views])
            pixels = np.concatenate([view.pixels for view in views])
            del views  # or pictures that nobody else keeps would be in memory twice
            for start in range(0, len(pixels), most):
                yield pixels[start : start + most]

    found: deque[Result] = deque()
    for results in run(tiles()):
        found.extend(results)
        if len(found) == sum(len(layout.corners) for layout in waiting[0]):
            yield [(layout, [found.popleft() for _ in layout.corners]) for layout in waiting.popleft()]


def best_scores(tiles: Sequence[FloatArray]) -> FloatArray:
    """The scores [C] of a picture's tiles → for each label the largest; NaN where a tile has one that is not finite."""
    if len(tiles) == 1:
        return tiles[0]
    scores = np.stack(tiles)
    best: FloatArray = np.where(np.isfinite(scores).all(axis=0), scores.max(axis=0), np.float32(np.nan))
    return best


def joined(layout: Layout, windows: FloatArray) -> FloatArray:
    """The windows [T, rows, columns] of the tiles' grids of one label → one grid; where tiles overlap, the larger value."""
    whole = np.full(layout.shape, -np.inf, np.float32)
    for (row, column), part in zip(layout.corners, windows, strict=True):
        place = whole[row : row + part.shape[0], column : column + part.shape[1]]
        np.maximum(place, part, out=place)
    return whole
