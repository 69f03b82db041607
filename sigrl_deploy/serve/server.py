"""The HTTP server: uvicorn with time limits for slow clients, an end that loses no answer, and an exit status that says why."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sigrl_deploy.serve.limits import Limits

log = logging.getLogger(__name__)

_KEEP_ALIVE = 30  # seconds that an idle connection stays open
_BACKLOG = 2048


class _PatientProtocol(HttpToolsProtocol):
    """Closes connections whose headers do not come in time; uvicorn would wait for ever."""

    header_seconds = 5.0
    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._waiting is None:  # a later request of the same connection
            self._expect_headers()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        super().on_headers_complete()

    def _expect_headers(self) -> None:
        self._waiting = self.loop.call_later(self.header_seconds, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class Server(uvicorn.Server):
    """Ends with exit status 0 on SIGTERM and SIGINT, after all requests that it had taken are answered."""

    def __init__(self, app: object, host: str, port: int, limits: Limits) -> None:
        protocol = type("Protocol", (_PatientProtocol,), {"header_seconds": limits.header_seconds})
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            host=host,
            port=port,
            http=protocol,
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=int(limits.answer_seconds + limits.body_seconds),
        )
        super().__init__(config)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without uvicorn's raising them again at the end, which would make the exit status that of a killed process."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _log_started_message(self, listeners: object) -> None:
        address = self.servers[0].sockets[0].getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        log.info("listening on http://%s:%d", host, address[1])
