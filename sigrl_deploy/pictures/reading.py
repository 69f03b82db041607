"""Reading a picture that nobody vouches for, into upright RGB.

Pillow's plug-ins raise almost anything on malformed input. Here all of it becomes an ImageError that names the picture,
so that one bad file among many is a line in a report and not the end of a run. What a file may cost is bounded before it is
decoded, by `sigrl_deploy.structure`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError, _imaging
from PIL.Image import Transpose

from sigrl_deploy.errors import ImageError, printable
from sigrl_deploy.pictures.structure import Refused, check_structure
from sigrl_deploy.pictures.structure.boxes import is_heic
from sigrl_deploy.pictures.structure.limits import (
    MAX_EXIF_BYTES,
    MAX_FILE_BYTES,
    MAX_PIXELS,
    MAX_PIXELS_WHOLE,
    require,
    require_pixels,
)

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
    "HEIF": (".heic", ".heif", ".hif"),
}
_DECODED_WHOLE = ("WEBP", "AVIF", "HEIF")
_HEIF_PLUGIN = "pillow_heif"
INSTALL_HEIF = "pip install '.[heif]' in a checkout"

_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}

_BAND_SAMPLES = 4 * 2**20

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
    is damaged or truncated, holds samples of no known range, or would cost too much. A file has at most 1 GiB, 128 megapixels
    and 65,535 pixels a side; WebP, AVIF and HEIC 64 MiB and 50 megapixels; PNG 320 MB and TIFF 800 MB of samples; and no more
    scans, strips, chunks or metadata than `sigrl_deploy.structure` allows. So none takes more than about 5 seconds of a core
    or 1 GiB of memory.
    """
    label = printable(name if name is not None else name_of(source))
    if isinstance(source, (np.ndarray, Image.Image)):
        image = _image_from_array(source, label) if isinstance(source, np.ndarray) else source
        with _errors_as_image_error(label), _pillow_is_quiet:
            return _upright_rgb(image, label, kept=True)
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
    with _errors_as_image_error(label), _pillow_is_quiet:
        try:
            stream.seek(0)
        except (AttributeError, OSError):
            stream = _in_memory(stream)
        if not stream.read(1):
            raise ImageError(f"{label}: is empty (0 bytes), expected a picture file")
        check_structure(stream)
        image = _open(stream, label)
        try:
            return _upright_rgb(image, label, kept=False)
        finally:
            Image.Image.close(image)  # gives its pixels back, and leaves the stream open


def _in_memory(stream: BinaryIO) -> BinaryIO:
    whole = io.BytesIO()
    while whole.tell() <= MAX_FILE_BYTES and (block := stream.read(2**20)):
        whole.write(block)
    whole.seek(0)
    return whole


def _open(stream: BinaryIO, label: str) -> Image.Image:
    if not is_heic(stream):
        _silence_libtiff()
        stream.seek(0)
        return Image.open(stream, formats=[name for name in _formats() if name != "HEIF"])
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(f"{label}: is HEIC, which needs the package pillow-heif; {INSTALL_HEIF}") from None
    stream.seek(0)
    # Not registered with Pillow, which would change what the whole process opens.
    return HeifImageFile(stream)


def _upright_rgb(image: Image.Image, label: str, kept: bool) -> Image.Image:
    """kept: the image, or the memory below it, is the caller's, and stays as it is."""
    require_pixels(*image.size, MAX_PIXELS_WHOLE if image.format in _DECODED_WHOLE else MAX_PIXELS)
    if image.mode == "F":
        raise ImageError(f"{label}: floating-point samples have no fixed range; scale them to 0..255 and save as 8-bit")
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    picture = image.copy() if kept else image
    # Of no use in RGB, and EXIF left here would turn the picture again.
    picture.info.clear()
    rgb = _to_rgb(picture, label)
    if rgb is not picture:
        Image.Image.close(picture)  # or there would be three of them once it is turned
    if turn is not None:
        return rgb.transpose(turn)
    return rgb.copy() if rgb is image else rgb


def _orientation(image: Image.Image) -> int:
    require(len(image.info.get("exif") or b"") <= MAX_EXIF_BYTES, f"has more than {MAX_EXIF_BYTES:,} bytes of EXIF")
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1  # EXIF that cannot be parsed gives no orientation; the pixels are none the worse for it.


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = _eight_bit(image, label)
        Image.Image.close(image)
        image = grey
    image = image.convert("LA") if image.mode == "La" else image
    # Transparency is dropped, not blended with a background: the training pipelines read pictures with this very call.
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image, label: str) -> Image.Image:
    """Mode I or I;16 → L. In bands, since arrays of a whole picture would be several times its size."""
    grey = Image.new("L", image.size)
    rows = max(1, _BAND_SAMPLES // image.width)
    for top in range(0, image.height, rows):
        band = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        grey.paste(Image.fromarray(_upper_byte(band, label)), (0, top))
    return grey


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
    except Refused as error:
        raise ImageError(f"{label}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{label}: is damaged or no picture; expected one of {', '.join(_formats())}") from error
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageError(f"{label}: is too large, expected {MAX_PIXELS:,} pixels at most; scale it down") from error
    except Exception as error:
        reason = printable(str(error)) or type(error).__name__
        raise ImageError(f"{label}: is damaged ({reason}); replace the picture or leave it out") from error


class _WithoutWarnings:
    """No warnings of Pillow while any thread is inside: bounds are ours, and odd metadata is no news to who tags a folder.

    The filters belong to the whole process, so the first thread in sets them and the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.|pillow_heif\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._saved.__exit__(None, None, None)


_pillow_is_quiet = _WithoutWarnings()


@cache
def _silence_libtiff() -> None:
    """libtiff prints what it finds wrong to standard error by itself; here the error record says it.

    Its handlers are reached through Pillow's own module, which is linked with it. Where it is linked statically, as on Windows,
    they cannot be reached, and it goes on printing.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(_imaging.__file__)
        for set_handler in (library.TIFFSetWarningHandler, library.TIFFSetErrorHandler):
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    readable = {*Image.OPEN, *(["HEIF"] if importlib.util.find_spec(_HEIF_PLUGIN) else [])}
    return tuple(name for name in _EXTENSIONS if name in readable)


def name_of(source: object) -> str:
    """What messages call a picture: its path, or the kind of source it came from."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    known = getattr(source, "filename", getattr(source, "name", None))
    return known if known and isinstance(known, str) else f"<{type(source).__name__}>"
