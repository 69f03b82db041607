"""BMP: run-length coding, which Pillow decodes in Python, and the length of the header."""

from __future__ import annotations

import struct
from typing import BinaryIO

from sigrl_deploy.pictures.structure.limits import read, require, require_pixels

MAX_RLE_PIXELS = 8_000_000

_LARGEST_HEADER = 124
_RLE8, _RLE4 = 1, 2


def check(stream: BinaryIO, length: int) -> None:
    """Raises Refused as `check_structure` says."""
    stream.seek(14)
    (size,) = struct.unpack("<I", read(stream, 4))
    require(size <= _LARGEST_HEADER, f"has a header of {size:,} bytes, expected {_LARGEST_HEADER} at most")
    if size < 40:
        return
    width, height, _, _, compression = struct.unpack("<IiHHI", read(stream, 16))
    if compression in (_RLE8, _RLE4):
        pixels = width * abs(height)
        require_pixels(width, abs(height), MAX_RLE_PIXELS)
        require(length <= 2 * pixels + 2**16, "has more run-length codes than pixels")
