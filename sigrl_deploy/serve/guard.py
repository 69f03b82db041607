"""Around all routes: who may ask, headers for browsers, errors of any kind, the access log and the count of requests."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import logging
import re
import sys
import time
from contextlib import suppress
from datetime import datetime, timezone
from http import HTTPStatus
from typing import TextIO

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sigrl_deploy.serve.errors import StoppedError
from sigrl_deploy.serve.limits import MB
from sigrl_deploy.serve.metrics import Metrics
from sigrl_deploy.serve.problems import RequestError, as_request_error, response

log = logging.getLogger(__name__)
access = logging.getLogger("sigrl_deploy.access")

_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGES = ("/", "/docs")
_OPEN = (*_PAGES, "/health/live", "/health/ready", "/favicon.ico")
_HOST = re.compile(r"(?:\[(.*)\]|([^:]*))(?::\d*)?")
_MOST_DISCARDED = 100 * MB  # bytes of a body that nobody wants
_LEAST_SECONDS = 1.0  # to discard it in


def log_access(to: TextIO | None) -> None:
    """Write the access log to a stream, a line of JSON for each request, or not at all."""
    access.propagate = False  # it is for programs, and stays apart from what is said to people
    access.setLevel(logging.CRITICAL if to is None else logging.INFO)
    access.handlers = [] if to is None else [_AccessHandler(to)]


class _AccessHandler(logging.StreamHandler[TextIO]):
    """Says once, in one line, that the log cannot be written; requests are answered all the same."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._said:
            self._said = True
            log.error("the access log cannot be written (%s), and lacks requests", sys.exc_info()[1])


class Guard:
    """An ASGI middleware.

    Args:
        app: the routes.
        metrics: counts requests, by the pattern of their route.
        body_seconds: in which a body has to come, also one that nobody reads.
        api_key: None lets everybody in. The pages, which ask for the key, and the health need none.
        local: only this machine can reach the service. Without a key, names of other machines are then refused as `Host`:
            a page of theirs may have such a name lead here, and a browser takes what is here for its own.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, body_seconds: float, api_key: str | None, *, local: bool) -> None:
        self._app, self._metrics, self._body_seconds = app, metrics, body_seconds
        self._key, self._local = api_key, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange, asked = _Exchange(scope, receive, send, self._body_seconds), dict(scope)
        try:
            await self._answer(scope, exchange)
        finally:
            route, seconds = getattr(scope.get("route"), "path", None) or _route(asked), round(exchange.seconds, 4)
            self._metrics.request(scope["method"], route, exchange.status, seconds)
            if access.isEnabledFor(logging.INFO):
                entry = {
                    "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
                    "client": (scope.get("client") or ("",))[0],
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": exchange.status,
                    "seconds": seconds,
                }
                access.info(json.dumps(entry, ensure_ascii=False))

    async def _answer(self, scope: Scope, exchange: _Exchange) -> None:
        try:
            self._check(scope)
            await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:  # by the server, which ends
            if not exchange.status:
                exchange.is_last = True
                stopped = StoppedError("the service ended before this was done; try again when it has started")
                await self._refuse(stopped, scope, exchange)
        except Exception as error:
            if exchange.status:
                raise
            await self._refuse(error, scope, exchange)

    async def _refuse(self, error: Exception, scope: Scope, exchange: _Exchange) -> None:
        problem = as_request_error(error)
        self._metrics.error(problem.code)
        await response(problem)(scope, exchange.receive, exchange.send)

    def _check(self, scope: Scope) -> None:
        """Raise RequestError for a request that may not ask."""
        path, method, headers = scope["path"], scope["method"], Headers(scope=scope)
        if self._key is None:
            host = headers.get("host", "")
            if self._local and not _is_local(host):
                line = f"Host is {host[:100]!r}, expected localhost or an address; for other names give the service a key"
                raise RequestError(HTTPStatus.MISDIRECTED_REQUEST, "host", line)
            return
        if method in ("GET", "HEAD") and (path in _OPEN or path.startswith("/page/")):
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self._key.encode()):
            line = "the key is missing or wrong; send the header Authorization: Bearer KEY"
            raise RequestError(HTTPStatus.UNAUTHORIZED, "key", line, {"WWW-Authenticate": "Bearer"})


class _Exchange:
    """A request and its answer, as they pass.

    A connection that is closed while its client still sends is reset, and the client never sees the answer. So what nobody has
    read of a body is read behind the answer, and forgotten.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, body_seconds: float) -> None:
        self._scope, self._receive, self._send, self._body_seconds = scope, receive, send, body_seconds
        self._start = time.perf_counter()
        headers = Headers(scope=scope)
        self._complete = not ("transfer-encoding" in headers or headers.get("content-length", "0") != "0")
        self._held_back = headers.get("expect", "").lower() == "100-continue" and not self._complete
        self.is_last = False  # there is no time for more
        self.status = 0  # of the answer, as soon as there is one
        self.seconds = 0.0  # until it was there

    async def receive(self) -> Message:
        self._held_back = False  # the server now asks for the body
        message = await self._receive()
        self._complete = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self._add_headers(MutableHeaders(scope=message))
        elif not message.get("more_body", False):
            self.seconds = time.perf_counter() - self._start
            if not (self._complete or self._held_back or self.is_last):
                await self._send({**message, "more_body": True})
                await self._discard()
                message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _add_headers(self, headers: MutableHeaders) -> None:
        path = self._scope["path"]
        headers["X-Content-Type-Options"] = "nosniff"
        if path in _PAGES or path.startswith("/page/"):
            headers["Cache-Control"] = "no-cache"  # files of two releases do not fit together
        headers["Content-Security-Policy"] = _POLICY
        if self._held_back:
            headers["Connection"] = "close"  # a client may send its body or not: the next bytes would mean either

    async def _discard(self) -> None:
        async def rest() -> None:
            count = 0
            while not self._complete and count < _MOST_DISCARDED:
                count += len((await self.receive()).get("body", b""))

        left = self._start + self._body_seconds - time.perf_counter()
        with suppress(asyncio.TimeoutError, asyncio.CancelledError):  # the answer has gone
            await asyncio.wait_for(rest(), max(left, _LEAST_SECONDS))


def _is_local(host: str) -> bool:
    """Whether a Host header, with or without a port, names this machine or none."""
    named = _HOST.fullmatch(host)
    name = (named[1] or named[2]) if named else host
    if name.lower() in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _route(scope: Scope) -> str:
    """The pattern of the route that a request was meant for; never a client's path, of which there are too many."""
    return next((route.path for route in scope["app"].routes if route.matches(scope)[0] != Match.NONE), "other")
