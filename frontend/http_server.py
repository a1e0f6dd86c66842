"""uvicorn's HTTP protocol on connections that the launcher passes.

uvicorn is used for what it does best, the protocol (httptools) and its flow control; accepting, signals and processes
are the launcher's, so `uvicorn.Server` is not used.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from frontend.errors import plain_error

KEEP_ALIVE = 75  # seconds; above the 60 s that load balancers keep an idle connection
# of a request line and its headers; neither httptools nor uvicorn has a limit
MAX_HEAD_BYTES, MAX_HEADERS = 32_768, 100
HEAD_TIMEOUT = 10.0  # seconds from a head's first byte to its last
LAST_WORDS = 0.1  # seconds at a stop in which requests that are already in a socket's buffer are still read

_log = logging.getLogger("maxsimd.api_server")


class HttpServer:
    """The open connections of one API server."""

    def __init__(self, app: ASGIApp, server_header: str) -> None:
        self._config = uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            headers=[("server", server_header)],
        )
        self._config.load()
        self._state = ServerState()
        self.refresh_date()

    @property
    def num_connections(self) -> int:
        return len(self._state.connections)

    def refresh_date(self) -> None:
        """To be called once a second: the Date header."""
        date = formatdate(time.time(), usegmt=True).encode()
        self._state.default_headers = [(b"date", date), *self._config.encoded_headers]

    async def serve(self, connection: socket.socket, on_closed: Callable[[], None]) -> None:
        """Speak HTTP on an accepted connection; `on_closed` is called once, when it has ended."""
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Connection(self._config, self._state, on_closed), connection
            )
        except OSError as error:  # reset before we came to it
            _log.debug("a connection ended before it began: %s", error)
            connection.close()
            on_closed()

    async def drain(self, timeout: float) -> int:
        """Let requests finish, close connections as they become idle.

        Returns:
            How many connections were still busy after `timeout` seconds; they are closed.
        """
        await asyncio.sleep(LAST_WORDS)
        deadline = asyncio.get_running_loop().time() + timeout
        while self._state.connections and asyncio.get_running_loop().time() < deadline:
            for connection in list(self._state.connections):
                connection.shutdown()
            await asyncio.sleep(0.02)
        busy = len(self._state.connections)
        for task in list(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        return busy


class _Connection(HttpToolsProtocol):
    """One connection: uvicorn's protocol, with the limits that it lacks."""

    def __init__(self, config: uvicorn.Config, state: ServerState, on_closed: Callable[[], None]) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._on_closed = on_closed
        self._is_in_head = True
        self._num_heads = 0
        self._head_bytes = 0  # of pieces that were nothing but a part of one head
        self._parsed_bytes = 0  # of the head's whole lines
        self._num_headers = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._is_refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn's own time limit for idle connections begins with the first answer
        self._head_timer = self.loop.call_later(KEEP_ALIVE, transport.close)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        was_in_head, num_heads = self._is_in_head, self._num_heads
        if was_in_head and not self._head_bytes:
            self._start_timer()
        super().data_received(data)
        if not was_in_head or self._num_heads != num_heads:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def on_message_begin(self) -> None:
        self._parsed_bytes = self._num_headers = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._parsed_bytes += len(url)
        if self._parsed_bytes <= MAX_HEAD_BYTES:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        self._parsed_bytes += len(name) + len(value) + len(": \r\n")
        if self._is_head_fine:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._num_heads += 1
        self._stop_timer()
        if self._is_refused or not self._is_head_fine:
            self._refuse_head()
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_head = True
        if not self._is_refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is not HTTP, in the words of our other errors."""
        self._refuse(400, f"request: {msg.removesuffix('.')}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        self._on_closed()

    @property
    def _is_head_fine(self) -> bool:
        return self._num_headers <= MAX_HEADERS and self._parsed_bytes <= MAX_HEAD_BYTES

    def _refuse_head(self) -> None:
        self._refuse(431, f"headers: at most {MAX_HEADERS} of them and {MAX_HEAD_BYTES} bytes")

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT, self._on_slow_head)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _on_slow_head(self) -> None:
        self._refuse(408, f"headers: not complete within {HEAD_TIMEOUT:.0f} s")

    def _refuse(self, status: int, message: str) -> None:
        """Answer what never became a request, and close. An answer that is under way is not disturbed but cut off."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._stop_timer()
        if self.cycle is None or self.cycle.response_complete:
            content = plain_error(status, message)
            head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
            head += [name + b": " + value for name, value in self.server_state.default_headers]
            head += [b"content-type: application/json", b"content-length: %d" % len(content), b"connection: close"]
            self.transport.write(b"\r\n".join([*head, b"", content]))
        self.transport.close()
