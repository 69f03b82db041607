"""Reading the body of a request: admitted before it is read, bounded in size and time, kept in memory."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from sigrl_deploy.serve.errors import OverloadedError
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.problems import RequestError

JSON, FORM = "application/json", "multipart/form-data"
_ANY = "application/octet-stream"
_MOST_FIELDS = 16  # of a form, besides its pictures


class Admission:
    """Counts the bytes of all bodies that are being read or worked on."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0

    @contextmanager
    def reserved(self) -> Iterator[Reservation]:
        """Room that grows with a body, and is given back at the end of the block."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.bytes -= reservation.bytes


@dataclass
class Reservation:
    """The bytes of one request."""

    admission: Admission
    bytes: int = 0

    def up_to(self, count: int) -> None:
        """Have room for so many bytes in all. Raises OverloadedError where there is none."""
        more = count - self.bytes
        if more <= 0:
            return
        if self.admission.bytes + more > self.admission.most:
            raise OverloadedError("the bodies of other requests take all memory that is set aside for them")
        self.admission.bytes += more
        self.bytes = count


@dataclass(frozen=True)
class Body:
    """What a body holds: its pictures, and its options as text (of a form) or as values (of JSON)."""

    pictures: list[bytes | RequestError] = field(default_factory=list)
    fields: dict[str, str] | None = None
    values: dict[str, Any] = field(default_factory=dict)


async def read_raw(request: Request, limits: Limits, room: Reservation) -> bytes:
    """The body. Raises RequestError: 408 where it takes too long, 413 where it is too large; OverloadedError without room."""
    length = request.headers.get("content-length")
    if length is not None:
        if not length.isascii() or not length.isdigit():
            raise RequestError(HTTPStatus.BAD_REQUEST, "request", "Content-Length is no number")
        _check_size(int(length), limits)
        room.up_to(int(length))
    try:
        return await asyncio.wait_for(_collected(request, limits, room), limits.body_seconds)
    except asyncio.TimeoutError:
        line = f"the body took longer than {limits.body_seconds:g} s; send it faster, or make it smaller"
        raise RequestError(HTTPStatus.REQUEST_TIMEOUT, "body", line, {"Connection": "close"}) from None


async def _collected(request: Request, limits: Limits, room: Reservation) -> bytes:
    parts: list[bytes] = []
    count = 0
    async for part in request.stream():
        count += len(part)
        _check_size(count, limits)
        room.up_to(count)
        parts.append(part)
    return b"".join(parts)


def _check_size(count: int, limits: Limits) -> None:
    if count > limits.body_bytes:
        line = f"the body has {count:,} bytes or more, expected {limits.body_bytes:,} at most; make the pictures smaller"
        raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body", line, {"Connection": "close"})


async def read_body(request: Request, limits: Limits, room: Reservation, key: str) -> Body:
    """Pictures and options of a body of any of the types. `key` is that of the pictures in JSON, "picture" or "pictures".

    Raises RequestError and OverloadedError as `read_raw` does; 400 for a damaged body, 415 for another type.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, FORM, _ANY) and not kind.startswith("image/"):
        line = f"Content-Type is {kind[:60]!r}, expected image/*, {_ANY}, {FORM} or {JSON}"
        raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "body", line)
    raw = await read_raw(request, limits, room)
    if kind == JSON:
        return _from_json(parsed(raw), key)
    if kind == FORM:
        return await _from_form(request.headers, raw)
    return Body([raw], fields=dict(request.query_params))


def parsed(raw: bytes) -> dict[str, Any]:
    """A JSON object. Raises RequestError, 400."""
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, "body", f"the body is not JSON: {str(error)[:100]}") from None
    if not isinstance(values, dict):
        raise RequestError(HTTPStatus.BAD_REQUEST, "body", "the body is JSON, but no object")
    return values


def _from_json(values: dict[str, Any], key: str) -> Body:
    if key not in values:
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, key, f"the body has no {key!r}; expected it in base64")
    given = values.pop(key)
    if key == "pictures" and not isinstance(given, list):
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, key, "pictures is no list; expected texts in base64")
    pictures: list[bytes | RequestError] = []
    for text in given if key == "pictures" else [given]:
        try:
            pictures.append(from_base64(text))
        except RequestError as error:
            pictures.append(error)
    return Body(pictures, values=values)


def from_base64(text: object) -> bytes:
    """The bytes of a picture in base64, with or without `data:…;base64,` before it. Raises RequestError, 422."""
    if not isinstance(text, str):
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", "a picture is no text; expected base64")
    head, comma, rest = text.partition(",")
    if text[:4].lower() in ("http", "file", "ftp:"):
        line = "a picture is a URL, and none are fetched; send the picture itself in base64"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", line)
    if text.startswith("data:") and not (comma and head.endswith(";base64")):
        line = "a picture is a data: URI that is not in base64; expected data:image/…;base64,…"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", line)
    try:
        return base64.b64decode(rest if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", "a picture is not in base64") from None


async def _from_form(headers: Headers, raw: bytes) -> Body:
    async def once() -> AsyncGenerator[bytes, None]:
        yield raw

    parser = _InMemory(headers, once(), max_files=1000, max_fields=_MOST_FIELDS, max_part_size=len(raw))
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = getattr(error, "message", None) or error
        raise RequestError(HTTPStatus.BAD_REQUEST, "body", f"the form cannot be read: {str(reason)[:100]}") from None
    pictures: list[bytes | RequestError] = []
    fields: dict[str, str] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in ("picture", "pictures"):
                    line = f"the form has a file {name[:60]!r}; expected its pictures as 'picture'"
                    raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", line)
                pictures.append(await value.read())
            else:
                fields[name] = value
    finally:
        await form.close()
    return Body(pictures, fields=fields)


class _InMemory(MultiPartParser):
    """Keeps files in memory, which has room for them: Starlette would write those above 1 MB to a disk."""

    spool_max_size = 1 << 62
