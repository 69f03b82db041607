"""Files that would cost minutes or gigabytes are refused by their structure; pictures of the same formats are not."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import features

from sigrl_deploy.errors import ImageError
from sigrl_deploy.pictures.reading import read_image
from sigrl_deploy.pictures.structure import boxes
from tests.support.picture_files import (
    GIF,
    GIF_HEAD,
    encode,
    flat,
    png_chunk,
    resized_jpeg,
    rle_bmp,
    scans,
    scene,
    segment,
    tiff,
    tiff_tags,
    with_segments,
    zeros,
)
from tests.support.refusals import assert_refused


def png(
    width: int, height: int, *before: bytes, depth: int = 8, colour: int = 2, data: tuple[bytes, ...] | None = None
) -> bytes:
    parts = data if data is not None else (zeros(height * (1 + 3 * width)),)
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    chunks = [header, *before, *(png_chunk(b"IDAT", part) for part in parts), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def resized_webp(width: int, height: int) -> bytes:
    data = encode(flat(16, 16), "WEBP")
    return data[:26] + struct.pack("<HH", width, height) + data[30:]


def strips(count: int, offsets: list[int] | None = None, **more: tuple[str, list[int]]) -> bytes:
    offsets = offsets if offsets is not None else [8] * count
    tags = {**tiff_tags(300, count, samples=1), 278: ("I", [1]), 273: ("I", offsets), 279: ("I", [300] * count)}
    return tiff({**tags, **{int(code[1:]): value for code, value in more.items()}}, bytes(offsets[-1] + 300))


def tiles(width: int, height: int, tile: bytes, compression: int) -> bytes:
    """A TIFF of one tile, and what it holds."""
    places = {322: ("I", [width]), 323: ("I", [height]), 324: ("I", [8]), 325: ("I", [len(tile)])}
    return tiff({**tiff_tags(100, 100, compression), **places}, tile)


def four_tiles(tile: bytes) -> bytes:
    """A TIFF of 4000 x 4000 pixels, which names the same tile of JPEG four times."""
    places = {322: ("I", [2000]), 323: ("I", [2000]), 324: ("I", [8] * 4), 325: ("I", [len(tile)] * 4)}
    return tiff({**tiff_tags(4000, 4000, 7), **places}, tile)


EXIF = segment(0xE1, b"Exif\0\0" + bytes(65_000))
COSTLY = {
    "a scan 5000 times": (lambda: scans(5000), "scans"),
    "a scan 5000 times, without end": (lambda: scans(5000)[:-2], "scans"),
    "a scan 5000 times, in a TIFF": (lambda: tiles(2000, 2000, scans(5000), 7), "scans"),
    "a tile of 500 scans, four times": (lambda: four_tiles(scans(500)), "scans"),
    "coefficients of 120 megapixels": (
        lambda: resized_jpeg(11_000, progressive=True, subsampling=0),
        "GB to read",
    ),
    "segments of EXIF": (lambda: with_segments(*[EXIF] * 80), "bytes of EXIF"),
    "segments": (lambda: with_segments(*[segment(0xE5, b"")] * 25_000), "20,000 segments"),
    "bytes of segments": (lambda: with_segments(*[segment(0xE5, bytes(65_000))] * 600), "bytes of segments"),
    "bytes between segments": (lambda: with_segments(segment(0xE5, b""), bytes(2**21)), "stray bytes"),
    "a row of 128 million pixels": (lambda: png(128_000_000, 1, depth=1, colour=0, data=(b"",)), "65,535"),
    "a column of 128 million pixels": (lambda: png(1, 128_000_000, depth=1, colour=0, data=(b"",)), "65,535"),
    "samples of 16 bits": (lambda: png(8000, 8000, depth=16, data=(b"",)), "384,008,000"),
    "a second header": (lambda: png(9, 9, png(60_000, 60_000, data=())[8:33]), "60000 x 60000"),
    "empty chunks": (lambda: png(40, 30, data=(b"",) * 250_000), "200,000 chunks"),
    "profiles": (lambda: png(40, 30, *[png_chunk(b"iCCP", b"a\0\0" + zeros(2**20))] * 2000), "profiles"),
    "a long text": (lambda: png(40, 30, png_chunk(b"tEXt", b"a\0" + b"\n" * 2**24)), "16,777,218"),
    "other chunks": (lambda: png(40, 30, *[png_chunk(b"prVt", bytes(2**20))] * 65), "bytes beside its picture"),
    "data behind the picture": (lambda: png(40, 30, data=(zeros(3000), bytes(2**21))), "picture data"),
    "blocks before a picture": (
        lambda: GIF[:GIF_HEAD] + b"!\xfe" + b"\1a" * 2**20 + b"\0" + GIF[GIF_HEAD:],
        "no picture",
    ),
    "run lengths of 16 megapixels": (lambda: rle_bmp(1, 4000, 4000, b"\1\1\0\0" * 4000), "8,000,000"),
    "run lengths without progress": (lambda: rle_bmp(1, 40, 30, b"\0\2\0\0" * 100_000), "run-length codes"),
    "a long header": (lambda: b"BM" + bytes(12) + struct.pack("<I", 2**26) + bytes(2**26), "67,108,864"),
    "strips": (lambda: strips(60_000, s50000=("I", [1] * 300_000)), "300,000 values in tag 50000"),
    "strips of nothing": (lambda: strips(60_000, [8] * 300_000), "300,000 values in tag 273"),
    "strips that overlap": (lambda: strips(60_000, [*range(8, 60_008)]), "strips that overlap"),
    "tags": (lambda: tiff({**tiff_tags(9, 9), **{code: ("H", [1]) for code in range(20_000, 25_000)}}, b""), "5,006 tags"),
    "samples a pixel": (lambda: tiff({**tiff_tags(9, 9), 277: ("H", [60_000])}, bytes(243)), "60,000 samples"),
    "a tile much larger than its picture": (lambda: tiles(60_000, 60_000, zeros(30_000), 8), "60,000 x 60,000"),
    "one strip of 16-bit samples": (
        lambda: tiff({**tiff_tags(11_000, 11_000, 8), 258: ("H", [16] * 3), 273: ("I", [8]), 279: ("I", [9])}, bytes(9)),
        "GB to read",
    ),
    "LZMA": (
        lambda: tiff({**tiff_tags(5000, 5000, 34925), 273: ("I", [8]), 279: ("I", [9])}, bytes(9)),
        "LZMA",
    ),
    "WebP of 60 megapixels": (lambda: resized_webp(8000, 7500), "50,000,000"),
}


@pytest.mark.parametrize("what", COSTLY)
def test_a_costly_file_is_refused(what: str) -> None:
    make, fact = COSTLY[what]
    data = make()
    assert_refused(lambda: read_image(data), ImageError, "<bytes>: ", fact)


def test_what_cameras_and_programs_write_is_read() -> None:
    expected = np.asarray(scene(40, 30))
    xmp = [segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + bytes(65_000))] * 200  # a depth map of 13 MB
    np.testing.assert_allclose(np.asarray(read_image(with_segments(*xmp, EXIF)), int), expected, atol=30)
    with_movie = encode(scene(40, 30), "JPEG") + b"\xff\xda\0\2" * 2**20
    np.testing.assert_allclose(np.asarray(read_image(with_movie), int), expected, atol=30)
    assert read_image(scans(20)).size == (2000, 2000)
    assert read_image(strips(3000, [8 + 300 * row for row in range(3000)])).size == (300, 3000)
    pieces = tuple(bytes([byte]) for byte in zeros(30 * 121))
    assert read_image(png(40, 30, *[png_chunk(b"tEXt", b"a\0b")] * 1000, data=pieces)).size == (40, 30)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
@pytest.mark.parametrize("options", [{}, {"save_all": True, "append_images": [flat(1201, 1000)]}])
def test_an_avif_picture_larger_than_it_announces_is_refused(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(flat(1201, 1000), "AVIF", speed=10, quality=10, **options)
    liar = data.replace(b"ispe" + struct.pack(">III", 0, 1201, 1000), b"ispe" + struct.pack(">III", 0, 64, 64))
    assert liar != data
    assert read_image(data).size == (1201, 1000)
    monkeypatch.setattr(boxes, "MAX_ITEM_PIXELS", 1_200_000)  # a picture of 64 megapixels takes long to make
    assert_refused(lambda: read_image(liar), ImageError, "1,201,000", "1,200,000")


def test_a_heic_grid_that_names_its_tiles_many_times_is_refused() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    options, buffer = pillow_heif.options, io.BytesIO()
    before, options.GRID_TILE_SIZE = options.GRID_TILE_SIZE, 256
    try:
        pillow_heif.from_pillow(flat(1024, 512)).save(buffer, quality=10)
    finally:
        options.GRID_TILE_SIZE = before
    data = buffer.getvalue()
    assert read_image(data).size == (1024, 512)
    tile = b"ispe" + struct.pack(">III", 0, 256, 256)
    assert tile in data
    large = data.replace(tile, b"ispe" + struct.pack(">III", 0, 7000, 7000))
    assert_refused(lambda: read_image(large), ImageError, "392,524,288", "150,000,000")


def test_libtiff_prints_nothing(tmp_path: Path) -> None:
    data = bytearray(encode(scene(131, 77), "TIFF", compression="tiff_lzw"))
    data[20:2000] = bytes(1980)
    (tmp_path / "damaged.tif").write_bytes(data)
    (tmp_path / "short.tif").write_bytes(encode(scene(131, 77), "TIFF", compression="jpeg")[:-300])
    code = (
        "import sys\nfrom sigrl_deploy.errors import ImageError\nfrom sigrl_deploy.pictures.reading import read_image\n"
        "for path in sys.argv[1:]:\n    try: read_image(path)\n    except ImageError as error: print(error)"
    )
    paths = [tmp_path / "damaged.tif", tmp_path / "short.tif"]
    run = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert "damaged.tif: is damaged (decoder error" in run.stdout
    assert run.stderr == ""


@pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
def test_an_avif_file_with_megabytes_of_exif_is_refused() -> None:
    data = encode(scene(40, 30), "AVIF", exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(2**21))
    assert_refused(lambda: read_image(data), ImageError, "EXIF", "2,097,")


def test_a_directory_of_fractions_is_refused() -> None:
    fractions = {code: ("Q", [1] * 20_000) for code in (33434, 33437, 37386)}
    directory = tiff(fractions, b"")[8:]
    tags = {**tiff_tags(9, 9), 273: ("I", [8]), 279: ("I", [243]), 34665: ("I", [252])}
    data = tiff(tags, bytes(244) + directory)
    assert_refused(lambda: read_image(data), ImageError, "50,000 fractions")
