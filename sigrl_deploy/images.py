"""Reading a picture that nobody vouches for, into upright RGB.

Pillow's plug-ins raise almost anything on malformed input. Here all of it becomes an ImageError that names the picture,
so that one bad file among many is a line in a report and not the end of a run.
"""

from __future__ import annotations

import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.Image import Transpose

from sigrl_deploy.errors import ImageError, printable

# What a header may announce: 512 MB once decoded, since Pillow keeps RGB in four bytes a pixel.
MAX_PIXELS = 128_000_000

# Still pictures only. Pillow opens forty formats, some through old parsers or other programs (EPS runs Ghostscript):
# on pictures from strangers each is a way in, and none of them is what photographs come as.
_EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "AVIF": (".avif",),
}

_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

_WARNINGS_LOCK = threading.Lock()

ImageSource = str | os.PathLike[str] | bytes | BinaryIO | Image.Image | NDArray[Any]


def is_image_path(path: str | os.PathLike[str]) -> bool:
    """Whether the extension of a file name, in either case, is that of a format `read_image` opens."""
    return os.path.splitext(os.fsdecode(path))[1].lower() in [ext for name in _formats() for ext in _EXTENSIONS[name]]


def read_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """The first frame of a picture, upright by its EXIF orientation, as a new image of mode RGB.

    source: a path; the bytes of a picture file, or a binary file object with them, which is left open; a PIL image of
        any mode but F; or an array [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA), uint8 or uint16.
    name: what messages call the picture; the path or the kind of source unless given.

    Samples of 16 bits keep their upper 8, as Pillow does with 16-bit colour; 32-bit integers count as 16-bit ones.

    Raises ImageError, one line, when there is no such file, it cannot be opened, it is none of the formats read here,
    is damaged or truncated, exceeds MAX_PIXELS, or holds samples of no known range.
    """
    label = printable(name if name is not None else name_of(source))
    if isinstance(source, (np.ndarray, Image.Image)):
        return _decode(_image_from_array(source, label) if isinstance(source, np.ndarray) else source, label)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read_stream(io.BytesIO(source), label)
    if isinstance(source, (str, os.PathLike)):
        with _open_regular_file(source, label) as stream:
            return _read_stream(stream, label)
    if not hasattr(source, "read"):
        raise ImageError(f"{label}: is no picture; pass a path, bytes, a binary file, a PIL image or an array")
    return _read_stream(source, label)


def _open_regular_file(path: str | os.PathLike[str], label: str) -> BinaryIO:
    try:
        # Opening a named pipe that nobody writes to would wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{label}: is a folder or a device, expected a picture file")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{label}: cannot be opened ({reason}); check path and permissions") from error


def _read_stream(stream: BinaryIO, label: str) -> Image.Image:
    with _errors_as_image_error(label):
        try:
            stream.seek(0)
        except (AttributeError, OSError):
            stream = io.BytesIO(stream.read())
        if not stream.read(1):
            raise ImageError(f"{label}: is empty (0 bytes), expected a picture file")
        with _without_pillow_warnings():
            image = Image.open(stream, formats=_formats())
        return _decode(image, label)


def _decode(image: Image.Image, label: str) -> Image.Image:
    width, height = image.size
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageError(f"{label}: {width} x {height} pixels, expected 1 to {MAX_PIXELS:,}; scale the picture down")
    with _errors_as_image_error(label):
        upright = _upright(image)
        # Of no use in RGB: Pillow warns of some transparencies, and EXIF left here would turn the picture again.
        upright.info.clear()
        return _to_rgb(upright, label)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        with _without_pillow_warnings():
            method = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        method = None  # EXIF that cannot be parsed gives no orientation; the pixels are none the worse for it.
    return image.copy() if method is None else image.transpose(method)


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{label}: floating-point samples have no fixed range; scale them to 0..255 and save as 8-bit")
    if image.mode == "I" or image.mode.startswith("I;16"):
        image = Image.fromarray(_upper_byte(np.asarray(image), label))
    image = image.convert("LA") if image.mode == "La" else image
    # Transparency is dropped, not blended with a background: the training pipelines read pictures with this very call.
    return image if image.mode == "RGB" else image.convert("RGB")


def _image_from_array(array: NDArray[Any], label: str) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise ImageError(f"{label}: shape {[*array.shape]}, expected [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], channels last")
    if array.dtype.kind != "u" or array.dtype.itemsize > 2:
        raise ImageError(f"{label}: dtype {array.dtype}, expected uint8 or uint16; scale to 0..255 and cast to uint8")
    samples = array if array.dtype.itemsize == 1 else _upper_byte(array, label)
    return Image.fromarray(np.ascontiguousarray(samples[..., 0] if array.ndim == 3 and channels == 1 else samples))


def _upper_byte(samples: NDArray[Any], label: str) -> NDArray[np.uint8]:
    lowest, highest = int(samples.min()), int(samples.max())
    if lowest < 0 or highest > 0xFFFF:
        raise ImageError(f"{label}: samples {lowest} to {highest}, expected 0 to 65535; scale them and save as 8-bit")
    return (samples >> 8).astype(np.uint8)


@contextmanager
def _errors_as_image_error(label: str) -> Iterator[None]:
    try:
        yield
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{label}: is damaged or no picture; expected one of {', '.join(_formats())}") from error
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageError(f"{label}: is too large, expected {MAX_PIXELS:,} pixels at most; scale it down") from error
    except Exception as error:
        reason = printable(str(error)) or type(error).__name__
        raise ImageError(f"{label}: is damaged ({reason}); replace the picture or leave it out") from error


@contextmanager
def _without_pillow_warnings() -> Iterator[None]:
    # The pixel bound is ours, and odd metadata is no news to whoever tags a folder. The filters belong to the whole
    # process: without the lock two threads could restore them in the wrong order.
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _EXTENSIONS if name in Image.OPEN)


def name_of(source: object) -> str:
    """What messages call a picture: its path, or the kind of source it came from."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    known = getattr(source, "filename", getattr(source, "name", None))
    return known if known and isinstance(known, str) else f"<{type(source).__name__}>"
