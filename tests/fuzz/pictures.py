"""Pictures in every format and mode that is read, damaged, through `read_image` and a preprocessing contract."""

from __future__ import annotations

import io
import struct
import tempfile
import zlib
from collections.abc import Iterator
from functools import cache
from random import Random
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from sigrl_deploy.errors import ImageError
from sigrl_deploy.pictures.preprocess import Preprocess
from sigrl_deploy.pictures.reading import read_image
from tests.support.picture_files import png_chunk, rle_bmp, scene, tiff, tiff_tags

from .mutate import MAX_BYTES, damaged, number

_CONTRACT = Preprocess.for_contract("zero-shot", 224)


def examine(data: bytes) -> bool:
    """Whether the picture was read; anything but an ImageError is a finding."""
    try:
        if len(data) % 2:  # as a file, which Pillow and libtiff read in other ways
            with tempfile.TemporaryFile() as file:
                file.write(data)
                _CONTRACT(read_image(file))
        else:
            _CONTRACT(read_image(data))
    except ImageError as error:
        if not str(error).isprintable():
            raise AssertionError("an error of more than a line") from error
        return False
    return True


def mutate(data: bytes, others: list[bytes], rng: Random) -> bytes:
    """Half of the files are damaged as any file may be, the others within their own structure, checksums mended."""
    structured = next((each for magic, each in _STRUCTURES if data[magic[0] :].startswith(magic[1])), None)
    if structured is None or rng.random() < 0.5:
        return damaged(data, others, rng)
    data = structured(data, others, rng)
    return damaged(data, others, rng) if rng.random() < 0.1 else data


