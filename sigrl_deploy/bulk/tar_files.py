"""Pictures in tar files, such as the shards of a WebDataset."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import partial
from typing import Any

from sigrl_deploy.errors import ImageError, printable
from sigrl_deploy.pictures.reading import is_image_path
from sigrl_deploy.pictures.structure.limits import MAX_FILE_BYTES
from sigrl_deploy.recognizer.streaming import Content
from sigrl_deploy.storage import Place, reason


def read_members(place: Place, skip: int) -> Iterator[tuple[str, Content]]:
    """Name, which is `FILE.tar/member`, and content of each picture in a tar file, without the first `skip`.

    The file is read once from its beginning. Where it is damaged or missing the last picture is the tar file itself, with that
    error. Raises OSError where it cannot be read now.
    """
    count = 0
    try:
        stream = place.filesystem.open_input_stream(place.path, buffer_size=1 << 20)
    except FileNotFoundError as error:
        if not skip:
            yield place.url, partial(_refuse, f"cannot be opened ({reason(error)})")
        return
    with stream:
        counted: Any = _Counted(stream)
        try:
            with tarfile.open(fileobj=counted, mode="r|", errorlevel=1) as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # or it would keep them all
                    if not _is_picture(member):
                        continue
                    if count >= skip:
                        yield f"{place.url}/{member.name}", _content(archive, member)
                    count += 1
            if counted.bytes % tarfile.BLOCKSIZE:  # which tarfile takes for the end
                raise tarfile.ReadError("it ends within a header")
        except (tarfile.TarError, EOFError, ValueError) as error:
            if count >= skip:
                problem = f"is damaged after {count} pictures ({printable(str(error)) or type(error).__name__})"
                yield place.url, partial(_refuse, problem)


class _Counted:
    """A stream that counts what is read of it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.bytes = 0

    def read(self, size: int) -> bytes:
        content: bytes = self._stream.read(size)
        self.bytes += len(content)
        return content


def _is_picture(member: tarfile.TarInfo) -> bool:
    name = member.name.rpartition("/")[2]
    return member.isfile() and is_image_path(name) and not name.startswith(".")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Content:
    if member.size > MAX_FILE_BYTES:
        return partial(_refuse, f"has {member.size:,} bytes, expected {MAX_FILE_BYTES:,} at most")
    file = archive.extractfile(member)
    assert file is not None
    content = file.read()
    if len(content) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _refuse(problem: str) -> bytes:
    raise ImageError(problem)
