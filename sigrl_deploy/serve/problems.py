"""What goes wrong with a request, as an HTTP status, a code for programs and one line for people."""

from __future__ import annotations

import logging
import math
from http import HTTPStatus

from starlette.responses import JSONResponse

from sigrl_deploy.errors import ImageError, SigRLError, UsageError
from sigrl_deploy.serve.errors import ConflictError, OverloadedError, StoppedError, TooLateError

log = logging.getLogger(__name__)

_ANSWERS: dict[type[Exception], tuple[HTTPStatus, str]] = {
    ImageError: (HTTPStatus.UNPROCESSABLE_ENTITY, "picture"),
    ConflictError: (HTTPStatus.CONFLICT, "vocabulary"),
    TooLateError: (HTTPStatus.GATEWAY_TIMEOUT, "too-late"),
    StoppedError: (HTTPStatus.SERVICE_UNAVAILABLE, "stopped"),
    SigRLError: (HTTPStatus.INTERNAL_SERVER_ERROR, "engine"),
}


class RequestError(Exception):
    """A request that cannot be served; `code` is a word for programs, `line` one for people."""

    def __init__(self, status: int, code: str, line: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(line)
        self.status, self.code, self.line, self.headers = status, code, line, headers or {}


def as_request_error(error: Exception) -> RequestError:
    """An error of any part of the service as a status, a code and a line."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, OverloadedError):
        return RequestError(
            HTTPStatus.TOO_MANY_REQUESTS, "overloaded", str(error), {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
        )
    if isinstance(error, UsageError):
        return RequestError(HTTPStatus.UNPROCESSABLE_ENTITY, error.argument or "request", str(error))
    for kind, (status, code) in _ANSWERS.items():
        if isinstance(error, kind):
            return RequestError(status, code, str(error))
    log.error("a request failed", exc_info=error)
    return RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, "bug", "the service failed; its log has the traceback")


def plain(error: RequestError) -> dict[str, dict[str, str]]:
    return {"error": {"code": error.code, "message": error.line}}


def response(error: RequestError) -> JSONResponse:
    return JSONResponse(plain(error), error.status, error.headers)
