"""A short fuzz of bundles; `python -m tests.fuzz bundles` is the long one."""

from __future__ import annotations

from fuzz import bundles
from fuzz.workers import outcomes

FILES, FEWEST_READ, FEWEST_REFUSED = 150, 3, 75


def test_damaged_bundles_are_read_or_refused_soon_and_in_little_memory() -> None:
    done = list(outcomes("fuzz.bundles", range(FILES), processes=1))
    assert len(done) == FILES
    assert not [each for each in done if each.fault]
    # A second and 300 MB, and room for a machine that is slow.
    assert max(each.seconds for each in done) < 10
    assert max(each.megabytes for each in done) < 300
    assert FEWEST_READ < sum(each.read for each in done) < FILES - FEWEST_REFUSED


def test_the_whole_bundle_is_read() -> None:
    assert [name for name, data in bundles.corpus().items() if not bundles.examine(data)] == []
