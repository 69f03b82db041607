"""The HTTP server: its socket, how many connections it takes, signals, and an end that loses no answer."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from sigrl_deploy.errors import UsageError
from sigrl_deploy.serve.connection import Connection
from sigrl_deploy.serve.limits import Limits

if sys.platform != "win32":
    import resource

log = logging.getLogger(__name__)

_KEEP_ALIVE = 75  # seconds that an idle connection stays open: longer than nginx keeps it, which then never finds it closed
_AFTER_DEATH = 5  # seconds that requests have left where the engine has died
_BACKLOG = 2048
_CONNECTIONS = 4096
_OTHER_FILES = 64  # that the process has open besides its connections


class Server(uvicorn.Server):
    """Ends on SIGTERM, SIGINT and SIGHUP, after all requests that it had taken are answered; on a second SIGINT at once."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        connections, backlog = _room()
        bounds = {"header_seconds": limits.header_seconds, "reading_seconds": limits.body_seconds, "most": connections}
        config = uvicorn.Config(
            app,
            http=type("BoundedConnection", (Connection,), bounds),
            ws="none",
            loop="asyncio",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=backlog,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(limits.answer_seconds + limits.body_seconds),
        )
        super().__init__(config)

    def end_soon(self) -> None:
        """End although not all that was taken will be answered. May be called from any thread."""
        self.config.timeout_graceful_shutdown = _AFTER_DEATH
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets. Raises UsageError where another process has come first."""
        assert sockets
        address = sockets[0].getsockname()
        with _address_errors(address[0], address[1]):
            await super().startup(sockets)
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        log.info("listening on http://%s:%d", host, address[1])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Without uvicorn's raising them again at the end, which would make the exit status that of a killed process."""
        # SIGHUP comes where a terminal is closed; Windows has none.
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that has an address and does not listen yet. Raises UsageError where that address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only with its protocol named does asyncio send small answers at once, without waiting for the client's acknowledgement.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with _address_errors(host, port):
            opened.bind((host, port))
        yield opened


@contextlib.contextmanager
def _address_errors(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) in (errno.EADDRINUSE, errno.EACCES):
            problem = f"cannot be had ({reason}); choose another one, or 0 for any that is free"
            raise UsageError(problem, argument="port", value=port) from None
        problem = f"cannot be listened on ({reason}); expected a name or an address of this machine"
        raise UsageError(problem, argument="host", value=host) from None


def is_loopback(opened: socket.socket) -> bool:
    """Whether only this machine reaches a socket."""
    address = str(opened.getsockname()[0])
    return address == "::1" or address.startswith("127.")


def _room() -> tuple[int, int]:
    """How many connections there may be at once, and how many may come at once, within the files that the process may open.

    Raises the soft limit of those, where it has to. Where files run out, asyncio would log thousands of tracebacks.
    """
    if sys.platform == "win32":
        return _CONNECTIONS, _BACKLOG
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _CONNECTIONS + _BACKLOG + _OTHER_FILES
    unlimited = resource.RLIM_INFINITY
    if soft != unlimited and soft < wanted:
        soft = wanted if hard == unlimited else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    files = wanted if soft == unlimited else min(wanted, soft)
    backlog = max(1, min(_BACKLOG, (files - _OTHER_FILES) // 3))
    return max(1, files - _OTHER_FILES - backlog), backlog
