"""Files that lie on a disk or in a bucket, by one name: a path, `s3://bucket/key` or `gs://bucket/key`. Needs pyarrow."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigrl_deploy.errors import UsageError, printable
from sigrl_deploy.files import replacing

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs")
_SECONDS_TO_CONNECT = 10.0
_CLIENTS = ("AWS Error", "google::cloud")  # how errors of a server begin
_LONGEST = 300  # characters of a file system's error


@dataclass(frozen=True)
class Place:
    """A file or folder. `endpoint` is the server of `s3://` and `gs://` names, where it is not Amazon's or Google's."""

    url: str
    endpoint: str | None = None

    @property
    def is_remote(self) -> bool:
        return is_remote(self.url)

    @property
    def path(self) -> str:
        """As its file system names it."""
        return self.url.partition("://")[2].strip("/") if self.is_remote else self.url

    @property
    def bucket(self) -> str:
        return self.path.partition("/")[0]

    @property
    def filesystem(self) -> FileSystem:
        """Raises OSError where it cannot be reached."""
        return _filesystem(self.url.partition("://")[0], self.bucket, self.endpoint) if self.is_remote else _local()

    def below(self, name: str) -> Place:
        """A file or folder in this folder."""
        return Place(f"{self.url.rstrip('/')}/{name}" if self.is_remote else os.path.join(self.url, name), self.endpoint)

    def read(self, most: int) -> bytes:
        """The whole file. Raises OSError, also where it has more than `most` bytes."""
        with self.filesystem.open_input_file(self.path) as file:
            if file.size() > most:
                raise OSError(errno.EFBIG, f"has {file.size():,} bytes, expected {most:,} at most")
            return bytes(file.read())

    def write(self, content: bytes) -> None:
        """Write the file, so that others find it whole or not at all. Raises OSError."""
        if self.is_remote:
            # One object of a bucket appears when its last byte has arrived.
            with self.filesystem.open_output_stream(self.path) as stream:
                stream.write(content)
        else:
            with replacing(Path(self.url)) as temporary:
                temporary.write_bytes(content)

    def entries(self, recursive: bool = False) -> Iterator[tuple[str, int]]:
        """Names and bytes of the files in this folder, the names relative to it and sorted. Raises OSError."""
        from pyarrow.fs import FileSelector, FileType

        base = self.path.rstrip("/")
        found = self.filesystem.get_file_info(FileSelector(base, recursive=recursive))
        files = {info.path.removeprefix(base).lstrip("/"): info.size or 0 for info in found if info.type is FileType.File}
        yield from sorted(files.items())


def is_remote(url: str) -> bool:
    """Whether a name is that of an object in a bucket."""
    return url.partition("://")[0] in SCHEMES and "://" in url


def check_url(url: str, argument: str) -> None:
    """Raise UsageError for a name of another kind, such as `http://`; `argument` named it."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme not in SCHEMES:
        raise UsageError("expected a path, s3:// or gs://", argument=argument, value=url)
    if separator and not rest.strip("/"):
        raise UsageError("names no bucket; expected such as s3://bucket/folder", argument=argument, value=url)


@contextmanager
def storage_errors(url: str, argument: str, advice: str) -> Iterator[None]:
    """An OSError in the block becomes a UsageError about `argument`, which named `url`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{reason(error)}; {advice}", argument=argument, value=url) from None


def is_outage(error: OSError) -> bool:
    """Whether a bucket's server or the network failed, so that other files cannot be read now either."""
    if isinstance(error, (FileNotFoundError, PermissionError)) or "ACCESS_DENIED" in str(error):
        return False
    return any(client in str(error) for client in _CLIENTS)


def reason(error: OSError) -> str:
    """Why a file system failed, in one short line."""
    return printable((error.strerror or str(error) or type(error).__name__).splitlines()[0])[:_LONGEST]


@cache
def _local() -> FileSystem:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()


@cache
def _filesystem(scheme: str, bucket: str, endpoint: str | None) -> FileSystem:
    from pyarrow.fs import GcsFileSystem, S3FileSystem, resolve_s3_region

    options: dict[str, Any] = {}
    if endpoint is not None:
        protocol, separator, host = endpoint.rpartition("://")
        options = {"endpoint_override": host} | ({"scheme": protocol} if separator else {})
    if scheme == "gs":
        return GcsFileSystem(**options)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint is not None else resolve_s3_region(bucket)
    return S3FileSystem(region=region, connect_timeout=_SECONDS_TO_CONNECT, **options)
