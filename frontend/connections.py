"""How accepted connections get from the launcher to the API servers, evenly.

The launcher accepts and passes each connection (SCM_RIGHTS) to the API server that has the fewest open ones. (Measured:
8 connections over 4 servers on one shared listening socket went 8/0/0/0, passed this way 2/2/2/2.) It keeps its own
handle on a connection until the API server says that it has it, so that those given to a server that dies before are
given to another.

One SOCK_SEQPACKET pair per API server carries packets of one letter and eight bytes:

    launcher -> API server    C id + descriptor: a connection
                              D: /ready turns false
                              S: finish what runs, then exit
    API server -> launcher    A id: I have it
                              X id: it is closed
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

_PACKET = struct.Struct("<cQ")

CONNECTION, DRAIN, STOP = b"C", b"D", b"S"
TAKEN, CLOSED = b"A", b"X"


@dataclass(eq=False)
class ServerLink:
    """The launcher's end of the pair to one API server."""

    slot: int
    channel: socket.socket
    open_connections: set[int] = field(default_factory=set)
    not_taken: dict[int, socket.socket] = field(default_factory=dict)

    def give(self, connection_id: int, connection: socket.socket) -> bool:
        """Pass a connection on. False: this server cannot take one now; the connection is still the caller's."""
        packet = _PACKET.pack(CONNECTION, connection_id)
        try:
            socket.send_fds(self.channel, [packet], [connection.fileno()])
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EPIPE, errno.ECONNRESET, errno.ENOBUFS, errno.ETOOMANYREFS):
                return False
            raise
        self.open_connections.add(connection_id)
        self.not_taken[connection_id] = connection
        return True

    def tell(self, letter: bytes) -> None:
        """DRAIN or STOP. A server that has gone needs no telling."""
        try:
            self.channel.send(_PACKET.pack(letter, 0))
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):
            return

    def receive(self) -> None:
        """Take what the API server says."""
        while True:
            try:
                packet = self.channel.recv(_PACKET.size)
            except (BlockingIOError, ConnectionResetError):
                return
            if not packet:
                return
            letter, connection_id = _PACKET.unpack(packet)
            taken = self.not_taken.pop(connection_id, None)
            if taken is not None:
                taken.close()
            if letter == CLOSED:
                self.open_connections.discard(connection_id)

    def abandon(self) -> list[socket.socket]:
        """The API server has died: the connections it had not taken yet, to be given to another."""
        self.receive()
        self.channel.close()
        orphans = list(self.not_taken.values())
        self.not_taken.clear()
        self.open_connections.clear()
        return orphans


class Dispatcher:
    """Gives each connection to the API server with the fewest open ones."""

    def __init__(self) -> None:
        self._links: dict[int, ServerLink] = {}
        self._waiting: list[socket.socket] = []  # accepted while no API server could take them
        self._next_id = 0

    def add(self, link: ServerLink) -> None:
        """An API server that takes connections from now on."""
        self._links[link.slot] = link
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            self.dispatch(connection)

    def remove(self, slot: int) -> None:
        """An API server that has died; its connections that were not taken go to others."""
        link = self._links.pop(slot, None)
        if link is not None:
            for connection in link.abandon():
                self.dispatch(connection)

    def channel(self, slot: int) -> int | None:
        """The descriptor of the pair to this API server."""
        link = self._links.get(slot)
        return None if link is None else link.channel.fileno()

    def dispatch(self, connection: socket.socket) -> None:
        """Give the connection to the least busy API server, or keep it until there is one."""
        connection_id = self._next_id
        self._next_id += 1
        for link in sorted(self._links.values(), key=lambda link: (len(link.open_connections), link.slot)):
            if link.give(connection_id, connection):
                return
        self._waiting.append(connection)

    def retry_waiting(self) -> None:
        """Offer those again that nobody could take."""
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            self.dispatch(connection)

    def tell(self, letter: bytes) -> None:
        for link in self._links.values():
            link.tell(letter)

    def close(self) -> None:
        """Close the connections nobody took."""
        for connection in self._waiting:
            connection.close()
        self._waiting.clear()

    def open_connections(self) -> dict[int, int]:
        """Open connections by slot."""
        return {slot: len(link.open_connections) for slot, link in sorted(self._links.items())}


@dataclass(eq=False)
class LauncherLink:
    """The API server's end of the pair."""

    channel: socket.socket
    on_connection: Callable[[int, socket.socket], None]
    on_drain: Callable[[], None]
    on_stop: Callable[[], None]
    unsaid: deque[bytes] = field(default_factory=deque)  # the launcher was too slow to take these

    def receive(self) -> None:
        """Take what the launcher sends. The launcher having gone is noticed by the lifeline."""
        while True:
            try:
                packet, descriptors, _, _ = socket.recv_fds(self.channel, _PACKET.size, 1)
            except (BlockingIOError, ConnectionResetError):
                return
            if not packet:
                return
            letter, connection_id = _PACKET.unpack(packet)
            if letter == CONNECTION and descriptors:
                self._say(TAKEN, connection_id)
                self.on_connection(connection_id, socket.socket(fileno=descriptors[0]))
            elif letter == CONNECTION:
                self._say(CLOSED, connection_id)  # no descriptor was left for it here
            elif letter == DRAIN:
                self.on_drain()
            elif letter == STOP:
                self.on_stop()

    def closed(self, connection_id: int) -> None:
        """This connection has ended."""
        self._say(CLOSED, connection_id)

    def _say(self, letter: bytes, connection_id: int) -> None:
        self.unsaid.append(_PACKET.pack(letter, connection_id))
        self.say_what_is_left()

    def say_what_is_left(self) -> None:
        """Send what could not be sent before."""
        while self.unsaid:
            try:
                self.channel.send(self.unsaid[0])
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                return
            self.unsaid.popleft()


def make_pair() -> tuple[socket.socket, socket.socket]:
    """(launcher's end, API server's end), both non-blocking."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return ours, theirs
