"""TIFF: tags, whose bytes Pillow keeps, and strips or tiles, for each of which it makes an object."""

from __future__ import annotations

import struct
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from sigrl_deploy.pictures.structure import jpeg
from sigrl_deploy.pictures.structure.limits import MAX_PIXELS, PIXEL_BYTES, read, require, require_memory, require_pixels

PREFIXES = [b"II\x2a\0", b"MM\0\x2a", b"II\0\x2a", b"MM\x2a\0", b"II\x2b\0", b"MM\0\x2b"]

MAX_TAGS = 4096
MAX_NUMBERS = 200_000  # in one tag, such as the strip offsets of 65,535 rows in three planes, or a 16-bit palette
MAX_ALL_NUMBERS = 1_000_000  # in all tags of a directory
MAX_RATIONALS = 50_000  # in all tags of a directory; each takes Pillow microseconds
MAX_RAW_BYTES = 800_000_000  # before compression: 128 megapixels of 16-bit colour
MAX_LZMA_PIXELS = 16_000_000
MAX_JPEG_PARTS = 20_000
MAX_READS = 500_000
MAX_COPIED_BYTES = 2**32
MAX_SHARED_BYTES = 2**28  # of compressed strips or tiles that are named more than once, such as a blank one

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _PLANES = 256, 257, 258, 259, 277, 284
_ROWS, _TILE_WIDTH, _TILE_HEIGHT = 278, 322, 323
_STRIPS, _TILES = (273, 279), (324, 325)  # offsets and byte counts
_EXIF, _GPS, _INTEROPERABILITY = 34665, 34853, 40965  # directories that Pillow loads with the picture
_RAW, _LZMA = 1, 34925
_JPEG = (6, 7)
_MAX_SAMPLES = 6  # Pillow's own limit

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BYTES = (1, 2, 6, 7)
_RATIONALS = (5, 10)
_NUMBER_BYTES = 16  # a third of what one takes in Python
_INTEGERS = {3: "u2", 4: "u4", 13: "u4", 16: "u8"}  # the types that Pillow and libtiff read in the same way


@dataclass
class _Tag:
    kind: int
    count: int
    at: int
    read: bool  # False for one that Pillow skips


class _Tags:
    """The tags of one directory, as far as the file has it. Their values are read on demand."""

    def __init__(self, stream: BinaryIO, length: int, big: bool, order: str, at: int) -> None:
        self._stream, self._order, self.bytes = stream, order, 0
        self._found: defaultdict[int, list[_Tag]] = defaultdict(list)
        word, head, inline = ("Q", 8, 8) if big else ("L", 2, 4)
        width = 4 + 2 * inline
        stream.seek(at)
        count = int.from_bytes(stream.read(head), "little" if order == "<" else "big")
        require(count <= MAX_TAGS, f"has a directory of {count:,} tags, expected {MAX_TAGS:,} at most")
        entries = stream.read(count * width)
        numbers = rationals = taken = 0
        for start in range(0, len(entries) - width + 1, width):
            code, kind, number = struct.unpack_from(f"{order}HH{word}", entries, start)
            size, where = number * _SIZES.get(kind, 0), start + 4 + inline
            value_at = at + head + where
            if size > inline:
                (value_at,) = struct.unpack_from(order + word, entries, where)
                self.bytes += size if kind in _BYTES else max(size, _NUMBER_BYTES * number)
                taken += size
            require(kind in _BYTES or number <= MAX_NUMBERS, f"has {number:,} values in tag {code}, expected {MAX_NUMBERS:,}")
            numbers += 0 if kind in _BYTES else number
            require(numbers <= MAX_ALL_NUMBERS, f"has more than {MAX_ALL_NUMBERS:,} values in its tags")
            rationals += number if kind in _RATIONALS else 0
            require(rationals <= MAX_RATIONALS, f"has more than {MAX_RATIONALS:,} fractions in its tags")
            fits = size <= inline or (taken <= length and value_at + size <= length)
            self._found[code].append(_Tag(kind, number, value_at, kind in _INTEGERS and number > 0 and fits))

    def __contains__(self, code: int) -> bool:
        return code in self._found

    def values(self, code: int) -> list[int]:
        """Raises Refused for a tag that Pillow might read differently, or skip."""
        tags = self._found.get(code, [])
        require(len(tags) < 2, f"has tag {code} more than once")
        require(all(tag.read for tag in tags), f"has no whole numbers in tag {code}, or none within the file")
        for tag in tags:
            self._stream.seek(tag.at)
            data = read(self._stream, tag.count * _SIZES[tag.kind])
            return [int(value) for value in np.frombuffer(data, np.dtype(self._order + _INTEGERS[tag.kind]))]
        return []

    def first(self, code: int, default: int) -> int:
        return next(iter(self.values(code)), default)


@dataclass
class _Layout:
    """The number of strips or tiles, and the bytes of one, of a row of one, and of one in memory, all uncompressed."""

    parts: int
    raw: int
    row: int
    memory: int
    whole: bool  # one strip or tile covers the picture exactly; Pillow then decodes the last one only


