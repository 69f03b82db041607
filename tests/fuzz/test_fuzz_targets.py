"""A short fuzz of each target; `python -m tests.fuzz TARGET` is the long one."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import pytest

from tests.fuzz.workers import outcomes


@dataclass(frozen=True)
class Bounds:
    """Of `files` damaged files, more than `read` must be read and more than `refused` refused, or the damage tests nothing.

    None may take `seconds` of CPU time or `megabytes`: the readers' bounds, and room for a slow machine.
    """

    files: int
    read: int
    refused: int
    seconds: float
    megabytes: float


TARGETS = {
    "pictures": Bounds(400, read=40, refused=150, seconds=20, megabytes=1100),  # 5 s and 1 GiB, see `read_image`
    "checkpoints": Bounds(200, read=3, refused=100, seconds=10, megabytes=300),
    "bundles": Bounds(150, read=3, refused=75, seconds=10, megabytes=300),
}
# Floating-point samples have no range.
REFUSED = {"pictures": ["TIFF-F"], "checkpoints": [], "bundles": []}


@pytest.mark.parametrize(("target", "bounds"), TARGETS.items(), ids=TARGETS)
def test_damaged_files_are_read_or_refused_soon_and_in_little_memory(target: str, bounds: Bounds) -> None:
    done = list(outcomes(f"tests.fuzz.{target}", range(bounds.files), processes=1))
    assert len(done) == bounds.files
    assert not [each for each in done if each.fault]
    assert max(each.seconds for each in done) < bounds.seconds
    assert max(each.megabytes for each in done) < bounds.megabytes
    assert bounds.read < sum(each.read for each in done) < bounds.files - bounds.refused


@pytest.mark.parametrize("target", TARGETS)
def test_whole_files_of_the_corpus_are_read(target: str) -> None:
    module = importlib.import_module(f"tests.fuzz.{target}")
    refused = [name for name, data in module.corpus().items() if not module.examine(data)]
    assert [name.partition("-")[2] for name in refused] == REFUSED[target]
