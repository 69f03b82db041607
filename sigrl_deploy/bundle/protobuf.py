"""Reading and writing protobuf messages field by field: the runtime has no onnx package.

Fields are found where they lie in the file, so that weights cost no memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5  # how a field is encoded
MOST_BYTES = 1 << 31  # of a message: protobuf's own limit
MOST_FIELDS = 500_000  # of a graph; a ViT-H has a tenth of that


class Field(NamedTuple):
    """One field of a message. It takes the bytes from `begin` to `last`, and those of its content begin at `first`."""

    number: int
    kind: int
    begin: int
    first: int
    last: int


def fields(content: mmap.mmap, start: int, end: int, left: Iterator[int]) -> Iterator[Field]:
    """The fields between two bytes. `left` yields once for each field that may still be read. Raises ValueError."""
    position = start
    while position < end:
        if next(left, None) is None:
            raise ValueError(f"more than {MOST_FIELDS} fields")
        begin = position
        tag, position = varint(content, position, end)
        number, kind, first = tag >> 3, tag & 7, position
        if kind == VARINT:
            _, position = varint(content, position, end)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            position += 8 if kind == EIGHT_BYTES else 4
        elif kind == BYTES:
            length, first = varint(content, position, end)
            position = first + length
        else:
            raise ValueError(f"a field of kind {kind} at byte {position}")
        if position <= end:
            yield Field(number, kind, begin, first, position)
    if position != end:
        raise ValueError(f"cut short at byte {end}")


def varint(content: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first, and the position after it. Raises ValueError."""
    value = 0
    for i in range(10):
        if position + i >= end:
            break
        byte = content[position + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, position + i + 1
    raise ValueError(f"expected a number at byte {position}")


def written(number: int, value: int | bytes | str) -> bytes:
    """A field with a number, which is not negative, or with bytes or text."""
    if isinstance(value, int):
        return _varint_bytes(number << 3 | VARINT) + _varint_bytes(value)
    content = value.encode("utf-8") if isinstance(value, str) else value
    return _varint_bytes(number << 3 | BYTES) + _varint_bytes(len(content)) + content


def _varint_bytes(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])
