"""JPEG: the segments before the picture, and its scans, each of which passes over the whole picture again."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from sigrl_deploy.pictures.structure.limits import MAX_EXIF_BYTES, PIXEL_BYTES, require, require_memory, require_pixels

MAX_SEGMENTS = 20_000
MAX_ALL_SEGMENTS = 300_000  # of all streams within a TIFF
MAX_HEADER_BYTES = 32 * 2**20  # depth maps and second views travel in XMP segments of several megabytes
MAX_JUNK_BYTES = 2**20  # Pillow skips what lies between segments byte by byte
MAX_SCAN_BYTES = 128 * 2**20
# Over all scans and components. The usual ten scans of a progressive picture pass over its pixels 8 to 14 times, those of an
# optimised one some more; this is 23 times for 128 megapixels, 250 times for 12.
MAX_SCAN_PIXELS = 3_000_000_000

_MARKER = re.compile(rb"\xff([^\x00\x01\xff\xd0-\xd7])")  # not a byte of data, padding or a restart
_EOI, _SOS, _DQT, _DHP, _APP1, _APP13 = 0xD9, 0xDA, 0xDB, 0xDE, 0xE1, 0xED
_WITHOUT_LENGTH = {0xC8, 0xD8, _EOI, *range(0xF0, 0xFE)}
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_PARSED = {_APP13, _DQT, _DHP, *_FRAMES}  # by Pillow, in Python, like EXIF


@dataclass
class Work:
    """The cost of one JPEG stream, or all in a TIFF: segments, and bytes and component pixels of all scans."""

    segments: int = 0
    scan_bytes: int = 0
    scan_pixels: int = 0

    def add_segments(self, number: int) -> None:
        self.segments += number
        require(self.segments <= MAX_ALL_SEGMENTS, f"has more than {MAX_ALL_SEGMENTS:,} segments")

    def add_scan_bytes(self, size: int) -> None:
        self.scan_bytes += size
        require(self.scan_bytes <= MAX_SCAN_BYTES, f"has more than {MAX_SCAN_BYTES:,} bytes of picture")

    def add_scan_pixels(self, pixels: int) -> None:
        self.scan_pixels += pixels
        require(
            self.scan_pixels <= MAX_SCAN_PIXELS,
            f"its scans go over {self.scan_pixels:,} pixels and more, expected {MAX_SCAN_PIXELS:,} at most",
        )


@dataclass
class _Frame:
    width: int = 0
    height: int = 0
    progressive: bool = False
    components: list[tuple[int, int, int]] = field(default_factory=list)  # identifier, which may come twice, and sampling

    def pixels(self) -> list[int]:
        """The pixels of each component, which may be subsampled."""
        most = max(h for _, h, _ in self.components) * max(v for _, _, v in self.components)
        return [self.width * self.height * horizontal * vertical // most for _, horizontal, vertical in self.components]

    def scan_pixels(self, scanned: bytes) -> int:
        """The pixels of the components that a scan names; the largest component where several have the same identifier."""
        sizes: dict[int, int] = {}
        for (component, _, _), pixels in zip(self.components, self.pixels(), strict=True):
            sizes[component] = max(sizes.get(component, 0), pixels)
        return sum(sizes.get(component, self.width * self.height) for component in scanned)


def check(stream: BinaryIO, length: int) -> None:
    """Raises Refused as `check_structure` says."""
    check_stream(stream, 0, length, Work())


def check_stream(stream: BinaryIO, start: int, end: int, work: Work, times: int = 1) -> None:
    """Check the JPEG stream in the bytes `start` to `end` of a file, and add its cost, `times` over, to `work`."""
    frame, scans, junk, header, parsed, passed = _Frame(), 0, 0, 0, 0, start
    for count, (code, at, skipped) in enumerate(_markers(stream, start, end)):
        require(count < MAX_SEGMENTS, f"has more than {MAX_SEGMENTS:,} segments")
        work.add_segments(times)
        work.add_scan_bytes(times * (at - passed) if scans else 0)
        passed = at
        junk += 0 if scans else skipped
        require(junk <= MAX_JUNK_BYTES, f"has more than {MAX_JUNK_BYTES:,} stray bytes between its segments")
        if code == _EOI and scans:
            return
        if code in _WITHOUT_LENGTH:
            continue
        size = int.from_bytes(stream.read(2), "big")
        if at + 2 > end:
            return
        require(size >= 2, f"has a segment of {size} bytes, expected 2 at least")  # which some decoders skip
        header += 0 if scans else size
        require(header <= MAX_HEADER_BYTES, f"has more than {MAX_HEADER_BYTES:,} bytes of segments before the picture")
        if code in _PARSED or (code == _APP1 and stream.read(6) == b"Exif\0\0"):
            parsed += size
            require(parsed <= MAX_EXIF_BYTES, f"has more than {MAX_EXIF_BYTES:,} bytes of EXIF and other data to parse")
        if code in _FRAMES:
            stream.seek(at + 2)
            frame = _frame(code, stream.read(size - 2))
            require_pixels(frame.width, frame.height)
        elif code == _SOS and frame.components:
            scanned = stream.read(size - 2)
            _check_scan(frame, scanned[1 : 1 + 2 * scanned[0] : 2], scans, work, times)
            scans += 1
        stream.seek(at + size)


def _check_scan(frame: _Frame, scanned: bytes, scans: int, work: Work, times: int) -> None:
    work.add_scan_pixels(times * frame.scan_pixels(scanned))
    if scans == 0 and (frame.progressive or len(scanned) < len(frame.components)):
        # All coefficients, 16 bits each, are kept until the last scan is read. No copy of the picture exists yet.
        require_memory(PIXEL_BYTES * frame.width * frame.height + 2 * sum(frame.pixels()))


def _frame(code: int, data: bytes) -> _Frame:
    height, width = int.from_bytes(data[1:3], "big"), int.from_bytes(data[3:5], "big")
    parts = [data[at : at + 2] for at in range(6, 6 + 3 * data[5], 3)]
    components = [(part[0], max(1, part[1] >> 4), max(1, part[1] & 15)) for part in parts if len(part) == 2]
    return _Frame(width, height, code in _PROGRESSIVE, components)


def _markers(stream: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Each marker's code, where it ends, and how many bytes were skipped before it. Continues where the stream then stands."""
    stream.seek(start)
    while True:
        begin, block = stream.tell(), 256
        while True:
            here = stream.tell()
            data = stream.read(min(block, end - here)) if here < end else b""
            if not data:
                if begin < end and here - begin > 0:
                    yield _EOI, here, here - begin
                return
            found = _MARKER.search(data)
            if found:
                break
            if data.endswith(b"\xff") and len(data) > 1:
                stream.seek(-1, 1)
            block = min(4 * block, 2**20)
        at = here + found.end()
        stream.seek(at)
        yield found[1][0], at, at - 2 - begin
