"""One connection: uvicorn's HTTP/1.1, with bounds for what a client may send and for how long it may take."""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sigrl_deploy.serve.problems import RequestError, response

log = logging.getLogger(__name__)

_MOST_HEAD = 64 << 10  # bytes of a request's line and headers
_QUIET = 60  # seconds from one line about too many connections to the next


class Connection(HttpToolsProtocol):
    """Closes what uvicorn would keep for ever: headers that do not come or do not end, answers that nobody reads.

    Attributes:
        header_seconds: until the headers of a request are there, from its first byte or from the connection's start on.
        reading_seconds: until a client has read an answer.
        most: connections at once.
    """

    header_seconds: float
    reading_seconds: float
    most: int
    _said = -float(_QUIET)
    _headers: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _head = 0  # bytes that came since the last part of a body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()
        if len(self.connections) > self.most:
            self._refuse_connection()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_headers()
        self._stop_reading()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Unlike uvicorn's, it leaves the timer of an idle connection alone, which any stray byte would stop.
        self._head += len(data)
        try:
            self.parser.feed_data(data)
            if self._head > _MOST_HEAD:
                raise _too_long()
        except httptools.HttpParserUpgrade as upgrade:
            self.data_received(self._head_without_upgrade() + data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            raised = error.__context__
            line = "the request is not HTTP/1.1, or is damaged"
            self._refuse(raised if isinstance(raised, RequestError) else RequestError(HTTPStatus.BAD_REQUEST, "request", line))
        except RequestError as error:
            self._refuse(error)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()
        if self._headers is None:  # a later request of the same connection
            self._expect_headers()

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > _MOST_HEAD:
            raise _too_long()
        if self.parser.get_method() == b"CONNECT":
            raise RequestError(HTTPStatus.BAD_REQUEST, "request", "this is no proxy; send requests of this service")
        if self.parser.should_upgrade():
            return  # it comes again, see data_received
        self._head = 0
        self._stop_headers()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._expect_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_reading()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # to close waits for what the client has not read yet

    def _head_without_upgrade(self) -> bytes:
        """The head of the request that came, without what asks for another protocol, which may be ignored.

        The parser ends a request with that header before its body, which it would then take for the next request.
        """
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%b: %b" % (name, value) for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _refuse(self, error: RequestError) -> None:
        """Answer a request that does not reach the application, unless another is being answered, and close."""
        if self.cycle is None or self.cycle.response_complete or (self.cycle.more_body and not self.cycle.response_started):
            answer = response(error)
            headers = [*answer.raw_headers, (b"connection", b"close")]
            lines = [b"HTTP/1.1 %d %b" % (error.status, HTTPStatus(error.status).phrase.encode())]
            lines += [b"%b: %b" % header for header in headers]
            self.transport.write(b"\r\n".join([*lines, b"", bytes(answer.body)]))
        self.transport.close()
        self._expect_reading()

    def _refuse_connection(self) -> None:
        self.transport.abort()
        kind, now = type(self), time.monotonic()
        if now - kind._said >= _QUIET:
            kind._said = now
            log.warning("closes new connections: %d are open, as many as this process may have (ulimit -n)", self.most)

    def _expect_headers(self) -> None:
        self._headers = self.loop.call_later(self.header_seconds, self.transport.abort)

    def _stop_headers(self) -> None:
        if self._headers is not None:
            self._headers.cancel()
            self._headers = None

    def _expect_reading(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(self.reading_seconds, self.transport.abort)

    def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None


def _too_long() -> RequestError:
    line = f"the address and the headers have more than {_MOST_HEAD:,} bytes; send less of them"
    return RequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers", line)
