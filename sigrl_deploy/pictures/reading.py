"""Reading an untrusted picture into upright RGB.

Pillow's plug-ins raise almost anything on malformed input. Here every failure becomes an ImageError that names the picture, so
that one bad file among many is a line in a report and not the end of a run. `sigrl_deploy.pictures.structure` limits what a
file may cost before it is decoded.
"""

from __future__ import annotations

import ctypes
import importlib.util
import io
import os
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
from sigrl_deploy.extras import install_command
from sigrl_deploy.files import open_regular
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

# Photographs come in these formats. Pillow opens forty, some through old parsers or other programs (EPS runs Ghostscript), and
# each would be one more way in for a hostile file.
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
    """Whether a file name has the extension of a format that `read_image` opens, in upper or lower case."""
    return os.path.splitext(os.fsdecode(path))[1].lower() in [ext for name in _formats() for ext in _EXTENSIONS[name]]


def read_image(source: ImageSource, name: str | None = None) -> Image.Image:
    """The first frame of a picture, turned upright as its EXIF says, as a new image of mode RGB.

    Args:
        source: a path; the bytes of a picture file, or a binary file object with them, which is left open; a PIL image of any
            mode but F; or an array [H, W], [H, W, 1], [H, W, 3] (RGB) or [H, W, 4] (RGBA), uint8 or uint16.
        name: what error messages call the picture; the path or the type of `source` by default.

    16-bit samples keep their upper 8 bits, as in Pillow; 32-bit integers are taken as 16-bit samples.

    Raises ImageError where the file is missing, cannot be opened, has another format, is damaged or truncated, holds
    floating-point samples, or would cost too much. The limits: 1 GiB, 128 megapixels and 65,535 pixels a side; for WebP, AVIF
    and HEIC 64 MiB and 50 megapixels; for PNG 320 MB and for TIFF 800 MB of uncompressed samples; and the numbers of scans,
    strips, chunks and metadata in `sigrl_deploy.pictures.structure`. Within them no file takes more than about 5 seconds of a
    core or 1 GiB of memory.
    """
    label = printable(name if name is not None else name_of(source))
    if isinstance(source, (np.ndarray, Image.Image)):
        image = _image_from_array(source, label) if isinstance(source, np.ndarray) else source
        with _errors_as_image_error(label), _pillow_is_quiet:
            return _upright_rgb(image, label, kept=True)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _read_stream(io.BytesIO(source), label)
    if isinstance(source, (str, os.PathLike)):
        try:
            with open_regular(source, MAX_FILE_BYTES) as stream:
                return _read_stream(stream, label)
        except (OSError, ValueError) as error:  # ValueError for a null byte in the path
            reason = getattr(error, "strerror", None) or error
            raise ImageError(f"{label}: cannot be opened ({reason}); check the path and its permissions") from error
    if not hasattr(source, "read"):
        raise ImageError(f"{label}: is not a picture; pass a path, bytes, a binary file, a PIL image or an array")
    return _read_stream(source, label)


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
        raise ImageError(f"{label}: is HEIC, and pillow-heif is not installed; {install_command('heif')}") from None
    stream.seek(0)
    # Registering the plug-in with Pillow would change what the whole process opens.
    return HeifImageFile(stream)


def _upright_rgb(image: Image.Image, label: str, kept: bool) -> Image.Image:
    """kept: the image belongs to the caller and must not change."""
    require_pixels(*image.size, MAX_PIXELS_WHOLE if image.format in _DECODED_WHOLE else MAX_PIXELS)
    if image.mode == "F":
        raise ImageError(f"{label}: floating-point samples have no fixed range; scale them to 0..255 and save as 8-bit")
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    picture = image.copy() if kept else image
    # EXIF left here would turn the picture again; nothing else in it is needed.
    picture.info.clear()
    rgb = _to_rgb(picture, label)
    if rgb is not picture:
        Image.Image.close(picture)  # or three copies would be in memory while it is turned
    if turn is not None:
        return rgb.transpose(turn)
    return rgb.copy() if rgb is image else rgb


def _orientation(image: Image.Image) -> int:
    require(len(image.info.get("exif") or b"") <= MAX_EXIF_BYTES, f"has more than {MAX_EXIF_BYTES:,} bytes of EXIF")
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1  # a picture with unreadable EXIF is still a picture


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = _eight_bit(image, label)
        Image.Image.close(image)
        image = grey
    image = image.convert("LA") if image.mode == "La" else image
    # Transparency is dropped, not blended with a background, because the training pipelines call convert("RGB") too.
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bit(image: Image.Image, label: str) -> Image.Image:
    """Mode I or I;16 → L, in bands of rows: arrays of the whole picture would be several times its size."""
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
        raise ImageError(f"{label}: is damaged or not a picture; expected one of {', '.join(_formats())}") from error
    except (MemoryError, Image.DecompressionBombError) as error:
        raise ImageError(f"{label}: is too large, expected {MAX_PIXELS:,} pixels at most; scale it down") from error
    except Exception as error:
        reason = printable(str(error)) or type(error).__name__
        raise ImageError(f"{label}: is damaged ({reason}); replace the picture or leave it out") from error


class _WithoutWarnings:
    """Silences Pillow's warnings: sizes are bounded here, and odd metadata does not concern whoever tags a folder.

    Warning filters belong to the whole process, so the first thread to enter sets them and the last one to leave restores them.
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
    """Keep libtiff from printing errors to standard error: an ImageError reports them.

    Its handlers are reached through Pillow's own extension module. Where libtiff is linked statically, as on Windows, they
    cannot be reached, and it goes on printing.
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
    """What error messages call a picture: its path, or the type of its source."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    known = getattr(source, "filename", getattr(source, "name", None))
    return known if known and isinstance(known, str) else f"<{type(source).__name__}>"
