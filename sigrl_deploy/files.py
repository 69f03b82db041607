"""Files that other processes may be reading: whole or absent, never half-written."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray


def sha256_file(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it when the block ends well and removed when it does not."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    # Not tempfile's 0600, which would lock other users out of a shared folder: what the umask leaves of 0666.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        with temporary.open("rb") as file:  # or a power cut could keep the name and lose the content
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class DamagedFileError(Exception):
    """A file of arrays cannot be read back as it was written."""


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays as an uncompressed `.npz`, whose members carry checksums."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """The named arrays of a file by `write_arrays`.

    Raises OSError or MemoryError where it cannot be read at present, DamagedFileError where what it holds is not whole.
    """
    content = io.BytesIO(path.read_bytes())
    try:
        with np.load(content, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except MemoryError:
        raise
    except Exception as error:  # numpy and zipfile have many ways to fail on a damaged file
        reason = str(error) or type(error).__name__
        raise DamagedFileError(f"{path}: cannot be read ({reason})") from None
