"""AV1: the size of a coded picture according to its own header (AV1 specification, 5.3 and 5.5)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from sigrl_deploy.pictures.structure.limits import require

MAX_UNITS = 1000  # a still picture has two or three
MAX_ALL_UNITS = 50_000

_MAX_HEADER_BYTES = 512  # 32 operating points of 89 bits, and 200 bits

_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6


@dataclass
class Work:
    """How much all coded pictures of a file make a reader work."""

    units: int = 0

    def add_unit(self) -> None:
        self.units += 1
        require(self.units <= MAX_ALL_UNITS, f"has more than {MAX_ALL_UNITS:,} units in its pictures")


def pixels(work: Work, data: bytes, at: int = 0, end: int | None = None) -> int:
    """Width x height x frames of the coded picture in data[at:end], 0 where there is none. Raises Refused."""
    largest, frames = 0, 0
    units = _units(data, at, len(data) if end is None else min(end, len(data)))
    for number, (kind, begin, stop) in enumerate(units):
        require(number < MAX_UNITS, f"has more than {MAX_UNITS:,} units in a picture")
        work.add_unit()
        if kind == _SEQUENCE_HEADER:
            with suppress(EOFError):  # no decoder accepts a header that ends too early
                largest = max(largest, _largest_frame(data[begin : min(stop, begin + _MAX_HEADER_BYTES)]))
        frames += kind in (_FRAME_HEADER, _FRAME)
    return largest * max(1, frames)


def _units(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Kind, begin and end of each unit."""
    while at < end:
        head = data[at]
        at += 2 if head & 4 else 1
        size = end - at
        if head & 2:
            size = 0
            for shift in range(0, 56, 7):
                if at >= end:
                    return
                at += 1
                size |= (data[at - 1] & 127) << shift
                if data[at - 1] < 128:
                    break
        yield head >> 3 & 15, at, min(at + size, end)
        at += size


def _largest_frame(header: bytes) -> int:
    bits = _Bits(header)
    bits.take(4)  # profile, still picture
    if bits.take(1):  # reduced header
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return (bits.take(width_bits) + 1) * (bits.take(height_bits) + 1)


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            zeros = 0
            while zeros < 32 and not bits.take(1):
                zeros += 1
            bits.take(zeros % 32)  # 32 zeros stand for the largest number and have no bits after them
        if bits.take(1):  # decoder model
            delay_bits = bits.take(5) + 1
            bits.take(42)
    display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if display_delay and bits.take(1):
            bits.take(4)


class _Bits:
    """A bit reader, highest bit first. Raises EOFError at the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        if count > self._left:
            raise EOFError
        self._left -= count
        return self._value >> self._left & ((1 << count) - 1)
