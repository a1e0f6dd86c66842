"""What can go wrong with a request, and the one table that turns it into HTTP.

RequestFailed                  the request is at fault, or cannot be served now
  (code: ErrorCode, or one of those that only HTTP knows)
ipc.errors.ServiceFailed       the services could not answer; mapped by the same table
"""

from __future__ import annotations

import enum
import logging
import math

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Scope

from frontend.dialect import Dialect, dialect_of
from frontend.error_bodies import (
    CohereError,
    ErrorBody,
    JinaError,
    NextPlaidError,
    TeiError,
    VllmError,
    VllmErrorDetail,
)
from ipc.errors import ServiceFailed
from ipc.messages import ErrorCode

MAX_MESSAGE = 500  # characters: errors say what is wrong, they do not send the request back
MAX_ECHO = 200  # characters of a client's own words in a message

_log = logging.getLogger("maxsimd.api_server")


class HttpError(enum.StrEnum):
    """Failures that exist only at the surface."""

    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    BODY_TOO_LARGE = "body_too_large"
    HEADERS_TOO_LARGE = "headers_too_large"
    REQUEST_TIMEOUT = "request_timeout"


# status and vLLM's name of the type
HTTP_STATUS: dict[ErrorCode | HttpError, tuple[int, str]] = {
    ErrorCode.INVALID_REQUEST: (400, "BadRequestError"),
    HttpError.UNAUTHORIZED: (401, "AuthenticationError"),
    HttpError.NOT_FOUND: (404, "NotFoundError"),
    HttpError.METHOD_NOT_ALLOWED: (405, "MethodNotAllowedError"),
    HttpError.REQUEST_TIMEOUT: (408, "RequestTimeoutError"),
    HttpError.BODY_TOO_LARGE: (413, "BodyTooLargeError"),
    HttpError.HEADERS_TOO_LARGE: (431, "HeadersTooLargeError"),
    ErrorCode.OVERLOADED: (429, "OverloadedError"),
    ErrorCode.UNAVAILABLE: (503, "ServiceUnavailableError"),
    ErrorCode.DEADLINE_EXCEEDED: (503, "DeadlineExceededError"),
    ErrorCode.STALE_EPOCH: (503, "ServiceUnavailableError"),
    ErrorCode.WORKER_CRASHED: (500, "WorkerCrashedError"),
    ErrorCode.INTERNAL: (500, "InternalServerError"),
}
_RETRY = (429, 503)
TEI_TYPES = {400: "validation", 413: "validation", 429: "overloaded", 503: "unhealthy"}

NEXT_PLAID_CODES = {400: "BAD_REQUEST", 429: "RATE_LIMITED", 503: "SERVICE_UNAVAILABLE"}
JINA_CODES = {
    401: "AUTH_INVALID_API_KEY",
    404: "INPUT_MODEL_NOT_FOUND",
    429: "RATE_LIMIT_EXCEEDED",
    503: "SERVICE_TIMEOUT",
}


class RequestFailed(Exception):
    """A request that gets an error. `message` names the field and the rule; `param` is the field."""

    def __init__(
        self, code: ErrorCode | HttpError, message: str, param: str | None = None, retry_after_ms: int = 0
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_ms = retry_after_ms


def invalid(message: str, param: str | None = None) -> RequestFailed:
    """A 400."""
    return RequestFailed(ErrorCode.INVALID_REQUEST, message, param)


def plain_error(status: int, message: str) -> bytes:
    """The body of an error that has no path and so no dialect: vLLM's."""
    names = dict(HTTP_STATUS.values())
    detail = VllmErrorDetail(message, names.get(status, "BadRequestError"), None, status)
    return msgspec.json.encode(VllmError(detail, message, message))


def error_response(scope: Scope, error: RequestFailed | ServiceFailed) -> Response:
    """The error in the caller's dialect: Cohere's on /v2, TEI's, Jina's and next-plaid's for their bodies, else vLLM's,
    which is OpenAI's, with `detail` and `message` for clients that read those (Jina's rerankers, Cohere's v1)."""
    status, kind = HTTP_STATUS[error.code]
    message = error.message if len(error.message) <= MAX_MESSAGE else error.message[:MAX_MESSAGE] + "..."
    param = error.param if isinstance(error, RequestFailed) else None
    body: ErrorBody
    match dialect_of(scope):
        case Dialect.COHERE:
            body = CohereError(message, scope.get("maxsimd.request_id", ""))
        case Dialect.TEI:
            body = TeiError(message, TEI_TYPES.get(status, "backend"))
        case Dialect.NEXT_PLAID:
            body = NextPlaidError(NEXT_PLAID_CODES.get(status, "INTERNAL_ERROR"), message)
        case Dialect.JINA:
            code = JINA_CODES.get(status, "INPUT_INVALID" if status < 500 else "SERVICE_UNAVAILABLE")
            body = JinaError(message, code, scope.get("maxsimd.request_id", ""))
        case _:
            body = VllmError(VllmErrorDetail(message, kind, param, status), message, message)
    headers = {}
    if status in _RETRY:
        retry_after_ms = error.retry_after_ms or 1000
        headers = {"retry-after": str(math.ceil(retry_after_ms / 1000)), "retry-after-ms": str(retry_after_ms)}
    if status == 401:
        headers = {"www-authenticate": "Bearer"}
    return Response(msgspec.json.encode(body), status, headers, "application/json")


def request_id_of(request: Request) -> str:
    """The id that `frontend.app` gave this request."""
    return str(request.scope.get("maxsimd.request_id", ""))


async def on_failure(request: Request, error: Exception) -> Response:
    """Starlette's handler of RequestFailed and ServiceFailed."""
    assert isinstance(error, RequestFailed | ServiceFailed)
    return error_response(request.scope, error)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the caller's dialect."""
    assert isinstance(error, HTTPException)
    path = request.scope["path"]
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"method: {request.method[:MAX_ECHO]} is not allowed on {path[:MAX_ECHO]}, expected {allowed}"
        failure = RequestFailed(HttpError.METHOD_NOT_ALLOWED, message)
    else:
        served = [route.path for route in request.app.routes if isinstance(route, Route)]
        meant = max((each for each in served if _tidy(path).endswith(each)), key=len, default=None)
        hint = "/docs lists what is" if meant is None else f"did you mean {meant}?"
        failure = RequestFailed(HttpError.NOT_FOUND, f"path: {path[:MAX_ECHO]} is not served; {hint}")
    response = error_response(request.scope, failure)
    response.headers.update(error.headers or {})
    return response


def _tidy(path: str) -> str:
    """Without what base URLs put too much: a slash at the end, or two in a row."""
    return "/" + "/".join(filter(None, path.split("/")))


async def on_bug(request: Request, error: Exception) -> Response:
    """The last resort: no internals in the answer; the log has them.

    Starlette raises the error again afterwards, and uvicorn logs the traceback and closes the connection.
    """
    request_id = request_id_of(request)
    _log.error("request %s on %s: %r", request_id, request.scope["path"][:MAX_ECHO], error)
    failure = RequestFailed(ErrorCode.INTERNAL, "internal error; the server's log has the request id")
    return error_response(request.scope, failure)
