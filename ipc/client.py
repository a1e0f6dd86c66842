"""An API server's end of the protocol: one DEALER socket to one service, and a future for each request.

A plain socket with `loop.add_reader`, not zmq.asyncio (144 against 205 us p50 measured, and zmq.asyncio queues without
bound). A request stays here until it is answered: a new epoch or session of the service (it was restarted, or it
dropped us) sends it again, with what is left of its budget, until its deadline. Giving up, for whatever reason, sends
Cancel.

    C1  Every request ends in exactly one way: an answer, ServiceFailed, or the caller's own cancellation.
    C2  No entry outlives its request.
    C3  What is outstanding stays within the granted credits; a request larger than all of them goes alone.
    C4  A request for one model is never done by a service that has another one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import zmq

from ipc.arrays import Buffer
from ipc.codec import decode_to_client, encode
from ipc.errors import MalformedMessage, ModelChanged, ServiceFailed
from ipc.messages import (
    IDENTITY_BYTES,
    PROTOCOL_VERSION,
    Cancel,
    Credits,
    Encode,
    Encoded,
    ErrorCode,
    Failed,
    Hello,
    Message,
    Missing,
    ModelSpec,
    Ready,
    Score,
    Scores,
    Statistics,
    Stats,
)
from ipc.sockets import connect_dealer, receive_parts, send_parts

HELLO_INTERVAL = 0.5  # seconds
SEARCH_INTERVAL = 0.05  # seconds between Hellos while the service does not answer
POLLIN = int(zmq.POLLIN)
SILENCE_LIMIT = 3.0  # seconds without a Ready after which the service counts as away

_log = logging.getLogger("maxsimd.ipc")

Answer = Scores | Missing | Encoded
Frames = Sequence[memoryview]


@dataclass(frozen=True, slots=True)
class Service:
    """What the client knows of the service: its last Ready, and the model it announced."""

    ready: Ready
    spec: ModelSpec | None
    tokenizer: bytes


@dataclass(slots=True, eq=False)
class _Outstanding:
    """One request: what to send (again), and who waits for it."""

    message: Score | Encode
    frames: Sequence[Buffer]
    deadline: float  # loop time
    cost: Credits
    fingerprint: bytes | None  # the only model that it is for
    future: asyncio.Future[tuple[Answer, Frames]]
    is_sent: bool = False
    holds_credits: bool = False


class ServiceClient:
    """One connection to one service. Belongs to one event loop.

    Args:
        name: "worker" or "engine", for messages to people.
        on_change: called with the new Service when its model (fingerprint) is another than before.
    """

    def __init__(self, name: str, address: str, on_change: Callable[[Service], None] | None = None) -> None:
        self.name = name
        self.replays = 0
        self._address = address
        self._on_change = on_change
        self._service: Service | None = None
        self._last_ready = 0.0
        self._outstanding: dict[int, _Outstanding] = {}
        self._unsent: deque[int] = deque()  # in order of arrival; waiting for credits, or for the service
        self._used_bytes = 0
        self._used_tokens = 0
        self._statistics: dict[int, asyncio.Future[dict[str, float]]] = {}
        self._next_request_id = secrets.randbits(62)
        self._ready_event = asyncio.Event()

    async def start(self) -> None:
        """Connect and begin to say Hello. Returns at once; `wait_ready` waits."""
        self._loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = connect_dealer(self._context, self._address, secrets.token_bytes(IDENTITY_BYTES))
        self._descriptor = int(self._socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._descriptor, self._turn)
        self._hello_task = asyncio.create_task(self._say_hello(), name=f"hello to {self.name}")

    async def close(self) -> None:
        """Stop. Whoever still waits gets ServiceFailed(UNAVAILABLE)."""
        self._hello_task.cancel()
        await asyncio.gather(self._hello_task, return_exceptions=True)
        self._loop.remove_reader(self._descriptor)
        for entry in list(self._outstanding.values()):
            _fail(entry.future, ServiceFailed(ErrorCode.UNAVAILABLE, "the server is stopping"))
        self._socket.close(0)
        self._context.term()

    @property
    def service(self) -> Service | None:
        """The service as last seen; None before its first Ready."""
        return self._service

    @property
    def is_ready(self) -> bool:
        """Whether the service has answered lately."""
        return self._service is not None and self._loop.time() - self._last_ready < SILENCE_LIMIT

    async def wait_ready(self, timeout: float) -> Service:
        """The service, once it has answered.

        Raises:
            ServiceFailed: UNAVAILABLE, after `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._ready_event.wait()
        except TimeoutError:
            raise ServiceFailed(ErrorCode.UNAVAILABLE, f"the {self.name} is not ready", 1000) from None
        assert self._service is not None
        return self._service

    async def request(
        self,
        message: Score | Encode,
        frames: Sequence[Buffer],
        deadline: float,
        tokens: int = 0,
        fingerprint: bytes | None = None,
    ) -> tuple[Answer, Frames]:
        """Send a request and wait for its answer.

        Epoch, request id and budget are filled in here, again at each replay.

        Args:
            frames: raw buffers of the message. Not written to until this returns.
            deadline: in loop time.
            tokens: estimate of what the request costs, for the credits.
            fingerprint: of the model that the request is for (C4); None: whichever there is.

        Raises:
            ServiceFailed: the service's Failed, or DEADLINE_EXCEEDED / UNAVAILABLE at the deadline.
            ModelChanged: the service has another model.
        """
        request_id = self._next_request_id
        self._next_request_id = (request_id + 1) % 2**63
        cost = Credits(bytes=sum(memoryview(frame).nbytes for frame in frames), tokens=tokens)
        entry = _Outstanding(message, frames, deadline, cost, fingerprint, self._loop.create_future())
        self._outstanding[request_id] = entry
        self._unsent.append(request_id)
        timer = self._loop.call_at(deadline, self._expire, entry)
        try:
            self._send_what_fits()
            return await entry.future
        finally:
            timer.cancel()
            self._forget(request_id, entry)
            del timer, entry  # its future holds the failure, whose traceback holds this frame

    async def statistics(self, timeout: float) -> dict[str, float]:
        """The service's counters.

        Raises:
            ServiceFailed: UNAVAILABLE, after `timeout` seconds.
        """
        request_id = self._next_request_id
        self._next_request_id = (request_id + 1) % 2**63
        future: asyncio.Future[dict[str, float]] = self._loop.create_future()
        self._statistics[request_id] = future
        try:
            self._try_send(Stats(request_id))
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise ServiceFailed(ErrorCode.UNAVAILABLE, f"the {self.name} does not answer", 1000) from None
        finally:
            del self._statistics[request_id]

    async def _say_hello(self) -> None:
        while True:
            service = self._service
            if service is None:
                hello = Hello(protocol=PROTOCOL_VERSION)
            else:
                hello = Hello(PROTOCOL_VERSION, service.ready.epoch, service.ready.fingerprint)
            self._try_send(hello)
            self._send_what_fits()
            is_answering = service is not None and self._loop.time() - self._last_ready < 2 * HELLO_INTERVAL
            await asyncio.sleep(HELLO_INTERVAL if is_answering else SEARCH_INTERVAL)

    def _turn(self) -> None:
        """Take everything that has come. The descriptor is edge-triggered: stop only when there is nothing left."""
        while True:
            try:
                parts = receive_parts(self._socket)
                if parts is None:
                    return
                message, frames = decode_to_client(parts)
            except MalformedMessage as error:
                _log.error("the %s sent a malformed message: %s", self.name, error)
                continue
            self._handle(message, frames)

    def _handle(self, message: Message, frames: Frames) -> None:
        match message:
            case Ready():
                self._handle_ready(message, frames)
            case Statistics(request_id, values):
                waiter = self._statistics.get(request_id)
                if waiter is not None and not waiter.done():
                    waiter.set_result(values)
            case Failed(request_id, code, text, retry_after_ms, which):
                entry = self._outstanding.get(request_id)
                if entry is None:
                    return
                if code is ErrorCode.STALE_EPOCH:
                    return  # the Ready that follows our next Hello sends it again
                _fail(entry.future, ServiceFailed(code, text, retry_after_ms, which))
            case Scores() | Missing() | Encoded():
                self._update_credits(message.credits)
                entry = self._outstanding.get(message.request_id)
                if entry is not None and not entry.future.done():
                    entry.future.set_result((message, frames))

    def _handle_ready(self, ready: Ready, frames: Frames) -> None:
        if ready.protocol != PROTOCOL_VERSION:
            _log.error("the %s speaks protocol %d, not %d", self.name, ready.protocol, PROTOCOL_VERSION)
            return
        before = self._service
        self._last_ready = self._loop.time()
        if before is None or before.ready.fingerprint != ready.fingerprint:
            tokenizer = bytes(frames[ready.tokenizer.frame - 1]) if ready.tokenizer else b""
            self._service = Service(msgspec.structs.replace(ready, spec=None, tokenizer=None), ready.spec, tokenizer)
            if self._on_change is not None:
                self._on_change(self._service)
        else:
            plain = msgspec.structs.replace(ready, spec=None, tokenizer=None)
            self._service = Service(plain, before.spec, before.tokenizer)
        self._ready_event.set()
        if before is not None and (before.ready.epoch, before.ready.session) != (ready.epoch, ready.session):
            self._send_all_again()
        self._send_what_fits()

    def _update_credits(self, credits: Credits) -> None:
        service = self._service
        if service is not None and service.ready.credits != credits:
            ready = msgspec.structs.replace(service.ready, credits=credits)
            self._service = Service(ready, service.spec, service.tokenizer)

    def _send_all_again(self) -> None:
        """The service is another one, or has forgotten us: nothing that we sent before will be answered."""
        self.replays += sum(entry.is_sent for entry in self._outstanding.values())
        for entry in self._outstanding.values():
            entry.is_sent = False
            self._return_credits(entry)
        self._unsent = deque(self._outstanding)

    def _send_what_fits(self) -> None:
        """Send in order of arrival while the service is there and the credits last."""
        if self._service is None:
            return
        while self._unsent:
            request_id = self._unsent[0]
            entry = self._outstanding.get(request_id)
            if entry is None or entry.is_sent or entry.future.done():
                self._unsent.popleft()
                continue
            if entry.fingerprint not in (None, self._service.ready.fingerprint):
                self._unsent.popleft()
                _fail(entry.future, ModelChanged())
                continue
            if not self._has_credits(entry.cost):
                return
            budget_ms = int((entry.deadline - self._loop.time()) * 1000)
            message = msgspec.structs.replace(
                entry.message, epoch=self._service.ready.epoch, request_id=request_id, budget_ms=max(0, budget_ms)
            )
            if not self._try_send(message, entry.frames):
                return
            self._unsent.popleft()
            entry.is_sent = True
            self._take_credits(entry)

    def _try_send(self, message: Message, frames: Sequence[Buffer] = ()) -> bool:
        """Whether the message is on its way. False: the service is not there; nothing was sent."""
        try:
            send_parts(self._socket, encode(message, frames))
        except zmq.Again:
            return False
        if int(self._socket.getsockopt(zmq.EVENTS)) & POLLIN:  # a send may have swallowed the edge
            self._loop.call_soon(self._turn)
        return True

    def _expire(self, entry: _Outstanding) -> None:
        if entry.is_sent and self.is_ready:
            error = ServiceFailed(ErrorCode.DEADLINE_EXCEEDED, "not done within the request's time", 1000)
        else:
            error = ServiceFailed(ErrorCode.UNAVAILABLE, f"the {self.name} could not take the request in time", 1000)
        _fail(entry.future, error)

    def _forget(self, request_id: int, entry: _Outstanding) -> None:
        del self._outstanding[request_id]
        self._return_credits(entry)
        is_answered = entry.future.done() and not entry.future.cancelled() and entry.future.exception() is None
        if entry.is_sent and not is_answered and not self._socket.closed:
            self._try_send(Cancel(request_id))
        self._send_what_fits()

    def _has_credits(self, cost: Credits) -> bool:
        assert self._service is not None
        if not self._used_bytes and not self._used_tokens:
            return True
        granted = self._service.ready.credits
        return self._used_bytes + cost.bytes <= granted.bytes and self._used_tokens + cost.tokens <= granted.tokens

    def _take_credits(self, entry: _Outstanding) -> None:
        entry.holds_credits = True
        self._used_bytes += entry.cost.bytes
        self._used_tokens += entry.cost.tokens

    def _return_credits(self, entry: _Outstanding) -> None:
        if entry.holds_credits:
            entry.holds_credits = False
            self._used_bytes -= entry.cost.bytes
            self._used_tokens -= entry.cost.tokens


def _fail(future: asyncio.Future[tuple[Answer, Frames]], error: ServiceFailed) -> None:
    if not future.done():
        future.set_exception(error)
