"""Reading ahead: in order, bounded, and nothing lost where the source of items fails."""

from collections.abc import Iterator

import pytest

from sigrl_deploy.pictures.reading_ahead import read_ahead


@pytest.mark.parametrize("count", [0, 1, 3, 40])
def test_items_before_a_failure_of_their_source_come_first(count: int) -> None:
    def items() -> Iterator[int]:
        yield from range(count)
        raise OSError("the disk is gone")

    found: list[tuple[int, int]] = []
    with pytest.raises(OSError, match="the disk is gone"):
        found.extend(read_ahead(lambda item: item * 2, items(), ahead=8, threads=4))
    assert found == [(item, item * 2) for item in range(count)]


def test_no_more_items_are_taken_than_may_wait() -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    read = read_ahead(str, items(), ahead=5, threads=2)
    assert next(read) == (0, "0")
    assert len(taken) == 5
    read.close()
