"""How an engine's kernels are launched, by the size of the pass."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from sigrl_deploy.kernels import tuning
from sigrl_deploy.kernels.blocks import Launch
from sigrl_deploy.kernels.cases import Shape, Sizes, cases

log = logging.getLogger(__name__)


class Launches:
    """The fastest launch of every kernel, by size class: measured on this GPU at the class's first use, or by an earlier run.

    `folder` keeps compiled kernels and their tuning. On a CPU, where kernels run in the interpreter, nothing is measured.
    """

    def __init__(self, sizes: Sizes, dtype: torch.dtype, place: torch.device, folder: Path | None) -> None:
        self._sizes, self._dtype, self._place, self._folder = sizes, dtype, place, folder
        self._found: dict[int, dict[str, Launch]] = {}
        self._known: set[tuple[int, str]] = set()
        if place.type == "cuda":
            tuning.keep_compiled(folder)

    def of(self, pictures: int, rows: int) -> Mapping[str, Launch]:
        """Launches by op, for so many pictures and padded labels. Ops that were not tuned are missing."""
        return self._found.get(Shape(pictures, rows, rows).size_class, {})

    def tune(self, shape: Shape, ops: Collection[str]) -> None:
        """Measure the kernels of `ops` at a size, for its whole class. This takes seconds the first time on a GPU."""
        size_class = shape.size_class
        new = {op for op in ops if (size_class, op) not in self._known}
        if self._place.type == "cpu" or not new:
            return
        folder, start = self._folder, time.perf_counter()
        needed = cases(self._sizes, self._dtype, self._place, new, shape)
        # Not on the stream where passes are captured: these graphs are dropped alone, see `SizeCache`.
        with torch.cuda.stream(torch.cuda.Stream()):
            found = tuning.tune(needed, folder, tuning.chip(), tuning.milliseconds, tuning.compile_ahead)
        torch.cuda.empty_cache()
        seconds = time.perf_counter() - start
        if found.measured:
            kept = f"later runs take that from {folder}" if folder else "without a cache folder, so the next run does it again"
            log.info("first run on this GPU %s: %d kernels tuned in %.0f s; %s", shape, found.measured, seconds, kept)
        elif folder and found.launches:
            log.info("kernels: tuned by an earlier run %s, read from %s in %.1f s", shape, folder, seconds)
        self._found.setdefault(size_class, {}).update(found.launches)
        self._known |= {(size_class, op) for op in new}
