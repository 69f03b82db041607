"""Picture files built by hand, for tests of what is read and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def png_chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def scene(width: int, height: int) -> Image.Image:
    """Colour gradients with some noise."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 / width, y * 255 / height, 255 - x * 127 / width - y * 127 / height], axis=-1)
    return Image.fromarray((pixels * 0.9 + np.random.default_rng(3).uniform(0, 25, pixels.shape)).astype(np.uint8))


def tiff(tags: dict[int, tuple[str, list[int]]], data: bytes) -> bytes:
    """A little-endian TIFF: data from byte 8 on, then the tags, of types as in `struct`: B, H, I, and Q for fractions."""
    kinds = {"B": 1, "H": 3, "I": 4, "Q": 5}
    data += bytes(len(data) % 2)
    entries, beyond, end = b"", b"", 8 + len(data) + 2 + 12 * len(tags) + 4
    for code, (kind, values) in sorted(tags.items()):
        value = struct.pack(f"<{len(values)}{kind}", *values)
        if len(value) > 4:
            value, beyond = struct.pack("<I", end + len(beyond)), beyond + value + bytes(len(value) % 2)
        entries += struct.pack("<HHI", code, kinds[kind], len(values)) + value.ljust(4, b"\0")
    return b"II\x2a\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4) + beyond


def tiff_tags(width: int, height: int, compression: int = 1, samples: int = 3) -> dict[int, tuple[str, list[int]]]:
    """What every TIFF of 8-bit colour says of itself."""
    return {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8] * samples),
        259: ("H", [compression]),
        262: ("H", [2 if samples == 3 else 1]),
        277: ("H", [samples]),
    }


def rle_bmp(compression: int, width: int = 40, height: int = 30, codes: bytes | None = None) -> bytes:
    """A run-length coded BMP of 8 bits (1) or 4 bits (2), by default of one run a row."""
    colours = 256 if compression == 1 else 16
    codes = codes if codes is not None else (bytes([width, 0x35]) + b"\0\0") * height + b"\0\1"
    palette = b"".join(bytes([i, 255 - i, 7 * i % 256, 0]) for i in range(colours))
    sizes = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, 8 if compression == 1 else 4, compression, len(codes), 0, 0, colours, 0
    )
    begin = 54 + len(palette)
    return b"BM" + struct.pack("<IHHI", begin + len(codes), 0, 0, begin) + sizes + palette + codes


def encode(image: Image.Image, name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, name, **options)
    return buffer.getvalue()


def flat(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), (10, 200, 30))


def segment(code: int, body: bytes) -> bytes:
    return bytes([0xFF, code]) + struct.pack(">H", len(body) + 2) + body


def zeros(count: int) -> bytes:
    return zlib.compress(bytes(count), 9)


def scans(count: int, side: int = 2000, **options: Any) -> bytes:
    """A progressive JPEG whose last scan comes so many times."""
    data = encode(flat(side, side), "JPEG", progressive=True, **options)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def resized_jpeg(side: int, **options: Any) -> bytes:
    """A small JPEG whose header announces another size."""
    data = bytearray(encode(flat(16, 16), "JPEG", **options))
    size = data.index(struct.pack(">HH", 16, 16))
    data[size : size + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def with_segments(*segments: bytes) -> bytes:
    data = encode(scene(40, 30), "JPEG")
    return data[:2] + b"".join(segments) + data[2:]


GIF = encode(scene(40, 30).convert("L"), "GIF")
GIF_HEAD = 13 + (3 << (GIF[10] & 7) + 1)
