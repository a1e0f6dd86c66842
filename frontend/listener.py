"""The listening socket: bound once, by the launcher."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

BACKLOG = 2048
ACCEPTS_PER_TURN = 64
PAUSE = 0.1  # seconds without accepting when this process is out of file descriptors

_log = logging.getLogger("maxsimd.launcher")


class ListenError(Exception):
    """The address cannot be listened on. The text is for a person."""


class Listener:
    """A TCP or Unix socket that is listened on from the start, and accepted from once `watch` is called.

    Raises:
        ListenError: the address is in use, not ours, or not allowed.
    """

    def __init__(self, host: str, port: int, uds: str | None, uds_mode: int = 0o600, scheme: str = "http") -> None:
        self.is_watched = False
        self._uds = uds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_connection: Callable[[socket.socket], None] | None = None
        self._socket = _listen_unix(uds, uds_mode) if uds is not None else _listen_tcp(host, port)
        self.url = self._describe(host, scheme)

    def _describe(self, host: str, scheme: str) -> str:
        if self._uds is not None:
            return f"unix:{self._uds}"
        shown = f"[{host}]" if ":" in host else host
        return f"{scheme}://{shown}:{self._socket.getsockname()[1]}"

    def watch(self, loop: asyncio.AbstractEventLoop, on_connection: Callable[[socket.socket], None]) -> None:
        """Accept from now on."""
        self._loop, self._on_connection = loop, on_connection
        self.is_watched = True
        loop.add_reader(self._socket.fileno(), self._accept)

    def accept_waiting(self, on_connection: Callable[[socket.socket], None]) -> None:
        """Accept what has connected before the listener closes."""
        for _ in range(BACKLOG):
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            on_connection(connection)

    def close(self) -> None:
        """Stop listening; a Unix socket's file goes too. Closing twice is the same as once."""
        if self._socket.fileno() < 0:
            return
        if self._loop is not None and self.is_watched:
            self._loop.remove_reader(self._socket.fileno())
        self.is_watched = False
        self._socket.close()
        if self._uds is not None:
            Path(self._uds).unlink(missing_ok=True)

    def _accept(self) -> None:
        assert self._on_connection is not None
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                self._pause(error)
                return
            self._on_connection(connection)

    def _pause(self, error: OSError) -> None:
        """Out of descriptors or memory: waiting connections stay in the backlog for a moment."""
        _log.error("cannot accept: %s; raise the limit of open files", error)
        assert self._loop is not None and self._on_connection is not None
        self._loop.remove_reader(self._socket.fileno())
        self._loop.call_later(PAUSE, self._resume)

    def _resume(self) -> None:
        if self.is_watched and self._loop is not None:
            self._loop.add_reader(self._socket.fileno(), self._accept)


def _listen_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ListenError(f"--host {host}: {error}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(_explain(host, port, error)) from None
    listener.setblocking(False)
    return listener


def _explain(host: str, port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"--port {port}: in use on {host}; choose another one, or 0 for any that is free"
        case errno.EACCES:
            return f"--port {port}: not allowed for this user; ports below 1024 need privileges"
        case errno.EADDRNOTAVAIL:
            return f"--host {host}: not an address of this machine"
        case _:
            return f"--host {host} --port {port}: {os.strerror(error.errno or 0)}"


def _listen_unix(path: str, mode: int) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o777 & ~mode)  # the file has its mode from its first moment
    try:
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = "exists, and is no socket" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0)
        raise ListenError(f"--uds {path}: {reason}") from None
    finally:
        os.umask(umask)
    listener.setblocking(False)
    return listener


def _remove_stale(path: str) -> None:
    """A socket file that nobody listens on any more is in the way after a crash; anything else is left alone."""
    if not Path(path).is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
            return
        except OSError as error:
            raise ListenError(f"--uds {path}: {os.strerror(error.errno or 0)}") from None
    raise ListenError(f"--uds {path}: somebody listens there already")
