"""uvicorn's HTTP protocol on connections that the launcher passes.

uvicorn is used for what it does best, the protocol (httptools) and its flow control; accepting, signals and processes
are the launcher's, so `uvicorn.Server` is not used.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from frontend.errors import plain_error

KEEP_ALIVE = 75  # seconds; above the 60 s that load balancers keep an idle connection
# of a request line and its headers; neither httptools nor uvicorn has a limit
MAX_HEAD_BYTES, MAX_HEADERS = 32_768, 100
HEAD_TIMEOUT = 10.0  # seconds from a head's first byte to its last; and for a TLS handshake
REST_TIMEOUT = 10.0  # seconds for the rest of a body whose request has been answered already
UNREAD_TIMEOUT = 30.0  # seconds in which a client must take something of an answer
FAREWELL = 600.0  # seconds in which TLS may end, what is still unsent included; who takes nothing has UNREAD_TIMEOUT
RESET = struct.pack("ii", 1, 0)  # SO_LINGER
GOODBYE = (
    1.0  # seconds at a stop in which an idle client of TLS may say goodbye too; most that keep a connection do not
)
LAST_WORDS = 0.1  # seconds at a stop in which requests that are already in a socket's buffer are still read

_log = logging.getLogger("maxsimd.api_server")


class HttpServer:
    """The open connections of one API server."""

    def __init__(self, app: ASGIApp, server_header: str, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
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
        """Speak HTTP on an accepted connection, behind a handshake if there is TLS; `on_closed` is called once, when it
        has ended.
        """
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Connection(self._config, self._state, on_closed),
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else HEAD_TIMEOUT,
                ssl_shutdown_timeout=None if self._tls is None else FAREWELL,
            )
        except OSError as error:  # reset before we came to it, or no handshake (ssl.SSLError is an OSError)
            _log.debug("a connection ended before it began: %s", error)
            connection.close()
            on_closed()

    async def drain(self, timeout: float, is_pointless: Callable[[], bool] = lambda: False) -> int:
        """Let requests finish, close connections as they become idle.

        Args:
            is_pointless: whether no request can be finished any more.

        Returns:
            How many connections were still busy after `timeout` seconds; they are closed.
        """
        await asyncio.sleep(LAST_WORDS)
        deadline = asyncio.get_running_loop().time() + timeout
        while self._state.connections and asyncio.get_running_loop().time() < deadline and not is_pointless():
            for connection in list(self._state.connections):
                connection.shutdown()
            await asyncio.sleep(0.02)
        busy = len(self._state.connections)
        for task in list(self._state.tasks):
            task.cancel()
        await asyncio.gather(*self._state.tasks, return_exceptions=True)
        return busy


class _Connection(HttpToolsProtocol):
    """One connection: uvicorn's protocol, with the limits that it lacks.

    N1  A connection on which nothing moves ends, whatever it waits for: a head (HEAD_TIMEOUT), the next request
        (KEEP_ALIVE), the rest of a body that nobody reads (REST_TIMEOUT), a client that does not take its answer
        (UNREAD_TIMEOUT). What an application waits for is the application's: it has limits of its own.
    N2  What a client sends without end is not kept: neither a head, nor what may stand between the pieces of a body.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState, on_closed: Callable[[], None]) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._on_closed = on_closed
        self._is_in_head = True
        self._num_heads = 0
        self._head_bytes = 0  # of pieces that were nothing but a part of one head
        self._parsed_bytes = 0  # of the head's whole lines
        self._num_headers = 0
        self._bare_bytes = 0  # of pieces of a body that had nothing of it: chunks' extensions, trailers
        self._has_body_moved = False
        self._timer: asyncio.TimerHandle | None = None  # of a head, or of the rest of a body
        self._unread_timer: asyncio.TimerHandle | None = None
        self._unread_bytes = 0
        self._idle_since: float | None = None  # at a stop
        self._is_refused = False
        self._offer = b""  # the request line of a head that offers an upgrade
        self._running: RequestResponseCycle | None = None  # `cycle` is the one that came last

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # uvicorn's own time limit for idle connections begins with the first answer
        self._start_timer(KEEP_ALIVE, self._close)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        was_in_head, num_heads = self._is_in_head, self._num_heads
        if was_in_head and not self._head_bytes:
            self._start_timer(HEAD_TIMEOUT, self._on_slow_head)
        self._has_body_moved = False
        self._feed(data)
        is_more_head = was_in_head and self._num_heads == num_heads
        is_bare = not was_in_head and not self._is_in_head and not self._has_body_moved
        self._head_bytes = self._head_bytes + len(data) if is_more_head else 0
        self._bare_bytes = self._bare_bytes + len(data) if is_bare else 0
        if max(self._head_bytes, self._bare_bytes) > MAX_HEAD_BYTES:
            self._refuse_head()

    def _feed(self, data: bytes) -> None:
        """As uvicorn's `data_received`, but an upgrade that is offered is not taken up.

        The parser takes what follows such a head for another protocol's, its body too. So it gets the same head again,
        without the offer. (Java's client offers HTTP/2 with every request.)
        """
        self._unset_keepalive_if_required()
        while data and not self._is_refused:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                offer, self._offer = self._offer, b""
                if not self._is_head_fine:
                    self._refuse_head()
                elif offer.startswith(b"CONNECT "):
                    self._refuse(405, "method: CONNECT is not allowed")
                fields = b"".join(b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade")
                data = b"%s%s\r\n%s" % (offer, fields, data[upgrade.args[0] :])
                # A new one: after a head with `connection: close` the old one takes nothing more, and does not say so.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
            except httptools.HttpParserError as error:
                _log.debug("not HTTP: %s", error)
                self._refuse(400, "request: Invalid HTTP request received")

    def on_message_begin(self) -> None:
        self._parsed_bytes = self._num_headers = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._parsed_bytes += len(url)
        if self._parsed_bytes <= MAX_HEAD_BYTES:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_head:
            return  # a trailer: a request is what its head says
        self._num_headers += 1
        self._parsed_bytes += len(name) + len(value) + len(": \r\n")
        if self._is_head_fine:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            line = (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
            self._offer = b"%s %s HTTP/%s\r\n" % line
            return
        self._is_in_head = False
        self._num_heads += 1
        self._stop_timer()
        if self._is_refused or not self._is_head_fine:
            self._refuse_head()
            return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_body_moved = True
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._offer:
            return
        self._is_in_head = True
        if self._is_refused:
            return
        super().on_message_complete()
        if self.cycle.response_complete:  # the rest of its body has come after all
            self._stop_timer()
            self._wait_next_request()

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_reader()
        elif is_last and not self._is_in_head:
            self._start_timer(REST_TIMEOUT, self._close)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._watch_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_watching()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_watching()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True  # uvicorn tells only the request that came last
            self._running.message_event.set()
        self._running = None
        self.pipeline.clear()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._on_closed()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        self._running = cycle
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def shutdown(self) -> None:
        """To be called again and again at a stop: closes as soon as nothing runs, and waits for no client's goodbye."""
        if not self.transport.is_closing():  # asyncio's TLS knows nothing any more once it is told twice
            super().shutdown()
        if not self.transport.is_closing() or self.transport.get_write_buffer_size():
            return
        if self._idle_since is None:
            self._idle_since = self.loop.time()
        elif self.loop.time() - self._idle_since > GOODBYE:
            self.transport.abort()

    @property
    def _is_head_fine(self) -> bool:
        return self._num_headers <= MAX_HEADERS and self._parsed_bytes <= MAX_HEAD_BYTES

    def _refuse_head(self) -> None:
        self._refuse(431, f"headers: at most {MAX_HEADERS} of them and {MAX_HEAD_BYTES} bytes")

    def _start_timer(self, seconds: float, on_time: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, on_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait_next_request(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(KEEP_ALIVE, self.timeout_keep_alive_handler)

    def _watch_reader(self) -> None:
        """Until everything written has been taken, or the connection has ended."""
        self._stop_watching()
        self._unread_bytes = self.transport.get_write_buffer_size()
        self._unread_timer = self.loop.call_later(UNREAD_TIMEOUT, self._on_slow_reader)

    def _stop_watching(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _on_slow_reader(self) -> None:
        if self.transport.get_write_buffer_size() < self._unread_bytes:
            self._watch_reader()
        else:
            # with a reset: else the kernel would go on offering what it still holds
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.transport.abort()

    def _on_slow_head(self) -> None:
        self._refuse(408, f"headers: not complete within {HEAD_TIMEOUT:.0f} s")

    def _refuse(self, status: int, message: str) -> None:
        """Answer what never became a request, or became one that breaks off, and close.

        An answer that is under way is not disturbed but cut off.
        """
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._stop_timer()
        running = self._running
        is_broken_off = running is self.cycle and running is not None and not running.response_started
        if self.cycle is None or self.cycle.response_complete or is_broken_off:
            content = plain_error(status, message)
            head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
            head += [name + b": " + value for name, value in self.server_state.default_headers]
            head += [b"content-type: application/json", b"content-length: %d" % len(content), b"connection: close"]
            self.transport.write(b"\r\n".join([*head, b"", content]))
        if is_broken_off and running is not None:
            running.disconnected = True
            running.message_event.set()
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self._watch_reader()
