"""Reading the body of a request: admitted before it is read, bounded in size and time, kept in memory."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from sigrl_deploy.serve.errors import OverloadedError
from sigrl_deploy.serve.limits import Limits
from sigrl_deploy.serve.options import TagOptions, in_words
from sigrl_deploy.serve.problems import RequestError
from sigrl_deploy.structs import problem_of

JSON, FORM = "application/json", "multipart/form-data"
_ANY = "application/octet-stream"
MOST_OPTIONS = 1_000_000  # bytes of JSON besides pictures
_MOST_FIELDS = 16  # of a form, besides its pictures


def _parts(key: str) -> type[msgspec.Struct]:
    """A JSON body whose values stay JSON until it is known how much they are."""
    fields = [(name, msgspec.Raw, msgspec.Raw()) for name in (key, *TagOptions.__struct_fields__)]
    return msgspec.defstruct("Parts", fields, forbid_unknown_fields=True)


_PARTS = {key: _parts(key) for key in ("picture", "pictures")}


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
            reservation.give_back()


@dataclass
class Reservation:
    """The bytes of one request."""

    admission: Admission
    bytes: int = 0

    def up_to(self, count: int) -> None:
        """Have room for so many bytes in all. Raises OverloadedError where there is none, and gives back what there was.

        At once, and not only at the end of the request: else many that come at the same time could refuse each other.
        """
        try:
            self.check(count)
        except OverloadedError:
            self.give_back()
            raise
        more = max(0, count - self.bytes)
        self.admission.bytes += more
        self.bytes += more

    def give_back(self) -> None:
        self.admission.bytes -= self.bytes
        self.bytes = 0

    def check(self, count: int) -> None:
        """Raise OverloadedError where there is no room now for so many bytes in all."""
        if self.admission.bytes + max(0, count - self.bytes) > self.admission.most:
            raise OverloadedError("the bodies of other requests take all memory that is set aside for them")


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
        room.check(int(length))  # and takes it as the bytes come: many may be announced and never sent
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
        raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body", line)


async def read_body(request: Request, limits: Limits, room: Reservation, key: str) -> Body:
    """Pictures and options of a body of any of the types. `key` is that of the pictures in JSON, "picture" or "pictures".

    Raises RequestError and OverloadedError as `read_raw` does; 400 for a damaged body, 415 for another type, 422 for options
    beside a body that has its own, for more pictures than `limits.pictures`, and for what is said twice.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, FORM, _ANY) and not kind.startswith("image/"):
        line = f"Content-Type is {kind[:60]!r}, expected image/*, {_ANY}, {FORM} or {JSON}"
        raise RequestError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "body", line)
    asked = request.query_params.multi_items()
    if asked and kind in (JSON, FORM):
        line = f"{asked[0][0][:60]!r} stands in the address; with a body of {kind} put options into the body"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "options", line)
    raw = await read_raw(request, limits, room)
    if kind == JSON:
        return _from_json(raw, key, limits)
    if kind == FORM:
        return await _from_form(request.headers, raw)
    return Body([raw], fields=_once(asked))


def decoded(raw: bytes | msgspec.Raw, kind: Any, code: str = "options") -> Any:
    """JSON as a type of msgspec's. Raises RequestError: 400 for what is not JSON, 422 for another type or an unknown field."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, code, in_words(problem_of(error))) from None
    except (ValueError, RecursionError) as error:  # damaged, or nested too deeply
        raise RequestError(HTTPStatus.BAD_REQUEST, "body", f"the body is not JSON: {str(error)[:100]}") from None


def plain_object(raw: bytes | msgspec.Raw) -> Any:
    """JSON of options as dicts, lists, texts and numbers. Raises RequestError as `decoded` does, and 413 for very much."""
    size = len(memoryview(raw))
    if size > MOST_OPTIONS:  # as objects it takes many times its size
        line = f"labels and options have {size:,} bytes of JSON, expected {MOST_OPTIONS:,} at most; send fewer labels"
        raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "options", line)
    return decoded(raw, Any)


def _from_json(raw: bytes, key: str, limits: Limits) -> Body:
    parts = decoded(raw, _PARTS[key])
    given = {name: part for name in parts.__struct_fields__ if len(memoryview(part := getattr(parts, name)))}
    if key not in given:
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, key, f"the body has no {key!r}; expected it in base64")
    found = decoded(given.pop(key), str if key == "picture" else list[str], key)
    texts = [found] if key == "picture" else found
    check_count(len(texts), limits)
    pictures: list[bytes | RequestError] = []
    for text in texts:
        try:
            pictures.append(from_base64(text))
        except RequestError as error:
            pictures.append(error)
    return Body(pictures, values={name: plain_object(part) for name, part in given.items()})


def check_count(pictures: int, limits: Limits) -> None:
    """Raise RequestError for a request without pictures, and for one with more than `limits` allow."""
    most = min(limits.pictures, limits.queue)
    if not 1 <= pictures <= most:
        line = f"{pictures:,} pictures, expected 1 to {most}"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "pictures", line)


def from_base64(text: str) -> bytes:
    """The bytes of a picture in base64, with or without `data:…;base64,` before it. Raises RequestError, 422."""
    head, comma, rest = text.partition(",")
    if text[:4].lower() in ("http", "file", "ftp:"):
        line = "a picture is a URL, and none are fetched; send the picture itself in base64"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", line)
    if text.startswith("data:") and not (comma and head.endswith(";base64")):
        line = "a picture is a data: URI that is not in base64; expected data:image/…;base64,…"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", line)
    try:
        # Many programs break it into lines.
        return base64.b64decode("".join((rest if text.startswith("data:") else text).split()), validate=True)
    except (binascii.Error, ValueError):
        line = "a picture is not in base64; expected the standard alphabet, A to Z, a to z, 0 to 9, + and /"
        raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", line) from None


async def _from_form(headers: Headers, raw: bytes) -> Body:
    async def once() -> AsyncGenerator[bytes, None]:
        yield raw

    parser = _InMemory(headers, once(), max_files=1000, max_fields=_MOST_FIELDS, max_part_size=MOST_OPTIONS)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        reason = getattr(error, "message", None) or error
        raise RequestError(HTTPStatus.BAD_REQUEST, "body", f"the form cannot be read: {str(reason)[:100]}") from None
    pictures: list[bytes | RequestError] = []
    fields: list[tuple[str, str]] = []
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in ("picture", "pictures"):
                    line = f"the form has a file {name[:60]!r}; expected its pictures as 'picture'"
                    raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, "picture", line)
                pictures.append(await value.read())
            else:
                fields.append((name, value))
    finally:
        await form.close()
    return Body(pictures, fields=_once(fields))


def _once(fields: list[tuple[str, str]]) -> dict[str, str]:
    """Options by name. Raises RequestError where one is given twice."""
    found: dict[str, str] = {}
    for name, value in fields:
        if name in found:
            advice = '; labels are one JSON list, such as ["cat", "dog"]' if name == "labels" else "; leave out one of the two"
            raise RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, name[:60], f"{name[:60]!r} is given twice{advice}")
        found[name] = value
    return found


class _InMemory(MultiPartParser):
    """Keeps files in memory, which has room for them: Starlette would write those above 1 MB to a disk."""

    spool_max_size = 1 << 62
