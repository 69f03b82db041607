"""Files that other processes may be reading: whole or absent, never half-written."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

MOST_BYTES = 1 << 36  # of a file that is read as a stream


@contextmanager
def open_regular(path: Path, most: int) -> Iterator[BinaryIO]:
    """A regular file of `most` bytes at most, to be read.

    Raises OSError for what is larger, and for a folder, pipe or device: a pipe would hang, and /dev/zero fill the memory.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is a folder, pipe or device, expected a file", os.fspath(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"has {status.st_size:,} bytes, expected {most:,} at most", os.fspath(path))
        yield file


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a pipe that nobody writes to would never return.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bounded(path: Path, most: int) -> bytes:
    """The bytes of a regular file of `most` bytes at most. Raises OSError as `open_regular` does."""
    with open_regular(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def sha256_file(path: Path) -> str:
    """Hex digest of the bytes of a regular file of MOST_BYTES at most. Raises OSError as `open_regular` does."""
    with open_regular(path, MOST_BYTES) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path, mode: int = 0o666) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well and removed when it does not.

    The file has what the umask leaves of `mode`.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        # Not tempfile's 0600, which would lock other users out of a shared folder.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield temporary
        with temporary.open("rb") as file:  # or a power cut could keep the name and lose the content
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


MOST_ARRAY_BYTES = 1 << 32  # of a file of arrays: a million labels, at a width of 512
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class DamagedFileError(Exception):
    """A file of arrays cannot be read back as it was written."""


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], mode: int = 0o666) -> None:
    """Write arrays as an uncompressed `.npz`, whose members carry checksums; `mode` as for `replacing`."""
    with replacing(path, mode) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """The named arrays of a file by `write_arrays`.

    Nothing is built that its bytes do not fill. Raises OSError or MemoryError where the file cannot be read at present,
    DamagedFileError where what it holds is not whole.
    """
    content = read_bounded(path, MOST_ARRAY_BYTES)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return {name: _array(archive, f"{name}.npy") for name in names}
    except MemoryError:
        raise
    except Exception as error:  # numpy and zipfile have many ways to fail on a damaged file
        reason = str(error) or type(error).__name__
        raise DamagedFileError(f"{path}: cannot be read ({reason})") from None


def _array(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    member = archive.getinfo(name)
    # A compressed one may be a thousand times as large as the file.
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError(f"{name} is compressed")
    data = io.BytesIO(archive.read(member))
    shape, _, dtype = _HEADERS[np.lib.format.read_magic(data)](data)
    if math.prod(shape) * dtype.itemsize != member.file_size - data.tell():
        raise ValueError(f"{name} is not as large as its header says")
    data.seek(0)
    return np.lib.format.read_array(data, allow_pickle=False)
