"""Around all routes: the key, headers for browsers, the access log and the count of requests."""

from __future__ import annotations

import hmac
import json
import logging
import time
from http import HTTPStatus
from typing import TextIO

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sigrl_deploy.serve.metrics import Metrics
from sigrl_deploy.serve.problems import RequestError, response

access = logging.getLogger("sigrl_deploy.access")

_POLICY = "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"
_PAGES = ("/", "/docs")
_OPEN = (*_PAGES, "/health/live", "/health/ready", "/favicon.ico")


def log_access(to: TextIO | None) -> None:
    """Write the access log to a stream, a line of JSON for each request, or not at all."""
    access.propagate = False  # it is for programs, and stays apart from what is said to people
    access.setLevel(logging.CRITICAL if to is None else logging.INFO)
    access.handlers = [] if to is None else [logging.StreamHandler(to)]


class Guard:
    """An ASGI middleware. `api_key` None lets everybody in; the pages, which ask for the key, and the health need none."""

    def __init__(self, app: ASGIApp, metrics: Metrics, api_key: str | None) -> None:
        self._app, self._metrics, self._key = app, metrics, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if scope["path"] in _PAGES or scope["path"].startswith("/page/"):
                    headers["Cache-Control"] = "no-cache"  # files of two releases do not fit together
                headers["Content-Security-Policy"] = _POLICY
            await send(message)

        try:
            if self._let_in(scope):
                await self._app(scope, receive, send_on)
            else:
                line = "the key is missing or wrong; send the header Authorization: Bearer KEY"
                refused = RequestError(HTTPStatus.UNAUTHORIZED, "key", line, {"WWW-Authenticate": "Bearer"})
                await response(refused)(scope, receive, send_on)
        finally:
            seconds = round(time.perf_counter() - start, 4)
            route = getattr(scope.get("route"), "path", "other")  # never a client's path, of which there are too many
            self._metrics.request(scope["method"], route, status, seconds)
            if access.isEnabledFor(logging.INFO):
                client = (scope.get("client") or ("",))[0]
                entry = {
                    "client": client,
                    "method": scope["method"],
                    "path": scope["path"],
                    "status": status,
                    "seconds": seconds,
                }
                access.info(json.dumps(entry, ensure_ascii=False))

    def _let_in(self, scope: Scope) -> bool:
        path, method = scope["path"], scope["method"]
        if self._key is None or (method in ("GET", "HEAD") and (path in _OPEN or path.startswith("/page/"))):
            return True
        given = Request(scope).headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {self._key}".encode())
