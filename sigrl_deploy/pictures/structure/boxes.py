"""AVIF and HEIC: boxes that name items, which are pictures themselves or are composed of others.

An item may decode to more than it declares: AV1's own header may give a larger size than the box around it, and a grid may name
one tile a thousand times. So the parts are added up.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import BinaryIO, TypeVar

from sigrl_deploy.pictures.structure import av1
from sigrl_deploy.pictures.structure.limits import MAX_BYTES_WHOLE, require

_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AVIF = {b"avif", b"avis"}
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")

_T = TypeVar("_T")

MAX_ITEMS = 4096
MAX_BOXES = 65_536  # in the whole file, nested ones included
MAX_ENTRIES = 65_536  # of each kind in the whole file: parts of items, parts of grids, properties of items
MAX_ITEM_PIXELS = 64_000_000  # of one coded picture: 50 megapixels and a codec's padding
MAX_WORK_PIXELS = 150_000_000  # of a picture and everything it is made of: tiles, the picture itself, a gain map
MAX_EXIF_BYTES = 2**20  # Pillow rewrites it where an AVIF file has a rotation of its own
MAX_METADATA_BYTES = 256 * 2**20  # each picture of a HEIC file gets its own copy


def is_heic(stream: BinaryIO) -> bool:
    """Whether a file declares itself HEIC: the first brand in its first box that is HEIC's or AVIF's decides."""
    stream.seek(0)
    head = stream.read(8)
    if head[4:8] != b"ftyp":
        return False
    body = stream.read(max(0, min(int.from_bytes(head[:4], "big"), 1024) - 8))
    kinds = [body[at : at + 4] for at in range(0, len(body), 4) if at != 4]
    return next((kind for kind in kinds if kind in _HEIC or kind in _AVIF), None) in _HEIC


def check(stream: BinaryIO, length: int) -> None:
    """Raises Refused as `check_structure` says."""
    require(length <= MAX_BYTES_WHOLE, f"{length:,} bytes, expected {MAX_BYTES_WHOLE:,} at most as AVIF or HEIC")
    stream.seek(0)
    file = _File(stream.read())
    samples: set[int] = set()
    waiting = [(0, length)]
    while waiting:
        for kind, start, end in file.boxes(*waiting.pop()):
            if kind == b"meta":
                _Items(file, start + 4, end).check()
            elif kind in _CONTAINERS:
                waiting.append((start, end))
            elif kind in (b"stco", b"co64") and int.from_bytes(file.data[start + 4 : start + 8], "big"):
                # Decoders read a track's first chunk only.
                samples.add(int.from_bytes(file.data[start + 8 : start + (12 if kind == b"stco" else 16)], "big"))
    for at in samples:
        _require_item(av1.pixels(file.units, file.data, at))


def _require_item(pixels: int) -> None:
    require(pixels <= MAX_ITEM_PIXELS, f"holds a picture of {pixels:,} pixels, expected {MAX_ITEM_PIXELS:,} at most")


class _File:
    """The bytes of a file, and counts of what has been found in them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.units = data, av1.Work()
        self._counts: defaultdict[str, int] = defaultdict(int)

    def count(self, what: str, number: int, most: int) -> None:
        """Raises Refused where the whole file has more than `most`."""
        self._counts[what] += number
        require(self._counts[what] <= most, f"has more than {most:,} {what}")

    def boxes(self, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """The kind of each box, and where its content begins and ends, up to one that no decoder can pass either."""
        while start + 8 <= end:
            self.count("boxes", 1, MAX_BOXES)
            size, kind = struct.unpack_from(">I4s", self.data, start)
            head = 8
            if size == 1 and start + 16 <= end:
                (size,), head = struct.unpack_from(">Q", self.data, start + 8), 16
            stop = end if size == 0 else start + size
            if size and size < head:
                return
            yield kind, start + head, min(stop, end)
            start = stop


class _Items:
    """The items of a meta box: the kind of each, where its bytes are, and which others it is made of."""

    def __init__(self, file: _File, start: int, end: int) -> None:
        self._file, self._data = file, file.data
        self._boxes: dict[bytes, tuple[int, int]] = {}
        for kind, begin, stop in file.boxes(start, end):
            self._boxes.setdefault(kind, (begin, stop))
        self._kinds = _unique(self._read_kinds())
        self._extents = _unique(self._read_extents())
        self._announced = self._read_sizes()
        self._made_of = self._read_references()
        self._pixels = {item: self._count_pixels(item) for item in self._kinds}
        self._work: dict[int, int] = {}

    def check(self) -> None:
        pictures, metadata = 0, 0
        for item, kind in self._kinds.items():
            size = sum(length for _, length in self._extents.get(item, []))
            if kind in (b"Exif", b"mime", b"uri "):
                require(kind != b"Exif" or size <= MAX_EXIF_BYTES, f"has EXIF of {size:,} bytes")
                metadata += size
            else:
                pictures += 1
                _require_item(self._pixels[item])
                work = self._all_pixels(item)
                require(work <= MAX_WORK_PIXELS, f"is made of {work:,} pixels, expected {MAX_WORK_PIXELS:,} at most")
        require(pictures * metadata <= MAX_METADATA_BYTES, f"has {metadata:,} bytes of metadata for {pictures:,} pictures")

    def _all_pixels(self, item: int) -> int:
        """The pixels of an item and of everything that it is made of, each counted as often as it is named."""
        if item not in self._work:
            self._work[item] = 0  # no decoder decodes an item that contains itself
            self._work[item] = self._pixels.get(item, 0) + sum(self._all_pixels(part) for part in self._made_of[item])
        return self._work[item]

    def _count_pixels(self, item: int) -> int:
        announced = self._announced.get(item, 0)
        if self._kinds[item] != b"av01":
            return announced
        extents = self._extents.get(item, [])
        begin = extents[0][0] if extents else 0
        if len(extents) > 1:
            parts = [self._data[at : at + length] for at, length in self._count_bytes(extents)]
            return max(announced, av1.pixels(self._file.units, b"".join(parts)))
        return max(announced, av1.pixels(self._file.units, self._data, begin, begin + sum(length for _, length in extents)))

    def _count_bytes(self, extents: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Raises Refused where the parts of all items are together much larger than the file, so that they overlap."""
        size = sum(min(length, max(0, len(self._data) - at)) for at, length in extents)
        self._file.count("bytes in parts of its items", size, 2 * len(self._data))
        return extents

    def _box(self, kind: bytes) -> tuple[_Cursor, int]:
        """A cursor behind the version of a full box, and that version with its flags."""
        begin, stop = self._boxes.get(kind, (0, 0))
        cursor = _Cursor(self._data, begin, stop)
        return cursor, cursor.number(4) if begin else 0

    def _read_kinds(self) -> Iterator[tuple[int, bytes]]:
        cursor, version = self._box(b"iinf")
        begin = cursor.at + (4 if version >> 24 else 2)
        for kind, at, end in self._file.boxes(begin, cursor.end):
            if kind == b"infe":
                self._file.count("items", 1, MAX_ITEMS)
                entry = _Cursor(self._data, at, end)
                item = entry.number(4 if entry.number(4) >> 24 > 2 else 2)
                yield item, self._data[entry.at + 2 : entry.at + 6]

    def _read_extents(self) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        cursor, version = self._box(b"iloc")
        version >>= 24
        sizes = cursor.number(2)
        offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
        index_size = sizes & 15 if version else 0
        count = cursor.number(4 if version == 2 else 2)
        require(count <= MAX_ITEMS, f"has {count:,} items, expected {MAX_ITEMS:,} at most")
        for _ in range(count):
            item = cursor.number(4 if version == 2 else 2)
            method = cursor.number(2) & 15 if version else 0
            require(method < 2, "has an item within another one")
            within = self._boxes.get(b"idat", (0, 0))[0] if method else 0
            cursor.number(2)
            base = within + cursor.number(base_size)
            extents = []
            number = cursor.number(2)
            self._file.count("parts of items", number, MAX_ENTRIES)
            for _ in range(number):
                cursor.number(index_size)
                at, length = base + cursor.number(offset_size), cursor.number(length_size)
                extents.append((at, length or max(0, len(self._data) - at)))
            yield item, extents

    def _read_sizes(self) -> dict[int, int]:
        """The number of pixels that each item declares."""
        begin, end = self._boxes.get(b"iprp", (0, 0))
        within = [*self._file.boxes(begin, end)]
        properties = [each for kind, at, stop in within if kind == b"ipco" for each in self._file.boxes(at, stop)]
        announced: dict[int, int] = {}
        for kind, at, stop in within:
            if kind != b"ipma":
                continue
            cursor = _Cursor(self._data, at, stop)
            version = cursor.number(4)
            entries = cursor.number(4)
            self._file.count("items with properties", entries, MAX_ITEMS)
            for _ in range(entries):
                item = cursor.number(4 if version >> 24 else 2)
                number = cursor.number(1)
                self._file.count("properties of items", number, MAX_ENTRIES)
                for _ in range(number):
                    index = cursor.number(2) & 0x7FFF if version & 1 else cursor.number(1) & 0x7F
                    if 0 < index <= len(properties) and properties[index - 1][0] == b"ispe":
                        width, height = struct.unpack_from(">II", self._data, properties[index - 1][1] + 4)
                        announced[item] = max(announced.get(item, 0), width * height)
        return announced

    def _read_references(self) -> defaultdict[int, list[int]]:
        cursor, version = self._box(b"iref")
        size = 4 if version >> 24 else 2
        made_of: defaultdict[int, list[int]] = defaultdict(list)
        for kind, at, end in self._file.boxes(cursor.at, cursor.end):
            if kind == b"dimg":
                entry = _Cursor(self._data, at, end)
                item, number = entry.number(size), entry.number(2)
                self._file.count("parts of grids", number, MAX_ENTRIES)
                made_of[item] += [entry.number(size) for _ in range(number)]
        return made_of


def _unique(pairs: Iterator[tuple[int, _T]]) -> dict[int, _T]:
    """Raises Refused where a key comes twice: some decoders take the first value, some the last."""
    found: dict[int, _T] = {}
    for key, value in pairs:
        require(key not in found, f"describes item {key} twice")
        found[key] = value
    return found


class _Cursor:
    """A reader of consecutive numbers. Raises EOFError at the end."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self.at, self.end = data, at, end

    def number(self, size: int) -> int:
        """The next `size` bytes, big-endian."""
        if self.at + size > self.end:
            raise EOFError
        self.at += size
        return int.from_bytes(self._data[self.at - size : self.at], "big")
