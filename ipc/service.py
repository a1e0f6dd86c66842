"""The service's end of the protocol: one ROUTER socket, its clients, and exactly one answer to each request.

The endpoint does what every service does the same way: it answers Hello and Stats, refuses stale epochs, joins
duplicates by (client, request id), watches clients that fall silent, grants credits, and sends without ever waiting.
Its owner gets events and gives answers.

    E1  A request is yielded at most once while it is live, and answered at most once.
    E2  A send never blocks: a client that cannot take its answer is dropped, with all its requests.
    E3  Bytes that are not a message are counted and dropped; they change nothing else.
    E4  However much comes, its owner goes on with its work: clients are read in turns, some messages at a time.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import zmq

from ipc.arrays import MAX_INT32, Buffer, FrameWriter
from ipc.busy_poll import BusyPoll
from ipc.codec import decode_to_service, encode
from ipc.errors import MalformedMessage
from ipc.messages import (
    IDENTITY_BYTES,
    PROTOCOL_VERSION,
    Cancel,
    Credits,
    Encode,
    ErrorCode,
    Failed,
    Hello,
    Limits,
    Message,
    ModelSpec,
    Ready,
    Score,
    SelfCheck,
    Statistics,
    Stats,
)
from ipc.running import RequestName
from ipc.sockets import bind_router, receive_parts, send_parts

SILENCE_LIMIT = 3.0  # seconds without a Hello; clients send one every 0.5 s
MESSAGES_AT_ONCE = 256  # taken in one go; then whoever owns the endpoint has its turn

_log = logging.getLogger("maxsimd.ipc")


@dataclass(frozen=True, slots=True)
class Description:
    """What a service says of itself in Ready."""

    dim: int
    fingerprint: bytes
    limits: Limits
    capacity: Credits  # for all clients together; each is granted its share
    device: str = "cpu"
    hosts_encoder: bool = False
    spec: ModelSpec | None = None
    tokenizer: bytes = b""
    self_check: SelfCheck | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A client wants something done. `deadline` is on this process's monotonic clock."""

    name: RequestName
    message: Score | Encode
    frames: Sequence[memoryview]
    deadline: float


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Nobody waits for this request any more."""

    name: RequestName


@dataclass(frozen=True, slots=True)
class Gone:
    """A client has gone; all its requests with it."""

    identity: bytes


Event = Request | Cancelled | Gone


@dataclass(slots=True)
class _Peer:
    last_seen: float
    session: int = field(default_factory=lambda: secrets.randbits(63))
    live: set[int] = field(default_factory=set)  # requests that have been yielded and not answered


class Endpoint:
    """One service's socket and its books of clients. Belongs to one thread.

    Args:
        busy_poll_seconds: how long `wait` looks for the next message after an answer, before it sleeps.
            See ipc.busy_poll.
    """

    def __init__(
        self,
        address: str,
        description: Description,
        statistics: Callable[[], dict[str, float]],
        clock: Callable[[], float],
        busy_poll_seconds: float = 0.0,
    ) -> None:
        self.epoch = secrets.randbits(62) + 1
        self._description = description
        self._capacity = description.capacity
        self._statistics = statistics
        self._clock = clock
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = bind_router(self._context, address)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._peers: dict[bytes, _Peer] = {}
        self._next_silence_check = clock() + SILENCE_LIMIT
        self._gone: list[bytes] = []  # dropped by a failed send; told at the next receive
        self._busy_poll = BusyPoll()
        self._busy_poll_seconds = busy_poll_seconds
        self._has_answered = False
        self.malformed_messages = 0
        self.dropped_clients = 0

    @property
    def dim(self) -> int:
        """Of the embeddings that this service makes or takes."""
        return self._description.dim

    def watch(self, descriptor: int) -> None:
        """`wait` also returns when this file descriptor becomes readable."""
        self._poller.register(descriptor, zmq.POLLIN)

    def wait(self, timeout: float) -> None:
        """Until a message, a watched descriptor, or `timeout` seconds."""
        if timeout > 0:
            has_answered, self._has_answered = self._has_answered, False
            if has_answered and self._busy_poll.wants_look():
                has_found = self._look()
                self._busy_poll.tell(has_found)
                if has_found:
                    return
        self._poller.poll(max(0, math.ceil(timeout * 1000)))

    def _look(self) -> bool:
        """Whether something has come within `busy_poll_seconds`; nobody else's time is taken for it."""
        end = time.perf_counter() + self._busy_poll_seconds
        while time.perf_counter() < end:
            if self._poller.poll(0):
                return True
            os.sched_yield()
        return False

    def receive(self) -> Iterator[Event]:
        """What has happened since the last call, without waiting; of messages some at a time (E4)."""
        for _ in range(MESSAGES_AT_ONCE):
            yield from self._take_gone()
            try:
                parts = receive_parts(self._socket)
                if parts is None:
                    break
                yield from self._handle(parts)
            except MalformedMessage as error:
                self._count_malformed(error)
        yield from self._drop_silent(self._clock())

    def answer(self, name: RequestName, message: Message, frames: Sequence[Buffer] = ()) -> None:
        """Send the one answer to a live request. An answer nobody waits for is left out."""
        identity, request_id = name
        peer = self._peers.get(identity)
        if peer is None or request_id not in peer.live:
            return
        peer.live.discard(request_id)
        self._has_answered = self._busy_poll_seconds > 0
        self._send(identity, message, frames)

    def fail(
        self, name: RequestName, code: ErrorCode, message: str, retry_after_ms: int = 0, which: int | None = None
    ) -> None:
        """Answer a live request with Failed."""
        self.answer(name, Failed(name[1], code, message, retry_after_ms, which))

    def set_tokens(self, tokens: int) -> None:
        """How many tokens all clients together may have outstanding, from now on."""
        self._capacity = Credits(self._capacity.bytes, tokens)

    def credits(self) -> Credits:
        """What each client may have outstanding: an equal share, of what a message can say (a device that encodes
        millions of tokens a second has room for more within some minutes).
        """
        clients = max(1, len(self._peers))
        shares = self._capacity.bytes // clients, self._capacity.tokens // clients
        return Credits(*[min(share, MAX_INT32) for share in shares])

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()

    def _handle(self, parts: list[memoryview]) -> Iterator[Event]:
        identity = bytes(parts[0])
        if len(identity) != IDENTITY_BYTES:
            raise MalformedMessage(f"identity: {len(identity)} bytes, expected {IDENTITY_BYTES}")
        message, frames = decode_to_service(parts[1:])
        now = self._clock()
        peer = self._peers.get(identity)
        if peer is None:
            if not isinstance(message, Hello):
                return  # dropped before; its next Hello gets a new session, under which it sends again
            peer = self._peers[identity] = _Peer(now)
        peer.last_seen = now
        match message:
            case Score() | Encode():
                yield from self._handle_request(identity, peer, message, frames)
            case Cancel(request_id):
                if request_id in peer.live:
                    peer.live.discard(request_id)
                    yield Cancelled((identity, request_id))
            case Hello():
                self._handle_hello(identity, peer, message)
            case Stats(request_id):
                self._send(identity, Statistics(request_id, self._statistics()))

    def _handle_request(
        self, identity: bytes, peer: _Peer, message: Score | Encode, frames: Sequence[memoryview]
    ) -> Iterator[Event]:
        if message.epoch != self.epoch:
            self._send(identity, Failed(message.request_id, ErrorCode.STALE_EPOCH, "another start of this service"))
            return
        if message.request_id in peer.live:
            return  # sent twice after a reconnect: the first one's answer serves
        peer.live.add(message.request_id)
        deadline = self._clock() + message.budget_ms / 1000
        yield Request((identity, message.request_id), message, frames, deadline)

    def _handle_hello(self, identity: bytes, peer: _Peer, hello: Hello) -> None:
        about = self._description
        writer = FrameWriter()
        is_known = hello.fingerprint == about.fingerprint or about.spec is None
        ready = Ready(
            protocol=PROTOCOL_VERSION,
            epoch=self.epoch,
            session=peer.session,
            fingerprint=about.fingerprint,
            dim=about.dim,
            limits=about.limits,
            credits=self.credits(),
            hosts_encoder=about.hosts_encoder,
            device=about.device,
            spec=None if is_known else about.spec,
            tokenizer=None if is_known else writer.add(about.tokenizer, "uint8", [len(about.tokenizer)]),
            self_check=about.self_check,
        )
        self._send(identity, ready, writer.frames)

    def _send(self, identity: bytes, message: Message, frames: Sequence[Buffer] = ()) -> None:
        try:
            send_parts(self._socket, [identity, *encode(message, frames)])
        except (zmq.Again, zmq.ZMQError) as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._drop(identity)

    def _drop(self, identity: bytes) -> None:
        if self._peers.pop(identity, None) is not None:
            self.dropped_clients += 1
            self._gone.append(identity)

    def _take_gone(self) -> Iterator[Gone]:
        gone, self._gone = self._gone, []
        for identity in gone:
            yield Gone(identity)

    def _drop_silent(self, now: float) -> Iterator[Gone]:
        if now < self._next_silence_check:
            return
        self._next_silence_check = now + SILENCE_LIMIT / 6
        for identity, peer in list(self._peers.items()):
            if now - peer.last_seen > SILENCE_LIMIT:
                self._drop(identity)
        yield from self._take_gone()

    def _count_malformed(self, error: MalformedMessage) -> None:
        self.malformed_messages += 1
        if self.malformed_messages & (self.malformed_messages - 1) == 0:  # 1, 2, 4, 8, ...: a flood stays readable
            _log.warning("dropped a malformed message (%d so far): %s", self.malformed_messages, error)