def _damaged_parts(parts: list[bytes], others: list[bytes], rng: Random) -> list[bytes]:
    parts = list(parts)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at = rng.randrange(len(parts))
        choice = rng.randrange(6)
        if choice == 0 and len(parts) > 1:
            del parts[at]
        elif choice == 1:
            parts[at:at] = [parts[at]] * min(rng.choice([1, 3, 300, 3000]), MAX_BYTES // (1 + len(parts[at])))
        elif choice == 2:
            other = rng.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        else:
            parts[at] = damaged(parts[at], others, rng)
    return parts


def _png(data: bytes, others: list[bytes], rng: Random) -> bytes:
    chunks, at = [], 8
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append(data[at + 4 : at + 8 + size])
        at += 12 + size
    return data[:8] + b"".join(png_chunk(part[:4], part[4:]) for part in _damaged_parts(chunks, others, rng))


def _jpeg(data: bytes, others: list[bytes], rng: Random) -> bytes:
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xDA:  # and what the scan holds, up to the next marker
            while end + 1 < len(data) and (data[end] != 0xFF or data[end + 1] in (0, *range(0xD0, 0xD8))):
                end += 1
        segments.append(data[at + 1 : at + 2] + data[at + 4 : end])
        at = end
    if rng.random() < 0.2:
        segments = [_with_equal_components(part) for part in segments]
    parts = [_segment(part) for part in _damaged_parts(segments, others, rng) if part]
    if rng.random() < 0.1:  # a segment shorter than its own length, which some decoders pass over
        parts.insert(rng.randrange(len(parts) + 1), bytes([0xFF, rng.choice([0xE0, 0xE5, 0xFE, 0xDB]), 0, rng.choice([0, 1])]))
    return b"\xff\xd8" + b"".join(parts)


def _with_equal_components(part: bytes) -> bytes:
    """A frame or scan whose components have the same identifier, or any other segment as it is."""
    out = bytearray(part)
    first, step = {0xC0: (7, 3), 0xC1: (7, 3), 0xC2: (7, 3), 0xDA: (2, 2)}.get(part[0], (0, 0)) if part else (0, 0)
    count = part[first - 1] if step and len(part) > first else 0
    for at in range(first, min(len(part), first + step * count), step or 1):
        out[at] = 1
    return bytes(out)


def _segment(part: bytes) -> bytes:
    """A marker, its length, and its body; behind that of a scan follow the scan's data."""
    scan = part[0] == 0xDA and len(part) > 1
    length = 6 + 2 * part[1] if scan else min(len(part) + 1, 0xFFFF)
    return b"\xff" + part[:1] + struct.pack(">H", length) + part[1:]


def _tiff(data: bytes, others: list[bytes], rng: Random) -> bytes:
    out, order = bytearray(data), "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    width, head = (20, 8) if big else (12, 2)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, at)
    if rng.random() < 0.3:
        return _with_tags_twice(data, order, at, head, width, rng)
    for _ in range(rng.choice([1, 1, 2, 3])):
        entry = at + head + width * rng.randrange(count)
        where, size = rng.choice([(0, 2), (2, 2), (4, 4), (8, 2), (8, 4), (width - 4, 4)])
        out[entry + where : entry + where + size] = number(rng, size)
    return bytes(out)


def _with_tags_twice(data: bytes, order: str, at: int, head: int, width: int, rng: Random) -> bytes:
    """Moves the directory to the end, where some of its entries come a second time, one of the two with other numbers."""
    kind = order + ("Q" if head == 8 else "H")
    (count,) = struct.unpack_from(kind, data, at)
    entries = [data[at + head + width * i : at + head + width * (i + 1)] for i in range(count)]
    for _ in range(rng.choice([1, 1, 3])):
        which = rng.randrange(len(entries))
        where, size = rng.choice([(2, 2), (4, 4), (width - 4, 4)])
        changed = bytearray(entries[which])
        changed[where : where + size] = (
            struct.pack("<I", rng.choice([0, 9, 18, 99]))[:size] if where == 2 else number(rng, size)
        )
        entries.insert(which + rng.randrange(2), bytes(changed))
    out = bytearray(data + bytes(len(data) % 2))
    struct.pack_into(order + ("Q" if head == 8 else "I"), out, 8 if head == 8 else 4, len(out))
    end = b"" if rng.random() < 0.3 else bytes(8)
    return bytes(out) + struct.pack(kind, len(entries)) + b"".join(entries) + end


def _with_padding(data: bytes, rng: Random) -> bytes:
    """Free boxes before the directory, or within it, of which some end at an odd place; offsets stay as they are."""
    padding = struct.pack(">I4s", rng.choice([8, 8, 8, 0, 4, 9]), b"free") * rng.choice([1, 20, 20_000, 100_000])
    start = int.from_bytes(data[:4], "big")
    if rng.random() < 0.5:
        return data[:start] + padding + data[start:]
    size = int.from_bytes(data[start : start + 4], "big") + len(padding)
    return data[:start] + struct.pack(">I", size) + data[start + 4 : start + 12] + padding + data[start + 12 :]


def _with_many_extents(data: bytes, rng: Random) -> bytes:
    """Each item of the directory has many parts, which overlap, or cover nothing."""
    at = data.find(b"iloc")
    if at < 0:
        return data
    number_of_items = rng.choice([1, 20, 4096])
    parts = rng.choice([2, 50, 65_535])
    sizes, extent = (0x4400, struct.pack(">II", rng.randrange(64), len(data))) if parts < 100 else (0, b"")
    entries = b"".join(struct.pack(">HHH", 1 + i, 0, parts) + extent * parts for i in range(number_of_items))
    body = b"iloc" + bytes(4) + struct.pack(">HH", sizes, number_of_items) + entries[:MAX_BYTES]
    end = at - 4 + int.from_bytes(data[at - 4 : at], "big")
    grown = 4 + len(body) - (end - at + 4)
    start = int.from_bytes(data[:4], "big")
    size = int.from_bytes(data[start : start + 4], "big") + grown
    head = data[:start] + struct.pack(">I", max(0, size)) + data[start + 4 : at - 4]
    return head + struct.pack(">I", 4 + len(body)) + body + data[end:]


def _boxes(data: bytes, others: list[bytes], rng: Random) -> bytes:
    """Damages the directory of an AVIF or HEIC file, which begins with its second box, or a box within it."""
    choice = rng.random()
    if choice < 0.3:
        return _with_padding(data, rng) if choice < 0.15 else _with_many_extents(data, rng)
    out = bytearray(data)
    start = int.from_bytes(data[:4], "big")
    end = start + int.from_bytes(data[start : start + 4], "big")
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, size = rng.randrange(start + 8, max(start + 9, end)), rng.choice([1, 2, 4])
        out[at : at + size] = number(rng, size)
    return bytes(out)


def _riff(data: bytes, others: list[bytes], rng: Random) -> bytes:
    chunks, at = [], 12
    while at + 8 <= len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        chunks.append(data[at : at + 4] + data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    body = b"WEBP"
    for part in _damaged_parts(chunks, others, rng):
        body += part[:4] + struct.pack("<I", max(0, len(part) - 4)) + part[4:] + bytes(len(part) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


_STRUCTURES = [
    ((0, b"\x89PNG"), _png),
    ((0, b"\xff\xd8"), _jpeg),
    ((0, b"II"), _tiff),
    ((0, b"MM"), _tiff),
    ((4, b"ftyp"), _boxes),
    ((0, b"RIFF"), _riff),
]


@cache
def corpus() -> dict[str, bytes]:
    """Whole files of every format, mode and way of coding that can be written here, by name."""
    files: dict[str, bytes] = {}
    for name, image, format_, options in _pictures():
        buffer = io.BytesIO()
        image.save(buffer, format_, **options)
        files[f"{len(files):03}-{format_}-{name}"] = buffer.getvalue()
    files |= {"tiled.tif": tiled_tiff(), "tiled-deflate.tif": tiled_tiff(8), "rle8.bmp": rle_bmp(1), "rle4.bmp": rle_bmp(2)}
    return files | _heic()


def _pictures() -> Iterator[tuple[str, Image.Image, str, dict[str, Any]]]:
    rgb = scene(61, 47)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0comment"
    profile = bytes(range(256)) * 2
    for mode in ("L", "RGB", "CMYK"):
        yield mode, rgb.convert(mode), "JPEG", {}
    for name, options in {
        "progressive": {"progressive": True, "subsampling": 0, "quality": 95},
        "restarts": {"restart_marker_blocks": 1},
        "metadata": {"exif": exif, "icc_profile": profile, "comment": b"comment", "progressive": True},
    }.items():
        yield name, scene(201, 133), "JPEG", options
    yield "mpo", scene(40, 30), "MPO", _more()
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 100)
    text.add_text("c", "d" * 1000, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>', zip=True)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        yield mode, sixteen_bit(61, 47) if mode == "I;16" else rgb.convert(mode), "PNG", {}
    yield "metadata", rgb, "PNG", {"pnginfo": text, "exif": exif, "icc_profile": profile}
    yield "animated", scene(40, 30), "PNG", _more()
    yield "L", rgb.convert("L"), "GIF", {"interlace": 0, "comment": b"c" * 300}
    yield "animated", scene(40, 30), "GIF", {**_more(), "disposal": 2, "transparency": 3}
    yield "lossy", rgb, "WEBP", {"exif": exif, "icc_profile": profile}
    yield "lossless", rgb.convert("RGBA"), "WEBP", {"lossless": True}
    yield "animated", scene(40, 30), "WEBP", _more()
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield mode, rgb.convert(mode), "BMP", {}
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
        yield mode, rgb.convert(mode), "TIFF", {}
    yield "LAB", Image.new("LAB", (61, 47), (90, 20, 120)), "TIFF", {}
    yield "I;16", sixteen_bit(61, 47), "TIFF", {}
    yield "F", rgb.convert("F"), "TIFF", {}
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        yield compression, scene(131, 77), "TIFF", {"compression": compression, "strip_size": 4096}
    for compression in ("group3", "group4", "tiff_ccitt"):
        yield compression, rgb.convert("1"), "TIFF", {"compression": compression}
    yield "frames", scene(40, 30), "TIFF", {**_more(), "exif": exif, "icc_profile": profile}
    yield "big", rgb, "TIFF", {"big_tiff": True, "compression": "tiff_lzw"}
    if "AVIF" in Image.SAVE:
        yield "plain", rgb, "AVIF", {"speed": 10, "exif": exif}
        yield "alpha", rgb.convert("RGBA"), "AVIF", {"speed": 10, "subsampling": "4:4:4"}
        yield "animated", scene(40, 30), "AVIF", {**_more(), "speed": 10}


def _more() -> dict[str, Any]:
    """How to save further frames, which are new ones each time: Pillow leaves an encoder's settings in what it has saved."""
    return {"save_all": True, "append_images": [scene(40, 30).rotate(90), scene(40, 30).rotate(180)]}


def _heic() -> dict[str, bytes]:
    try:
        import pillow_heif
    except ImportError:
        return {}
    files = {}
    for name, picture, options in (
        ("plain", scene(61, 47), {}),
        ("alpha", scene(64, 48).convert("RGBA"), {"chroma": 444}),
        ("several", scene(64, 64), {"save_all": True, "append_images": [scene(48, 64)]}),
    ):
        buffer = io.BytesIO()
        heif = pillow_heif.from_pillow(picture)
        for more in options.pop("append_images", []):
            heif.add_from_pillow(more)
        heif.save(buffer, quality=60, **options)
        files[f"{name}.heic"] = buffer.getvalue()
    return files


def sixteen_bit(width: int, height: int) -> Image.Image:
    """Mode I;16."""
    return Image.fromarray(np.linspace(0, 65535, width * height).astype(np.uint16).reshape(height, width))


def tiled_tiff(compression: int = 1) -> bytes:
    """48 x 32 pixels in six tiles, without compression (1) or deflated (8)."""
    tile = np.random.default_rng(1).integers(0, 256, 16 * 16 * 3, np.uint8).tobytes()
    tile = zlib.compress(tile) if compression == 8 else tile
    places = {324: ("I", [8 + len(tile) * i for i in range(6)]), 325: ("I", [len(tile)] * 6)}
    return tiff({**tiff_tags(48, 32, compression), 322: ("H", [16]), 323: ("H", [16]), **places}, tile * 6)
