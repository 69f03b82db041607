"""Files that lie on a disk or in a bucket, by one name: a path, `s3://bucket/key` or `gs://bucket/key`. Needs pyarrow."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigrl_deploy.errors import UsageError, printable
from sigrl_deploy.files import replacing

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SCHEMES = ("s3", "gs")
_SECONDS_TO_CONNECT = 10.0
# A server that has too much to do says so for seconds; the SDKs wait longer from try to try. In all it is about a minute.
_TRIES = 8
_RETRY_TIME = timedelta(minutes=1)
_SECRET = re.compile(r"(^|(?<=://))[^/]*@")
_LONGEST = 300  # characters of a file system's error

# Errors that other files meet, too, and that pass: of disks and networks, and as Amazon's and Google's SDKs say it.
_OUTAGES = {
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOTCONN, errno.ETIMEDOUT),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
}
_SERVER_OUTAGE = re.compile(
    r"AWS Error (NETWORK_CONNECTION|SLOW_DOWN|THROTTLING|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|REQUEST_EXPIRED|"
    r"REQUEST_TIME_TOO_SKEWED)|HTTP status (5\d\d|429)|"
    r"google::cloud::Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL|ABORTED|UNAUTHENTICATED)"
)


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
        """The whole file. Raises OSError, also where it has more than `most` bytes, and ValueError for an impossible name."""
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

    def size_and_time(self) -> tuple[int, int] | None:
        """Bytes of this file, and when it was changed in ns since 1970; None where it is not there. Raises OSError."""
        from pyarrow.fs import FileType

        (info,) = self.filesystem.get_file_info([self.path])
        return (info.size, info.mtime_ns or 0) if info.type is FileType.File else None

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
    """Raise UsageError for a name of another kind, such as `http://`, or with credentials; `argument` named it."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return
    if scheme not in SCHEMES:
        raise UsageError("expected a path, s3:// or gs://", argument=argument, value=_without_secret(url))
    _check_secret(url, argument)
    if not rest.strip("/"):
        raise UsageError("names no bucket; expected such as s3://bucket/folder", argument=argument, value=url)
    if "//" in rest.strip("/"):
        raise UsageError("has an empty name between two slashes; give it without", argument=argument, value=url)


def check_endpoint(endpoint: str | None) -> None:
    """Raise UsageError for a server with credentials, which would be in every error line."""
    if endpoint is not None:
        _check_secret(endpoint, "endpoint")


def _check_secret(url: str, argument: str) -> None:
    if _SECRET.search(url):
        problem = "holds credentials; leave them out, and give them in the environment or in ~/.aws"
        raise UsageError(problem, argument=argument, value=_without_secret(url))


def _without_secret(url: str) -> str:
    return _SECRET.sub("...@", url)


@contextmanager
def storage_errors(url: str, argument: str, advice: str) -> Iterator[None]:
    """An OSError in the block becomes a UsageError about `argument`, which named `url`."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{reason(error)}; {advice}", argument=argument, value=url) from None


def is_outage(error: OSError) -> bool:
    """Whether a disk, a bucket's server or the network failed, so that other files cannot be read now either."""
    return error.errno in _OUTAGES or _SERVER_OUTAGE.search(str(error)) is not None


def reason(error: Exception) -> str:
    """Why a file system failed, in one short line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return printable(text.splitlines()[0])[:_LONGEST]


@cache
def _local() -> FileSystem:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()


@cache
def _filesystem(scheme: str, bucket: str, endpoint: str | None) -> FileSystem:
    from pyarrow.fs import AwsStandardS3RetryStrategy, GcsFileSystem, S3FileSystem, resolve_s3_region

    options: dict[str, Any] = {}
    if endpoint is not None:
        protocol, separator, host = endpoint.rpartition("://")
        options = {"endpoint_override": host} | ({"scheme": protocol} if separator else {})
    if scheme == "gs":
        return GcsFileSystem(retry_time_limit=_RETRY_TIME, **options)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region is None:
        region = "us-east-1" if endpoint is not None else resolve_s3_region(bucket)
    tries = AwsStandardS3RetryStrategy(max_attempts=_TRIES)
    return S3FileSystem(region=region, connect_timeout=_SECONDS_TO_CONNECT, retry_strategy=tries, **options)
