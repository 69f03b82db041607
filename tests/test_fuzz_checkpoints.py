"""A short fuzz of checkpoints; `python -m tests.fuzz checkpoints` is the long one."""

from __future__ import annotations

from fuzz import checkpoints
from fuzz.workers import outcomes

FEWEST_READ, FEWEST_REFUSED = 3, 100  # of 200 files


def test_damaged_checkpoints_are_read_or_refused_soon_and_in_little_memory() -> None:
    done = list(outcomes("fuzz.checkpoints", range(200), processes=1))
    assert len(done) == 200
    assert not [each for each in done if each.fault]
    # A second and 300 MB, and room for a machine that is slow.
    assert max(each.seconds for each in done) < 10
    assert max(each.megabytes for each in done) < 300
    read = sum(each.read for each in done)
    assert FEWEST_READ < read < 200 - FEWEST_REFUSED


def test_whole_checkpoints_of_the_corpus_are_read() -> None:
    assert [name for name, data in checkpoints.corpus().items() if not checkpoints.examine(data)] == []
