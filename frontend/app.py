"""The ASGI application of an API server: which path leads where, and what every request passes through."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frontend.admission import Admission
from frontend.app_config import AppConfig
from frontend.auth import Authentication
from frontend.call import TIMED_STAGES, Api
from frontend.errors import RequestFailed, error_response, on_bug, on_failure, on_http_exception
from frontend.metrics import Metrics
from frontend.openapi import Documentation
from frontend.operations import OPERATIONS
from frontend.ranking import Ranker
from ipc.errors import ServiceFailed
from ipc.messages import ErrorCode

CLIENT_CLOSED = 499  # for the metrics; nobody reads it

ROUTES = [Route(path, each.handler, methods=[each.method]) for each in OPERATIONS for path in each.paths]
_PATHS = frozenset(route.path for route in ROUTES)
# Response headers that pages of other sites may read.
_FOR_OTHER_SITES = (
    "X-Request-Id",
    "Retry-After",
    "retry-after-ms",
    "metadata",
    *(f"x-maxsimd-{stage}-ms" for stage in TIMED_STAGES),
    "x-maxsimd-encoded-tokens",
)
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


def create_app(
    config: AppConfig,
    ranker: Ranker,
    admission: Admission,
    secret: bytes,
    is_draining: Callable[[], bool],
    metrics: Metrics,
) -> ASGIApp:
    """The application. Holds no state of its own; `ranker` does the work.

    From the outside in: the frame, CORS (a browser's preflight carries no key, and pages must be able to read every
    error), Starlette's last resort for bugs, the answer to who is given up, keys, routes.
    """
    app = Starlette(
        routes=ROUTES,
        middleware=[Middleware(LastAnswer), Middleware(Authentication, digests=config.api_key_digests)],
        exception_handlers={
            RequestFailed: on_failure,
            ServiceFailed: on_failure,
            ClientDisconnect: _on_disconnect,
            HTTPException: on_http_exception,
            Exception: on_bug,
        },
    )
    app.router.redirect_slashes = False
    app.state.api = Api(config, ranker, admission, secret, metrics, is_draining)
    app.state.documentation = Documentation(OPERATIONS, bool(config.api_key_digests), config.root_path)
    return RequestFrame(_with_cors(app, config.cors_allow_origins), metrics, config.root_path)


def _with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Pages of these origins may ask and read. Keys travel in a header that a page must set itself, so there are no
    credentials in CORS's sense.
    """
    if not origins:
        return app
    return CORSMiddleware(
        app, origins, allow_methods=("GET", "POST"), allow_headers=("*",), expose_headers=_FOR_OTHER_SITES
    )


class LastAnswer:
    """ASGI middleware: a request that is given up at a stop, which cancels it, is told so. uvicorn would say 500."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except asyncio.CancelledError:
            if has_begun:
                raise
            failure = ServiceFailed(ErrorCode.UNAVAILABLE, "the server stops, and has given this request up", 1000)
            response = error_response(scope, failure)
            response.headers["connection"] = "close"  # nothing that is pipelined behind it is begun
            await response(scope, receive, send)


class RequestFrame:
    """ASGI middleware around everything: the path behind --root-path, which is the only one that anything inside sees,
    keys' door and router alike; the request's id; its line in the metrics.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, root_path: str = "") -> None:
        self._app = app
        self._metrics = metrics
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        if scope["path"].startswith(f"{self._root_path}/"):
            scope["path"] = scope["path"][len(self._root_path) :]
        request_id = _request_id(scope)
        scope["maxsimd.request_id"] = request_id
        statuses: list[int] = []

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        path = scope["path"] if scope["path"] in _PATHS else "other"
        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._metrics.requests.labels(path, str(statuses[0] if statuses else 500)).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - started)


def _request_id(scope: Scope) -> str:
    """The client's own id if it is a sane one, else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"").decode("latin-1")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


async def _on_disconnect(request: Request, error: Exception) -> Response:
    """Nobody waits any more."""
    return Response(b"", CLIENT_CLOSED)
