"""Pictures in tar files, such as the shards of a WebDataset."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from sigrl_deploy.errors import ImageError, printable
from sigrl_deploy.pictures.reading import is_image_path
from sigrl_deploy.pictures.structure.limits import MAX_FILE_BYTES
from sigrl_deploy.ray.tagger import require_no_outage
from sigrl_deploy.recognizer.streaming import Content
from sigrl_deploy.storage import Place

if TYPE_CHECKING:
    from typing_extensions import Self

_MOST_NAME_BYTES = 1 << 20  # of a header before a member with its long name, which tarfile reads whole
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


def read_members(place: Place, name: str, skip: int) -> Iterator[tuple[str, Content]]:
    """Name, which is `NAME/member`, and content of each picture in a tar file, without the first `skip`.

    The file is read once from its beginning. Where it is damaged or missing the last picture is the tar file itself, with that
    error. Raises UsageError where it cannot be read now.
    """
    count = 0
    try:
        stream = place.filesystem.open_input_stream(place.path, buffer_size=1 << 20)
    except OSError as error:
        require_no_outage(error, name)
        if not skip:
            yield name, partial(_fail, error)
        return
    with stream:
        try:
            with _Archive.open(fileobj=stream, mode="r|", errorlevel=1, tarinfo=_Member) as archive:
                for member in archive:
                    archive.members = []  # or it would keep them all
                    if not _is_picture(member):
                        continue
                    if count >= skip:
                        yield f"{name}/{member.name}", _content(archive, member)
                    count += 1
            if not archive.ended:
                raise tarfile.ReadError("its end is missing")
        except (tarfile.TarError, EOFError, ValueError, OSError) as error:
            if isinstance(error, OSError):
                require_no_outage(error, name)
            if count >= skip:
                problem = f"is damaged after {count} pictures ({printable(str(error)) or type(error).__name__})"
                yield name, partial(_fail, ImageError(problem))


class _Archive(tarfile.TarFile):
    """A tar file that knows whether the zeros at its end were there: tarfile takes the end of the stream for the same."""

    members: list[tarfile.TarInfo]
    ended = False


class _Member(tarfile.TarInfo):
    """A header, of bounded size."""

    @classmethod
    def fromtarfile(cls, archive: Any) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            archive.ended = True
            raise

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        found = super().frombuf(buf, encoding, errors)
        if found.type in _EXTENDED and found.size > _MOST_NAME_BYTES:
            raise tarfile.ReadError(f"a name of {found.size:,} bytes")
        return found


def _is_picture(member: tarfile.TarInfo) -> bool:
    name = member.name.rpartition("/")[2]
    return not member.isdir() and is_image_path(name) and not name.startswith(".")


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Content:
    if not member.isfile():
        other = f"a link to {printable(member.linkname)}" if member.issym() or member.islnk() else "no file"
        return partial(_fail, ImageError(f"is {other}, expected a picture file; pack files, not links"))
    if member.size > MAX_FILE_BYTES:
        return partial(_fail, ImageError(f"has {member.size:,} bytes, expected {MAX_FILE_BYTES:,} at most"))
    file = archive.extractfile(member)
    assert file is not None
    content = file.read()
    if len(content) != member.size:
        raise tarfile.ReadError("unexpected end of data")
    return content


def _fail(error: Exception) -> bytes:
    raise error
