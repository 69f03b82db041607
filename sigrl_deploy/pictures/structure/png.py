"""PNG: chunks. Pillow reads those other than picture data into memory, and inflates some of them."""

from __future__ import annotations

import struct
from typing import BinaryIO

from sigrl_deploy.pictures.structure.limits import read, require, require_pixels

MAX_CHUNKS = 200_000
MAX_INFLATED_CHUNKS = 256  # each up to a megabyte
MAX_TEXT_BYTES = 8 * 2**20
MAX_OTHER_BYTES = 64 * 2**20
MAX_RAW_BYTES = 320_000_000  # before compression: 106 megapixels of 8-bit colour, 53 of 16-bit colour

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_INFLATED = {b"iCCP", b"zTXt", b"iTXt"}
_PICTURE = {b"IDAT", b"fdAT", b"DDAT"}


def check(stream: BinaryIO, length: int) -> None:
    """Raises Refused as `check_structure` says."""
    stream.seek(8)
    raw = inflated = other = data = 0
    for _ in range(MAX_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            return
        size, kind = struct.unpack(">I4s", head)
        at = stream.tell()
        if kind == b"IEND":
            return
        if kind == b"IHDR":
            raw = max(raw, _raw_bytes(read(stream, min(size, 13))))
        elif kind in _PICTURE:
            data += size if kind == b"IDAT" else 0
            require(data <= 2 * raw + 2**20, "has more picture data than its pixels can hold")
            require(kind == b"IDAT" or size <= MAX_OTHER_BYTES, f"has a chunk of {size:,} bytes")
        else:
            other += size
            inflated += kind in _INFLATED
            require(inflated <= MAX_INFLATED_CHUNKS, f"has more than {MAX_INFLATED_CHUNKS} compressed texts and profiles")
            require(kind != b"tEXt" or size <= MAX_TEXT_BYTES, f"has a text of {size:,} bytes")
            require(other <= MAX_OTHER_BYTES, f"has more than {MAX_OTHER_BYTES:,} bytes beside its picture")
        if at + size + 4 > length:
            return
        stream.seek(at + size + 4)
    require(False, f"has more than {MAX_CHUNKS:,} chunks")


def _raw_bytes(header: bytes) -> int:
    width, height, depth, colour = struct.unpack(">IIBB", header[:10])
    require_pixels(width, height)
    raw = int(height * (1 + (width * depth * _CHANNELS.get(colour, 4) + 7) // 8))
    require(
        raw <= MAX_RAW_BYTES, f"{width} x {height} pixels of {depth} bits: {raw:,} bytes, expected {MAX_RAW_BYTES:,} at most"
    )
    return raw