def check(stream: BinaryIO, length: int) -> None:
    """Raises Refused as `check_structure` says."""
    stream.seek(0)
    head = read(stream, 16)
    require(head[:4] != b"MM\0\x2b", "is BigTIFF with the highest byte first, which Pillow takes for another format")
    order, big = "<" if head[:2] == b"II" else ">", head[2] == 43
    (first,) = struct.unpack_from(order + ("Q" if big else "L"), head, 8 if big else 4)
    tags = _Tags(stream, length, big, order, first)
    width, height = tags.first(_WIDTH, 0), tags.first(_HEIGHT, 0)
    require_pixels(width, height)
    layout = _layout(tags, width, height)
    compression = tags.first(_COMPRESSION, _RAW)
    require(compression != _LZMA or width * height <= MAX_LZMA_PIXELS, f"is LZMA of more than {MAX_LZMA_PIXELS:,} pixels")
    places = [place for offsets, counts in (_STRIPS, _TILES) for place in _places(tags, offsets, counts)]
    part = layout.memory
    if compression == _RAW:
        part = _check_raw([offset for offset, _ in places], layout, length)
    else:
        _check_shared(places, length)
    if compression in _JPEG:
        _check_jpeg(stream, length, places)
    others = [_Tags(stream, length, big, order, at) for code in (_EXIF, _GPS) for at in tags.values(code)[:1] if at < length]
    others += [
        _Tags(stream, length, big, order, at) for each in others for at in each.values(_INTEROPERABILITY)[:1] if at < length
    ]
    # Pillow reads a directory's values three times and joins their blocks. It leaves out values beyond the end of the file.
    tag_bytes = 3 * sum(min(each.bytes, length) for each in [tags, *others])
    decoded = PIXEL_BYTES * width * height
    require_memory(tag_bytes + decoded + max(decoded, part))


def _layout(tags: _Tags, width: int, height: int) -> _Layout:
    tiled = any(code in tags for code in (*_TILES, _TILE_WIDTH, _TILE_HEIGHT))
    require(not tiled or not any(code in tags for code in _STRIPS), "has both strips and tiles")
    samples, bits = tags.first(_SAMPLES, 1), max(tags.values(_BITS), default=1)
    require(samples <= _MAX_SAMPLES, f"has {samples:,} samples per pixel, expected {_MAX_SAMPLES} at most")
    tile_width = tags.first(_TILE_WIDTH, 0) or width
    tile_height = tags.first(_TILE_HEIGHT, 0) or min(height, tags.first(_ROWS, height) or height)
    columns, rows = -(-width // tile_width), -(-height // tile_height)
    padded = columns * tile_width * rows * tile_height
    require(padded <= 2 * MAX_PIXELS, f"has tiles of {tile_width:,} x {tile_height:,} pixels")
    raw = padded * samples * bits // 8
    require(raw <= MAX_RAW_BYTES, f"has {raw:,} bytes of samples, expected {MAX_RAW_BYTES:,} at most")
    planes = samples if tags.first(_PLANES, 1) == 2 else 1
    parts = columns * rows * max(1, planes)
    row = tile_width * samples * bits // (8 * max(1, planes))
    whole = parts == 1 and tile_width == width and tags.first(_TILE_HEIGHT if tiled else _ROWS, height) == height
    return _Layout(parts, raw // parts, row, max(raw, PIXEL_BYTES * padded) // (columns * rows), whole)


def _places(tags: _Tags, offsets: int, counts: int) -> list[tuple[int, int]]:
    starts, sizes = tags.values(offsets), tags.values(counts)
    return [*zip(starts, [*sizes, *[2**63] * len(starts)], strict=False)]


def _check_raw(offsets: list[int], layout: _Layout, length: int) -> int:
    """How many bytes Pillow reads at once. It reads each part in steps as long as the distance to the next one, and copies
    unfinished rows.
    """
    offsets = offsets[-1:] if layout.whole else offsets
    require(len(offsets) <= layout.parts, f"has {len(offsets):,} strips or tiles, expected {layout.parts:,}")
    distinct = sorted({offset for offset in offsets if offset < length})
    steps = [after - offset for offset, after in pairwise(distinct)]
    reads = sum(layout.raw // step for step in steps)
    require(reads <= MAX_READS and reads * layout.row <= MAX_COPIED_BYTES, "has strips that overlap")
    return max(steps, default=0)


def _check_shared(places: list[tuple[int, int]], length: int) -> None:
    total = sum(min(size, max(0, length - offset)) for offset, size in places if size < 2**63)
    require(total <= 2 * length + MAX_SHARED_BYTES, f"names {total:,} bytes of strips or tiles in {length:,}")


def _check_jpeg(stream: BinaryIO, length: int, parts: list[tuple[int, int]]) -> None:
    require(len(parts) <= MAX_JPEG_PARTS, f"has {len(parts):,} parts of JPEG, expected {MAX_JPEG_PARTS:,} at most")
    times = Counter(parts)  # each part is walked once, however often it is named
    total = sum(min(size, max(0, length - offset)) for offset, size in times)
    require(total <= 2 * length or len(times) == 1, "has parts of JPEG that overlap")
    work = jpeg.Work()
    for (offset, size), number in times.items():
        jpeg.check_stream(stream, offset, min(length, offset + size), work, number)
