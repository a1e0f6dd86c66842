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

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

KEEP_ALIVE = 75  # seconds; above the 60 s that load balancers keep an idle connection
MAX_HEAD_BYTES = 65_536  # of a request line and its headers; neither httptools nor uvicorn has a limit
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
    """One connection, and who wants to know when it ends."""

    def __init__(self, config: uvicorn.Config, state: ServerState, on_closed: Callable[[], None]) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._on_closed = on_closed
        self._is_in_head = True
        self._num_heads = 0
        self._head_bytes = 0  # of pieces that were nothing but a part of one head

    def data_received(self, data: bytes) -> None:
        was_in_head, num_heads = self._is_in_head, self._num_heads
        super().data_received(data)
        if not was_in_head or self._num_heads != num_heads:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"headers: more than {MAX_HEAD_BYTES} bytes")

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._num_heads += 1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._is_in_head = True
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._on_closed()
