"""Reading pictures of every kind, and of no kind at all."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sigrl_deploy.errors import ImageError
from sigrl_deploy.pictures import reading as images
from sigrl_deploy.pictures.reading import is_image_path, read_image
from tests.support.picture_files import encode

FORMATS = [name for name in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF") if name in images._formats()]


@pytest.fixture(autouse=True)
def _no_warning_leaks() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def scene(mode: str = "RGB") -> Image.Image:
    """Smooth, 40 x 30 and different in every corner: survives lossy formats, and shows any turn or swap."""
    y, x = np.mgrid[0:30, 0:40]
    pixels = np.stack([x * 6, y * 8, 255 - x * 3 - y * 4], axis=-1).astype(np.uint8)
    return Image.fromarray(pixels).convert(mode)


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    data = b"IDAT" + zlib.compress(b"\0" * 100)
    chunks = [len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (body, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)
    message = str(caught.value)
    assert message.isprintable(), "one line, and nothing a terminal would obey"
    return message


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_alike_from_every_source(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture.{name.lower()}"
    path.write_bytes(encode(scene(), name))
    data = path.read_bytes()
    with Image.open(path) as opened, path.open("rb") as stream:
        for source in (str(path), path, data, bytearray(data), io.BytesIO(data), stream, opened):
            image = read_image(source)
            assert (image.mode, image.size) == ("RGB", (40, 30))
            assert image.tobytes() == opened.convert("RGB").tobytes()
        assert not stream.closed


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_modes_are_converted_as_pillow_does(mode: str) -> None:
    image = scene("LA" if mode == "PA" else "RGB").convert(mode)
    before = image.tobytes()
    assert read_image(image).tobytes() == image.convert("RGB").tobytes()
    assert image.tobytes() == before


def test_premultiplied_grey_is_converted() -> None:
    assert read_image(scene("LA").convert("La")).tobytes() == scene("L").convert("RGB").tobytes()


def test_a_cmyk_jpeg_is_read() -> None:
    image = read_image(encode(scene("CMYK"), "JPEG", quality=95))
    # JPEG at quality 95 moves a smooth picture by a few levels; an inverted one would be off by 255.
    assert np.abs(np.asarray(image, int) - np.asarray(scene(), int)).max() < 20


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_a_transparent_palette_keeps_its_colours(transparency: Any) -> None:
    palette = scene().quantize(256)
    data = encode(palette, "PNG", transparency=transparency)
    assert read_image(data).tobytes() == palette.convert("RGB").tobytes()


def test_transparency_is_dropped_and_not_blended() -> None:
    image = scene("RGBA")
    image.putalpha(0)
    for name in ("PNG", "TIFF"):
        assert read_image(encode(image, name)).tobytes() == scene().tobytes()


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I"])
def test_sixteen_bit_grey_is_scaled(mode: str) -> None:
    samples = np.array([[0, 255, 256, 32768, 65535]])
    dtype = {"I": "<i4", "I;16B": ">u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (5, 1), samples.astype(dtype).tobytes())
    assert np.asarray(read_image(image))[0, :, 0].tolist() == [0, 0, 1, 128, 255]


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_sixteen_bit_grey_files_are_scaled(name: str) -> None:
    samples = np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)
    data = encode(Image.fromarray(samples), name)
    np.testing.assert_array_equal(np.asarray(read_image(data))[..., 1], samples >> 8)


@pytest.mark.parametrize("samples", [[[-1, 5]], [[0, 65536]]])
def test_integers_of_unknown_range_are_refused(samples: list[list[int]]) -> None:
    assert "expected 0 to 65535" in refusal(Image.fromarray(np.array(samples, np.int32)))


def test_floats_are_refused(tmp_path: Path) -> None:
    scene("L").convert("F").save(tmp_path / "float.tif")
    assert "float.tif: floating-point samples" in refusal(tmp_path / "float.tif")


@pytest.mark.parametrize("name", [n for n in FORMATS if n in ("GIF", "TIFF", "WEBP", "PNG")])
def test_the_first_of_several_frames_is_read(name: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], name, save_all=True, append_images=frames[1:], lossless=True)
    assert read_image(data).getcolors() == [(1200, (255, 0, 0))]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", [n for n in FORMATS if n in ("JPEG", "PNG", "TIFF", "WEBP")])
def test_exif_orientation_is_applied_once(name: str, orientation: int) -> None:
    # The stored rows and columns, written from the EXIF standard: where the 0th row and 0th column of storage lie.
    upright = np.asarray(scene())
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "WEBP" else {"quality": 98, "subsampling": 0} if name == "JPEG" else {}
    once = read_image(encode(Image.fromarray(np.ascontiguousarray(stored)), name, exif=exif, **options))
    # Lossless but for JPEG, whose error here is a few levels; a wrong turn is off by 100 or more.
    assert np.abs(np.asarray(once, int) - upright).max() < 12
    assert read_image(once).tobytes() == once.tobytes()


def test_broken_exif_leaves_the_picture_readable() -> None:
    data = encode(scene(), "PNG", exif=b"Exif\0\0this is no EXIF")
    with Image.open(io.BytesIO(data)) as image, pytest.raises(SyntaxError):
        image.getexif()
    assert read_image(data).tobytes() == scene().tobytes()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, ">u2"])
@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1), (30, 40, 3), (30, 40, 4)])
def test_arrays_are_read(shape: tuple[int, ...], dtype: Any) -> None:
    eight = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    array = eight.astype(dtype) * (1 if dtype is np.uint8 else 257)
    channels = eight if eight.ndim == 3 else eight[..., None]
    expected = np.tile(channels, 3) if channels.shape[2] == 1 else channels[..., :3]
    np.testing.assert_array_equal(np.asarray(read_image(array)), expected)
    np.testing.assert_array_equal(np.asarray(read_image(array[::-1, ::2])), expected[::-1, ::2])


@pytest.mark.parametrize("shape", [(3,), (30, 40, 2), (3, 30, 40), (1, 30, 40, 3), (0, 40, 3), (30, 0), ()])
def test_arrays_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    assert "channels last" in refusal(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, bool, np.uint32, object])
def test_arrays_of_another_dtype_are_refused(dtype: Any) -> None:
    assert "expected uint8 or uint16" in refusal(np.zeros((4, 4, 3), dtype))


def test_files_that_are_no_picture_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "drawing.eps").write_bytes(encode(scene(), "EPS"))
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "empty.jpg: is empty" in refusal(tmp_path / "empty.jpg")
    for name in ("text.png", "drawing.eps"):
        assert f"{name}: is damaged or not a picture" in refusal(tmp_path / name)
    assert "pipe.jpg: cannot be opened (is a folder, pipe or device" in refusal(tmp_path / "pipe.jpg")
    assert refusal(str(tmp_path)).startswith(f"{tmp_path}: cannot be opened (")
    assert "missing.jpg: cannot be opened (No such file" in refusal(tmp_path / "missing.jpg")
    assert "cannot be opened" in refusal("a\0b.jpg")
    assert "pass a path" in refusal(3.5)
    assert refusal(b"", name="upload\n\x1b[31m 7").startswith(r"upload\n\x1b[31m 7: ")


@pytest.mark.skipif(not hasattr(os, "setuid"), reason="no POSIX permissions")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    """In a process of its own that is not root's, since no permission stops root."""
    (tmp_path / "locked.png").touch(mode=0)
    tmp_path.chmod(0o755)
    code = (
        "import os\nfrom sigrl_deploy.errors import ImageError\nfrom sigrl_deploy.pictures.reading import read_image\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: read_image('locked.png')\nexcept ImageError as error: print(error)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.stdout.startswith("locked.png: cannot be opened (Permission denied)"), run.stderr


# Beyond our bound, beyond Pillow's warning, and beyond its error: all known from the header.
@pytest.mark.parametrize("size", [(16000, 8001), (65535, 65535), (2**31 - 1, 2**31 - 1)])
def test_a_decompression_bomb_is_refused(size: tuple[int, int]) -> None:
    assert "expected 1 to 128,000,000" in (message := refusal(png_header(*size))) or "is too large" in message


@pytest.mark.parametrize(("name", "options"), [("PNG", {}), ("TIFF", {"compression": "tiff_lzw"})])  # on opening, on decoding
def test_a_picture_that_pillow_would_warn_of_is_decoded(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert read_image(encode(scene(), name, **options)).size == (40, 30)


def test_the_pixel_bound_holds_for_every_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1199)
    for source in (scene(), np.asarray(scene()), encode(scene(), "PNG")):
        assert "40 x 30 pixels, expected 1 to 1,199" in refusal(source)


def test_files_are_closed(tmp_path: Path) -> None:
    (tmp_path / "good.gif").write_bytes(encode(scene(), "GIF"))
    (tmp_path / "bad.gif").write_bytes(encode(scene(), "GIF")[:200])
    kept = read_image(tmp_path / "good.gif")
    assert "bad.gif: is damaged" in refusal(tmp_path / "bad.gif")
    open_files = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    assert kept.size == (40, 30)
    assert not [path for path in open_files if path.endswith(".gif")]


def test_a_stream_that_cannot_seek_is_read() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as stream:
        stream.write(encode(scene(), "PNG"))
    with os.fdopen(reader, "rb") as stream:
        assert read_image(stream).tobytes() == scene().tobytes()


def test_threads_leave_the_warning_filters_alone() -> None:
    before, data, interval = list(warnings.filters), encode(scene(), "JPEG"), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so often that, without the lock, some thread restores what another had set
    with ThreadPoolExecutor(8) as pool:
        pictures = {image.tobytes() for image in pool.map(read_image, [data] * 400)}
    sys.setswitchinterval(interval)
    assert (len(pictures), list(warnings.filters)) == (1, before)


MEMORY = """
import sys
from sigrl_deploy.pictures.reading import read_image
def now(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
read_image(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")
before = now("VmRSS")
read_image(sys.argv[2])
print(now("VmHWM") - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
def test_a_picture_is_in_memory_twice_at_most(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for side in (10, 4000):
        Image.new("RGBA", (side, side)).save(tmp_path / f"{side}.png", exif=exif, compress_level=1)
    paths = [tmp_path / "10.png", tmp_path / "4000.png"]
    run = subprocess.run([sys.executable, "-c", MEMORY, *paths], capture_output=True, text=True, check=True)
    # Decoded, converted and turned: 4 bytes a pixel each. Beside them are buffers of a few rows.
    assert int(run.stdout) * 1024 < 4000 * 4000 * 4 * 2.3


def outcome(data: bytes) -> bool:
    """Whether the bytes read as a picture; anything but a picture or an ImageError fails the test."""
    try:
        return read_image(data).mode == "RGB"
    except ImageError:
        return False


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_files_are_refused_or_read(name: str) -> None:
    data = encode(scene(), name)
    outcomes = [outcome(data[:length]) for length in range(0, len(data), max(1, len(data) // 150))]
    assert not all(outcomes)
    assert outcome(data)


@pytest.mark.parametrize("name", FORMATS)
def test_corrupt_files_are_refused_or_read(name: str) -> None:
    rng, data, outcomes = np.random.default_rng(7), np.frombuffer(encode(scene(), name), np.uint8), []
    for trial in range(300):
        damaged = data.copy()  # half of the damage goes to the header, which decides what a decoder trusts
        where = rng.integers(0, min(len(data), 64) if trial % 2 else len(data), rng.integers(1, 6))
        damaged[where] = rng.integers(0, 256, len(where))
        outcomes.append(outcome(damaged.tobytes()))
    assert not all(outcomes)
    assert any(outcomes)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FORMATS), st.integers(0, 64), st.binary(max_size=200))
def test_garbage_after_a_true_beginning_is_refused_or_read(name: str, kept: int, garbage: bytes) -> None:
    outcome(encode(scene(), name)[:kept] + garbage)


def test_file_names_of_pictures_are_known() -> None:
    assert all(is_image_path(name) for name in ("a.jpg", "b.JPEG", Path("c/d.Png"), "e.webp", "f.TIF", "g.gif", "h.bmp"))
    assert not any(is_image_path(name) for name in ("jpg", ".jpg", "a.eps", "a.svg", "a.jpg.txt", "a.pdf", "a", ""))
