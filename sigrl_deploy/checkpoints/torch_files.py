"""The files of `torch.save` and `torch.jit.save`: a pickle that describes tensors, and the storages that hold their numbers."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from copy import copy
from pathlib import Path
from typing import Any, Protocol

from sigrl_deploy.checkpoints.pickles import PickleError, Storage, read_pickle

MAX_PICKLE = 1 << 23  # bytes; the largest model that open_clip knows, with its optimizer, needs a tenth
_MAX_DIRECTORY = 1 << 21  # bytes of a zip file's central directory
_BLOCK = 1 << 20
_ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before torch 1.6
_MAX_START = 100  # instructions of a pickle that precedes the weights
# From torch's name of a storage to its dtype and the bytes of a number.
STORAGES = {
    "HalfStorage": ("float16", 2),
    "BFloat16Storage": ("bfloat16", 2),
    "FloatStorage": ("float32", 4),
    "DoubleStorage": ("float64", 8),
    "BoolStorage": ("bool", 1),
    "ByteStorage": ("uint8", 1),
    "CharStorage": ("int8", 1),
    "ShortStorage": ("int16", 2),
    "IntStorage": ("int32", 4),
    "LongStorage": ("int64", 8),
}
_ITEM_SIZES = {kind: size for kind, (_, size) in STORAGES.items()} | {
    # Not read, but skipped on the way to the next storage.
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QInt32Storage": 4,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
    "UntypedStorage": 1,
}


class TorchFile(Protocol):
    """An open file. `root` is the pickle's value (see `pickles`); storages are read by key."""

    root: Any

    def size(self, key: str) -> int:
        """The size of a storage in bytes. Raises KeyError where there is none, PickleError where it is compressed."""

    def read(self, key: str) -> bytearray:
        """A storage's bytes."""


def open_torch_file(path: Path) -> TorchFile:
    """Open a file of either format. Raises PickleError, or what zipfile and struct raise, where it is damaged or of neither."""
    with path.open("rb") as file:
        is_zip = file.read(4) == _ZIP
    return _Archive(path) if is_zip else _Legacy(path)


class _Archive:
    """A zip file. Its members have to be uncompressed: a compressed one could be of any size."""

    def __init__(self, path: Path) -> None:
        self._limit = os.path.getsize(path)
        _check_directory(path, self._limit)
        self._zip = zipfile.ZipFile(path)
        if sum(info.compress_size for info in self._zip.infolist()) > self._limit:
            raise PickleError("its members overlap")
        pickles = [name for name in self._zip.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PickleError(f"has {len(pickles)} members named data.pkl, expected one")
        self._folder = pickles[0].removesuffix("data.pkl")
        if f"{self._folder}byteorder" in self._zip.NameToInfo and self._member("byteorder") != b"little":
            raise PickleError("was saved on a machine with another byte order")
        self.root = read_pickle(io.BytesIO(self._member("data.pkl")))

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self._zip.getinfo(self._folder + name)
        if info.compress_type != zipfile.ZIP_STORED or not info.file_size == info.compress_size <= self._limit:
            raise PickleError(f"its member {name} is compressed, expected an uncompressed one")
        if not info.CRC:  # which torch can be told to leave out
            info = copy(info)
            del info.CRC  # so that zipfile compares nothing
        return info

    def _member(self, name: str) -> bytearray:
        info = self._info(name)
        if info.file_size > MAX_PICKLE and not name.startswith("data/"):
            raise PickleError(f"its member {name} has {info.file_size} bytes, more than a model has")
        content = bytearray(info.file_size)
        start = 0
        with self._zip.open(info) as file:  # which compares the checksum at the end
            while block := file.read(_BLOCK):
                content[start : start + len(block)] = block
                start += len(block)
        if start != info.file_size:
            raise PickleError(f"its member {name} ends early")
        return content

    def size(self, key: str) -> int:
        return self._info(f"data/{key}").file_size

    def read(self, key: str) -> bytearray:
        return self._member(f"data/{key}")


def _check_directory(path: Path, size: int) -> None:
    """Raise PickleError for a central directory that is missing or too large: zipfile would read all of it at once."""
    with path.open("rb") as file:
        file.seek(max(0, size - 98))
        tail = file.read(98)
    end, locator, end64 = tail[-22:], tail[-42:-22], tail[-98:-42]
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise PickleError("does not end with a list of its members")
    sizes = [struct.unpack_from("<L", end, 12)[0]]
    if locator[:4] == b"PK\x06\x07" and end64[:4] == b"PK\x06\x06":
        sizes = [each for each in sizes if each != 0xFFFFFFFF] + [struct.unpack_from("<Q", end64, 40)[0]]
    if max(sizes) > _MAX_DIRECTORY:
        raise PickleError(f"its list of members has {max(sizes)} bytes, more than a model has")


class _Legacy:
    """The format before torch 1.6: five pickles, then the length and the numbers of each storage."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            head = io.BytesIO(file.read(MAX_PICKLE))
            if any(read_pickle(head, limit=_MAX_START) != expected for expected in (_MAGIC, _PROTOCOL)):
                raise PickleError("was not written by torch.save")
            system = read_pickle(head, limit=_MAX_START)
            if not isinstance(system, dict) or system.get("little_endian") is not True:
                raise PickleError("was saved on a machine with another byte order")
            found: dict[str, Storage] = {}
            self.root = read_pickle(head, found)
            keys = read_pickle(head)
            self._places: dict[str, tuple[int, int]] = {}
            start, end = head.tell(), os.path.getsize(path)
            if type(keys) is not list or not all(type(key) is str for key in keys):
                raise PickleError("does not list its storages")
            for key in keys:
                item = _ITEM_SIZES.get(found[key].kind) if key in found else None
                if item is None:
                    raise PickleError("holds a storage that no tensor uses, or of an unknown kind")
                file.seek(start)
                size = struct.unpack("<q", file.read(8))[0] * item
                if not 0 <= size <= end - start - 8:
                    raise PickleError("ends before its last storage")
                self._places[key] = (start + 8, size)
                start += 8 + size

    def size(self, key: str) -> int:
        return self._places[key][1]

    def read(self, key: str) -> bytearray:
        start, size = self._places[key]
        content = bytearray(size)
        with self._path.open("rb") as file:
            file.seek(start)
            if file.readinto(content) != size:
                raise PickleError("ends before its last storage")
        return content
