"""The limits that several formats share, and how a file is refused."""

from __future__ import annotations

from typing import BinaryIO

# Together they keep every file below 5 seconds of one core of a 2023 server CPU, and below 1 GiB of memory.
MAX_FILE_BYTES = 2**30
MAX_MEMORY = 2**30
MAX_SIDE = 65_535  # JPEG's and GIF's own
MAX_PIXELS = (
    128_000_000  # 512 MB once decoded, since Pillow keeps RGB in four bytes per pixel, and twice that while it is turned
)
# For formats that are decoded as a whole, in several copies: up to 20 bytes per pixel, and the file itself.
MAX_PIXELS_WHOLE = 50_000_000
MAX_BYTES_WHOLE = 64 * 2**20
MAX_EXIF_BYTES = 4 * 2**20  # Pillow parses it in Python, tag by tag

PIXEL_BYTES = 4  # of a decoded picture, in Pillow


class Refused(Exception):
    """A picture would be too costly to read. The message does not name the picture."""


def require(condition: bool, reason: str) -> None:
    """Raises Refused with the reason unless the condition holds."""
    if not condition:
        raise Refused(f"{reason}; save the picture anew, or leave it out")


def require_pixels(width: int, height: int, limit: int = MAX_PIXELS) -> None:
    """Raises Refused for a side above MAX_SIDE, more pixels than `limit`, or none."""
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= limit):
        raise Refused(
            f"{width} x {height} pixels, expected 1 to {limit:,} and no side above {MAX_SIDE:,}; scale the picture down"
        )


def require_memory(needed: int) -> None:
    """Raises Refused where `needed` bytes are more than MAX_MEMORY."""
    if needed > MAX_MEMORY:
        raise Refused(f"needs {needed / 2**30:.1f} GB to read, expected 1 GB at most; scale the picture down")


def read(stream: BinaryIO, count: int) -> bytes:
    """Exactly `count` bytes. Raises EOFError where the file has fewer left."""
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data
