"""The checks of pictures see what decoders see: no limit, odd entry or cut ends one quietly, and none takes long by itself."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from sigrl_deploy.errors import ImageError
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.pictures.structure import Refused, av1, check_structure, jpeg
from tests.support.picture_files import (
    GIF,
    GIF_HEAD,
    encode,
    resized_jpeg,
    scans,
    scene,
    segment,
    tiff,
    tiff_tags,
    with_segments,
    zeros,
)
from tests.support.refusals import assert_refused


def strips(count: int, data: int = 1000, **more: tuple[str, list[int]]) -> bytes:
    """1000 x 1000 pixels in strips of 500 rows whose data begin a byte apart, with other tags as wanted."""
    tags = {**tiff_tags(1000, 1000, samples=1), 278: ("I", [500]), 279: ("I", [500_000] * count)}
    tags[273] = ("I", [*range(8, 8 + count)])
    return tiff({**tags, **{int(code[1:]): value for code, value in more.items()}}, bytes(data + count))


def patched(data: bytes, code: int, entry: bytes) -> bytes:
    """A TIFF of which the entry of a tag is another one."""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    places = [at + 2 + 12 * i for i in range(count)]
    place = next(place for place in places if struct.unpack_from("<H", data, place) == (code,))
    return data[:place] + entry + data[place + 12 :]


def entry(code: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHII", code, kind, count, value)


def cut_directory() -> bytes:
    """A TIFF that ends within the last entry of its directory, which lies behind the values, and which no decoder needs."""
    data = strips(200, s60000=("I", [1]))
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    moved = data + data[at : at + 2 + 12 * count - 5]
    return moved[:4] + struct.pack("<I", len(data)) + moved[8:]


def with_exif(directory: bytes, code: int = 34665) -> bytes:
    """A TIFF of 9 x 9 pixels with a directory of its own kind at its end."""
    data = tiff({**tiff_tags(9, 9), 273: ("I", [8]), 279: ("I", [243]), code: ("I", [0])}, bytes(243))
    at = len(data) + len(data) % 2
    return patched(data, code, entry(code, 4, 1, at)).ljust(at, b"\0") + directory


def fractions_behind_exif() -> bytes:
    """Its EXIF names a directory of 60,000 fractions."""
    at = len(with_exif(b"")) + 18
    tags = b"".join(entry(33434 + i, 5, 20_000, 8) for i in range(3))
    directory = struct.pack("<H", 1) + entry(40965, 4, 1, at) + bytes(4) + struct.pack("<H", 3) + tags + bytes(4)
    return with_exif(directory + bytes(500_000))


def parts_of_jpeg() -> bytes:
    """A hundred parts of JPEG, each of 400 markers."""
    places = {273: ("I", [8 + 800 * i for i in range(100)]), 279: ("I", [800] * 100), 278: ("I", [1])}
    return tiff({**tiff_tags(1000, 100, 7, 1), **places}, b"\xff\xd8" * 40_000)


def equal_identifiers(data: bytes) -> bytes:
    """A JPEG whose components have the same identifier, in its frame and in its scans."""
    out = bytearray(data)
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    out[frame + 10 : frame + 19 : 3] = b"\1\1\1"
    scan = data.find(b"\xff\xda")
    while scan >= 0:
        out[scan + 5 : scan + 5 + 2 * data[scan + 4] : 2] = b"\1" * data[scan + 4]
        scan = data.find(b"\xff\xda", scan + 2)
    return bytes(out)


def box(kind: bytes, *content: bytes) -> bytes:
    return struct.pack(">I4s", 8 + sum(map(len, content)), kind) + b"".join(content)


FTYP = box(b"ftyp", b"avif\0\0\0\0avifmif1")
FULL = bytes(4)


def meta(*boxes: bytes) -> bytes:
    return box(b"meta", FULL, *boxes)


def items(count: int, kind: bytes = b"av01") -> bytes:
    entries = [box(b"infe", b"\2\0\0\0", struct.pack(">HH", 1 + i, 0), kind, b"\0") for i in range(count)]
    return box(b"iinf", FULL, struct.pack(">H", count), *entries)


def places(count: int, parts: int, extent: bytes) -> bytes:
    entries = [struct.pack(">HHH", 1 + i, 0, parts) + extent * parts for i in range(count)]
    return box(b"iloc", FULL, struct.pack(">HH", 0x4400 if extent else 0, count), *entries)


def overlapping_items() -> bytes:
    return FTYP + meta(items(20), places(20, 2, struct.pack(">II", 1000, 100_000))) + box(b"mdat", bytes(210_000))


def behind(padding: bytes) -> bytes:
    """Megabytes of EXIF, behind something that a decoder passes over."""
    iloc = places(1, 1, struct.pack(">II", 0, 2 * 2**20))
    return FTYP + padding + meta(items(1, b"Exif"), iloc) + bytes(2 * 2**20)


def in_a_track() -> bytes:
    return FTYP + box(b"moov", box(b"trak", behind(b"")[len(FTYP) :]))


def hidden_entry() -> bytes:
    dummies = [box(b"infe", b"\2\0\0\0", struct.pack(">HH", 9 + i, 0), b"hvc1\0") for i in range(4100)]
    real = box(b"infe", b"\2\0\0\0", struct.pack(">HH", 1, 0), b"Exif\0")
    iinf = box(b"iinf", FULL, struct.pack(">H", 4101), *dummies, real)
    return FTYP + meta(iinf, places(1, 1, struct.pack(">II", 0, 2 * 2**20))) + bytes(2 * 2**20)


def properties() -> bytes:
    ipma = box(b"ipma", FULL, struct.pack(">I", 300), *[struct.pack(">HB", 1 + i, 255) + b"\1" * 255 for i in range(300)])
    return FTYP + meta(items(1), places(1, 0, b""), box(b"iprp", box(b"ipco"), ipma))


def grids() -> bytes:
    dimg = [box(b"dimg", struct.pack(">HH", 1 + i, 60_000), bytes(120_000)) for i in range(2)]
    return FTYP + meta(items(1), places(1, 0, b""), box(b"iprp"), box(b"iref", FULL, *dimg))


def comment_like(label: bytes) -> bytes:
    """A GIF whose extension ends where Pillow reads on, over what looks like the picture, and then block by block."""
    return GIF[:GIF_HEAD] + b"!" + label + b"," + bytes([1] * 44) + b"\1a" * 2**20 + b"\0" + GIF[GIF_HEAD:]


SHORT = 2**16 - 1
HIDDEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "offsets twice": (lambda: patched(strips(200, s272=("I", [8])), 272, entry(273, 99, 1, 8)), "tag 273 more than once"),
    "signed offsets": (
        lambda: strips(200).replace(struct.pack("<HH", 273, 4), struct.pack("<HH", 273, 9)),
        "tag 273",
    ),
    "a compression outside the file": (
        lambda: patched(strips(200), 259, entry(259, 4, 2, 2**31)),
        "tag 259",
    ),
    "places behind a tag of the file's size": (
        lambda: patched(strips(200, 10_000), 262, entry(200, 7, 11_500, 8)),
        "tag 273",
    ),
    "strips and tiles": (lambda: strips(4, s322=("H", [1]), s323=("H", [1])), "strips and tiles"),
    "a strip a hundred times": (lambda: strips(100, s273=("I", [8] * 100)), "100 strips or tiles"),
    "a wide row by bytes": (
        lambda: tiff(
            {**tiff_tags(SHORT, 2), 278: ("I", [1]), 273: ("I", [8, 9]), 279: ("I", [3 * SHORT] * 2)}, bytes(6 * SHORT)
        ),
        "strips that overlap",
    ),
    "EXIF at the last byte": (
        lambda: patched(d := strips(4, s34665=("I", [0])), 34665, entry(34665, 4, 1, len(d) - 1)),
        "strips",
    ),
    "a directory that is cut off": (cut_directory, "200 strips or tiles"),
    "BigTIFF with the highest byte first": (lambda: b"MM\0\x2b" + bytes(60), "BigTIFF"),
    "fractions behind EXIF": (fractions_behind_exif, "50,000 fractions"),
    "numbers of EXIF": (
        lambda: with_exif(
            struct.pack("<H", 6) + b"".join(entry(50_000 + i, 3, 200_000, 8) for i in range(6)) + bytes(2_500_000)
        ),
        "1,000,000 values",
    ),
    "strips that share megabytes": (
        lambda: tiff(
            {**tiff_tags(10, 300, 8), 278: ("I", [1]), 273: ("I", [8] * 300), 279: ("I", [2**20] * 300)},
            zeros(30) + bytes(2**20),
        ),
        "bytes of strips or tiles",
    ),
    "a segment without its length": (lambda: with_segments(b"\xff\xe5\0\0"), "0 bytes"),
    "scans behind such a segment": (lambda: (d := scans(400))[:2] + b"\xff\xe5\0\1" + d[2:], "1 bytes"),
    "equal identifiers": (lambda: equal_identifiers(resized_jpeg(11_300, progressive=True, subsampling=0)), "needs 1.2 GB"),
    "quantization tables": (
        lambda: with_segments(*[segment(0xDB, (b"\0" + b"\1" * 64) * 1000)] * 70),
        "bytes of EXIF",
    ),
    "an empty extension": (lambda: comment_like(b"\1\0"), "no picture"),
    "a loop without a count": (lambda: comment_like(b"\xff\x0bNETSCAPE2.0\0"), "no picture"),
    "free boxes": (lambda: behind(box(b"free") * 17_000), "EXIF of"),
    "more free boxes": (lambda: behind(box(b"free") * 70_000), "65,536 boxes"),
    "entries before the last": (hidden_entry, "4,096 items"),
    "EXIF of a track": (in_a_track, "EXIF of"),
    "parts of nothing": (lambda: FTYP + meta(items(3), places(3, 65_535, b"")), "65,536 parts of items"),
    "parts of items that overlap": (overlapping_items, "parts of its items"),
    "properties": (properties, "65,536 properties"),
    "parts of grids": (grids, "65,536 parts of grids"),
    "places twice": (
        lambda: FTYP + meta(items(1), box(b"iloc", FULL, struct.pack(">HH", 0x4400, 2), struct.pack(">HHH", 1, 0, 0) * 2)),
        "item 1 twice",
    ),
}


@pytest.mark.parametrize("what", HIDDEN)
def test_nothing_hides_from_the_check(what: str) -> None:
    make, fact = HIDDEN[what]
    data = make()
    begin = time.process_time()
    with pytest.raises(Refused, match=fact):
        check_structure(io.BytesIO(data))
    assert time.process_time() - begin < 5


def test_parts_of_jpeg_share_their_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jpeg, "MAX_ALL_SEGMENTS", 30_000, raising=False)
    with pytest.raises(Refused, match="30,000 segments"):
        check_structure(io.BytesIO(parts_of_jpeg()))


def test_tracks_that_share_their_samples_are_walked_once() -> None:
    chunks = box(b"stco", FULL, struct.pack(">II", 1, len(FTYP) + 16 + 20 * 8000 + 8)) * 8000
    data = FTYP + box(b"moov", box(b"trak", chunks)) + box(b"mdat", b"\x12\0" * 998)
    begin = time.process_time()
    check_structure(io.BytesIO(data))
    assert time.process_time() - begin < 3


def test_tracks_share_their_units() -> None:
    start = len(FTYP) + 16 + 20 * 100 + 8
    chunks = b"".join(box(b"stco", FULL, struct.pack(">II", 1, start + 2 * i)) for i in range(100))
    with pytest.raises(Refused, match="50,000 units"):
        check_structure(io.BytesIO(FTYP + box(b"moov", box(b"trak", chunks)) + box(b"mdat", b"\x12\0" * 998)))


def test_a_sequence_header_is_read_as_decoders_do() -> None:
    fields = [(0, 5), (1, 1), (0, 64), (1, 1), (0, 32), (0, 2), (0, 5), (0, 17), (15, 4), (15, 4), (9999, 16), (7999, 16)]
    bits = "".join(f"{value:0{size}b}" for value, size in fields).ljust(176, "0")
    header = int(bits, 2).to_bytes(22, "big")
    assert av1.pixels(av1.Work(), b"\x0a" + bytes([len(header)]) + header) == 10_000 * 8000


def test_what_repeats_without_harm_is_read(tmp_path: Path) -> None:
    plain = encode(scene(40, 30), "JPEG", subsampling=0)
    np.testing.assert_array_equal(np.asarray(read_image(equal_identifiers(plain))).shape, (30, 40, 3))
    last_one = strips(1, 1_000_000, s278=("I", [1000]), s273=("I", [8, 8]), s279=("I", [1_000_000] * 2))
    assert read_image(last_one).size == (1000, 1000)
    loop = b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0!\xfe\0!\xfe\3abc\0"
    looped = GIF[:GIF_HEAD] + loop + GIF[GIF_HEAD:]
    np.testing.assert_array_equal(np.asarray(read_image(looped)), np.asarray(read_image(GIF)))
    if features.check("avif"):
        data = encode(Image.new("RGB", (64, 48)), "AVIF")
        assert read_image(data + box(b"free") * 100 + b"\0\0\0\4junk").size == (64, 48)


def test_a_picture_that_ends_too_early_is_an_error_of_a_line() -> None:
    for name in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        data = encode(scene(40, 30), name)
        for end in {1, 2, 3, 5, 9, 15, 20, 27, len(data) // 3}:
            assert_refused(lambda data=data[:end]: read_image(data), ImageError, "<bytes>: ")
