"""TIFF: tags, of which Pillow keeps the bytes, and strips or tiles, of which it makes an object each."""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from sigrl_deploy.structure import jpeg
from sigrl_deploy.structure.limits import MAX_PIXELS, PIXEL_BYTES, read, require, require_memory, require_pixels

PREFIXES = [b"II\x2a\0", b"MM\0\x2a", b"II\0\x2a", b"MM\x2a\0", b"II\x2b\0", b"MM\0\x2b"]

MAX_TAGS = 4096
MAX_NUMBERS = 200_000  # in one tag: offsets of the strips of 65,535 rows in three planes, a palette of 16 bits
MAX_RATIONALS = 50_000  # in all tags of a directory: each takes Python microseconds
MAX_RAW_BYTES = 800_000_000  # before compression: 128 megapixels of 16-bit colour
MAX_LZMA_PIXELS = 16_000_000
MAX_JPEG_PARTS = 20_000
MAX_READS = 500_000

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES = 256, 257, 258, 259, 277
_ROWS, _TILE_WIDTH, _TILE_HEIGHT = 278, 322, 323
_PLACES = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles
_DIRECTORIES = (34665, 34853, 40965)  # EXIF, GPS and interoperability, which Pillow loads with the picture
_RAW, _LZMA = 1, 34925
_JPEG = (6, 7)
_MAX_SAMPLES = 6  # Pillow's, which logs an error beyond it

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BYTES = (1, 2, 6, 7)
_RATIONALS = (5, 10)
_NUMBER_BYTES = 16  # a third of what Python takes for one
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}


@dataclass
class _Tag:
    kind: int
    count: int
    at: int


class _Tags:
    """The tags of one directory, of which values are read when they are asked for."""

    def __init__(self, stream: BinaryIO, order: str, big: bool, at: int) -> None:
        self._stream, self._order, self.bytes = stream, order, 0
        self._found: dict[int, _Tag] = {}
        inline, rationals = 8 if big else 4, 0
        stream.seek(at)
        (count,) = struct.unpack(order + ("Q" if big else "H"), read(stream, 8 if big else 2))
        require(count <= MAX_TAGS, f"has a directory of {count:,} tags, expected {MAX_TAGS:,} at most")
        entries = stream.read(count * (20 if big else 12))
        for start in range(0, len(entries), 20 if big else 12):
            code, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHL"), entries, start)
            size, where = number * _SIZES.get(kind, 0), start + 4 + inline
            if size > inline:
                (value_at,) = struct.unpack_from(order + ("Q" if big else "L"), entries, where)
                self.bytes += size if kind in _BYTES else max(size, _NUMBER_BYTES * number)
            else:
                value_at = at + (8 if big else 2) + where
            require(kind in _BYTES or number <= MAX_NUMBERS, f"has {number:,} values in tag {code}, expected {MAX_NUMBERS:,}")
            rationals += number if kind in _RATIONALS else 0
            require(rationals <= MAX_RATIONALS, f"has more than {MAX_RATIONALS:,} fractions in its tags")
            self._found.setdefault(code, _Tag(kind, number, value_at))

    def values(self, code: int) -> list[int]:
        tag = self._found.get(code)
        if tag is None or tag.kind not in _INTEGERS:
            return []
        self._stream.seek(tag.at)
        data = self._stream.read(min(tag.count, MAX_NUMBERS) * _SIZES[tag.kind])
        number = len(data) // _SIZES[tag.kind]
        return [int(value) for value in np.frombuffer(data, np.dtype(self._order + _INTEGERS[tag.kind]), number)]

    def first(self, code: int, default: int) -> int:
        return next(iter(self.values(code)), default)


def check(stream: BinaryIO, length: int) -> None:
    """Raises Refused; see `sigrl_deploy.structure`."""
    stream.seek(0)
    head = read(stream, 16)
    order, big = "<" if head[:2] == b"II" else ">", head[2] == 43
    (first,) = struct.unpack_from(order + ("Q" if big else "L"), head, 8 if big else 4)
    tags = _Tags(stream, order, big, first)
    width, height = tags.first(_WIDTH, 0), tags.first(_HEIGHT, 0)
    require_pixels(width, height)
    others = [_Tags(stream, order, big, at) for code in _DIRECTORIES for at in tags.values(code)[:1] if at < length]
    part = _part_bytes(tags, width, height)
    compression = tags.first(_COMPRESSION, _RAW)
    require(compression != _LZMA or width * height <= MAX_LZMA_PIXELS, f"is LZMA of more than {MAX_LZMA_PIXELS:,} pixels")
    places = [place for offsets, counts in _PLACES for place in _values_of_parts(tags, offsets, counts)]
    if compression == _RAW:
        part = _check_raw(sorted({offset for offset, _ in places if offset < length}), part)
    if compression in _JPEG:
        _check_jpeg(stream, length, places)
    # Pillow reads a directory's values three times, and joins their blocks; values that do not fit the file it leaves out.
    tag_bytes = 3 * sum(min(each.bytes, length) for each in [tags, *others])
    decoded = PIXEL_BYTES * width * height
    require_memory(tag_bytes + decoded + max(decoded, part))


def _part_bytes(tags: _Tags, width: int, height: int) -> int:
    """Of one strip or tile, once it is decompressed."""
    samples, bits = tags.first(_SAMPLES, 1), max(tags.values(_BITS), default=1)
    require(samples <= _MAX_SAMPLES, f"has {samples:,} samples a pixel, expected {_MAX_SAMPLES} at most")
    tile_width = tags.first(_TILE_WIDTH, 0) or width
    tile_height = tags.first(_TILE_HEIGHT, 0) or min(height, tags.first(_ROWS, height) or height)
    columns, rows = -(-width // tile_width), -(-height // tile_height)
    padded = columns * tile_width * rows * tile_height
    require(padded <= 2 * MAX_PIXELS, f"has tiles of {tile_width:,} x {tile_height:,} pixels")
    raw = padded * samples * bits // 8
    require(raw <= MAX_RAW_BYTES, f"has {raw:,} bytes of samples, expected {MAX_RAW_BYTES:,} at most")
    return max(raw, PIXEL_BYTES * padded) // (columns * rows)


def _values_of_parts(tags: _Tags, offsets: int, counts: int) -> list[tuple[int, int]]:
    starts, sizes = tags.values(offsets), tags.values(counts)
    return [*zip(starts, [*sizes, *[2**63] * len(starts)], strict=False)]


def _check_raw(offsets: list[int], part: int) -> int:
    """How much Pillow reads at once: it reads each part in steps as long as the way to the next one."""
    steps = [after - offset for offset, after in pairwise(offsets)]
    reads = sum(part // step for step in steps)
    require(reads <= MAX_READS, "has strips that overlap")
    return max(steps, default=0)


def _check_jpeg(stream: BinaryIO, length: int, parts: list[tuple[int, int]]) -> None:
    require(len(parts) <= MAX_JPEG_PARTS, f"has {len(parts):,} parts of JPEG, expected {MAX_JPEG_PARTS:,} at most")
    times = Counter(parts)  # to walk once what is named often
    total = sum(min(size, max(0, length - offset)) for offset, size in times)
    require(total <= 2 * length or len(times) == 1, "has parts of JPEG that overlap")
    work = jpeg.Work()
    for (offset, size), number in times.items():
        part = jpeg.Work()
        jpeg.check_stream(stream, offset, min(length, offset + size), part)
        work.add(number * part.scan_pixels)
