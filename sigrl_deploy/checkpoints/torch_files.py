"""What `torch.save` and `torch.jit.save` write: a pickle that describes tensors, and their storages beside it."""

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
_MAX_DIRECTORY = 1 << 21  # bytes of a zip file's list of members
_BLOCK = 1 << 20
_ZIP = b"PK\x03\x04"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the format before torch 1.6
_MAX_START = 100  # instructions of a pickle before the weights'
_ITEM_SIZES = {
    "Half": 2,
    "BFloat16": 2,
    "Float": 4,
    "Double": 8,
    "Bool": 1,
    "Byte": 1,
    "Char": 1,
    "Short": 2,
    "Int": 4,
    "Long": 8,
    # Not read, but passed over on the way to the next.
    "ComplexFloat": 8,
    "ComplexDouble": 16,
    "QInt8": 1,
    "QUInt8": 1,
    "QInt32": 4,
    "QUInt4x2": 1,
    "QUInt2x4": 1,
    "Untyped": 1,
}


class TorchFile(Protocol):
    """`root` is the pickle's value (see `pickles`); storages are read by key."""

    root: Any

    def size(self, key: str) -> int:
        """Bytes of a storage in the file. Raises KeyError where it has none of that key, PickleError where it is compressed."""

    def read(self, key: str) -> bytearray:
        """A storage's bytes."""


def open_torch_file(path: Path) -> TorchFile:
    """A file of either format. Raises PickleError, and what zipfile and struct raise, where it is damaged or neither."""
    with path.open("rb") as file:
        is_zip = file.read(4) == _ZIP
    return _Archive(path) if is_zip else _Legacy(path)


class _Archive:
    """A zip file, whose members are stored as they are: what is compressed could be of any size."""

    def __init__(self, path: Path) -> None:
        self._limit = os.path.getsize(path)
        _check_directory(path, self._limit)
        self._zip = zipfile.ZipFile(path)
        if sum(info.compress_size for info in self._zip.infolist()) > self._limit:
            raise PickleError("its members lie over one another")
        pickles = [name for name in self._zip.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PickleError(f"has {len(pickles)} members data.pkl, expected one")
        self._folder = pickles[0].removesuffix("data.pkl")
        if f"{self._folder}byteorder" in self._zip.NameToInfo and self._member("byteorder") != b"little":
            raise PickleError("was saved on a machine of another byte order")
        self.root = read_pickle(io.BytesIO(self._member("data.pkl")))

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self._zip.getinfo(self._folder + name)
        if info.compress_type != zipfile.ZIP_STORED or not info.file_size == info.compress_size <= self._limit:
            raise PickleError(f"its member {name} is compressed, expected one that is stored as it is")
        if not info.CRC:  # torch can be told to leave it out
            info = copy(info)
            del info.CRC  # and zipfile then compares nothing
        return info

    def _member(self, name: str) -> bytearray:
        info = self._info(name)
        if info.file_size > MAX_PICKLE and not name.startswith("data/"):
            raise PickleError(f"its member {name} has {info.file_size} bytes, more than a model's")
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
    """The list of members is at the end, and zipfile would read all of it at once."""
    with path.open("rb") as file:
        file.seek(max(0, size - 98))
        tail = file.read(98)
    end, locator, end64 = tail[-22:], tail[-42:-22], tail[-98:-42]
    if len(end) < 22 or end[:4] != b"PK\x05\x06" or end[20:] != b"\0\0":
        raise PickleError("has no list of its members at the end")
    sizes = [struct.unpack_from("<L", end, 12)[0]]
    if locator[:4] == b"PK\x06\x07" and end64[:4] == b"PK\x06\x06":
        sizes = [each for each in sizes if each != 0xFFFFFFFF] + [struct.unpack_from("<Q", end64, 40)[0]]
    if max(sizes) > _MAX_DIRECTORY:
        raise PickleError(f"its list of members has {max(sizes)} bytes, more than a model's")


class _Legacy:
    """The format before torch 1.6: five pickles, then for each storage its count and its numbers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            head = io.BytesIO(file.read(MAX_PICKLE))
            if any(read_pickle(head, limit=_MAX_START) != expected for expected in (_MAGIC, _PROTOCOL)):
                raise PickleError("is no file of torch.save's")
            system = read_pickle(head, limit=_MAX_START)
            if not isinstance(system, dict) or system.get("little_endian") is not True:
                raise PickleError("was saved on a machine of another byte order")
            found: dict[str, Storage] = {}
            self.root = read_pickle(head, found)
            keys = read_pickle(head)
            self._places: dict[str, tuple[int, int]] = {}
            start, end = head.tell(), os.path.getsize(path)
            if type(keys) is not list or not all(type(key) is str for key in keys):
                raise PickleError("has no list of its storages")
            for key in keys:
                item = _ITEM_SIZES.get(found[key].kind.removesuffix("Storage")) if key in found else None
                if item is None:
                    raise PickleError("holds numbers that are no tensor's, or of a kind unknown here")
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
