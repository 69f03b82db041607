"""A short fuzz of pictures; `python -m tests.fuzz pictures` is the long one."""

from __future__ import annotations

from fuzz import pictures
from fuzz.workers import outcomes

FEWEST_READ, FEWEST_REFUSED = 40, 150  # of 400 files: damage must reach the decoders, and be damage


def test_damaged_pictures_are_read_or_refused_soon_and_in_little_memory() -> None:
    done = list(outcomes("fuzz.pictures", range(400), processes=1))
    assert len(done) == 400
    assert not [each for each in done if each.fault]
    # The bounds of read_image, 5 seconds and 1 GiB, and room for a machine that is slow.
    assert max(each.seconds for each in done) < 20
    assert max(each.megabytes for each in done) < 1100
    read = sum(each.read for each in done)
    assert FEWEST_READ < read < 400 - FEWEST_REFUSED


def test_whole_pictures_of_the_corpus_are_read() -> None:
    refused = [name for name, data in pictures.corpus().items() if not pictures.examine(data)]
    assert [name.partition("-")[2] for name in refused] == ["TIFF-F"], "floating-point samples have no range"
