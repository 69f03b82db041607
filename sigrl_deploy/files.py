"""Reading files of bounded size, and writing files so that other processes find them whole or not at all."""

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

MOST_BYTES = 1 << 36  # of a file that is hashed


@contextmanager
def open_regular(path: str | os.PathLike[str], most: int) -> Iterator[BinaryIO]:
    """Open a regular file of `most` bytes at most for reading.

    Raises OSError for a larger file, and for a folder, pipe or device: a pipe would hang, and /dev/zero would fill the memory.
    """
    with open(path, "rb", opener=_open_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "is a folder, pipe or device, expected a file", os.fspath(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"has {status.st_size:,} bytes, expected {most:,} at most", os.fspath(path))
        yield file


def _open_without_waiting(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe that nobody writes to would never return.
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
    """A temporary path beside `path`: renamed to `path` when the block ends, removed when it raises.

    The file's permissions are `mode` without the bits of the umask.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        # tempfile would create it with mode 0600, which locks other users out of a shared folder.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield temporary
        with temporary.open("rb") as file:  # otherwise a power cut could keep the name and lose the content
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


MOST_ARRAY_BYTES = 1 << 32  # enough for a million labels with embeddings of width 512
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class DamagedFileError(Exception):
    """A file of arrays is not as `write_arrays` wrote it."""


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], mode: int = 0o666) -> None:
    """Write an uncompressed `.npz`, whose members carry checksums. `mode` is as for `replacing`."""
    with replacing(path, mode) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """The named arrays of a file that `write_arrays` wrote.

    Allocates no more than the file's own size. Raises OSError or MemoryError where the file cannot be read at the moment, and
    DamagedFileError where its content is damaged or incomplete.
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
    # A compressed member may be a thousand times as large as the file.
    if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
        raise ValueError(f"{name} is compressed")
    return _parsed(archive.read(member), name)


def read_array(path: Path, most: int) -> NDArray[Any]:
    """The array of a `.npy` file of `most` bytes at most, as numpy saves it. Raises as `read_arrays` does."""
    content = read_bounded(path, most)
    try:
        return _parsed(content, "the array")
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise DamagedFileError(f"{path}: cannot be read ({str(error) or type(error).__name__})") from None


def _parsed(content: bytes, name: str) -> NDArray[Any]:
    data = io.BytesIO(content)
    shape, _, dtype = _HEADERS[np.lib.format.read_magic(data)](data)
    if math.prod(shape) * dtype.itemsize != len(content) - data.tell():
        raise ValueError(f"{name} is not as large as its header says")
    data.seek(0)
    return np.lib.format.read_array(data, allow_pickle=False)
