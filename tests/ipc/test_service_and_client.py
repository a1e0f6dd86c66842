"""Endpoint and client over real sockets: one answer each, whatever dies, stalls or sends garbage in between."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import secrets
import subprocess
import sys
import threading
import time
import weakref
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ipc.arrays import FrameWriter
from ipc.client import ServiceClient
from ipc.codec import decode_to_client, encode
from ipc.errors import ModelChanged, ServiceFailed
from ipc.messages import (
    IDENTITY_BYTES,
    KEY_BYTES,
    Cancel,
    Credits,
    ErrorCode,
    Hello,
    Limits,
    Message,
    Ready,
    Score,
    Scores,
    Statistics,
    Stats,
)
from ipc.service import MESSAGES_AT_ONCE, Cancelled, Description, Endpoint, Event, Gone, Request
from ipc.sockets import bind_router, connect_dealer, make_run_directory, remove_run_directory

Handler = Callable[[Endpoint, Event], None]
CLIENT = b"someone!"
IDENTITY = b"i" * IDENTITY_BYTES
LIMIT = 10.0  # seconds that anything here may take


AMPLE = Credits(bytes=2**20, tokens=1000)


def describe(capacity: Credits = AMPLE) -> Description:
    return Description(dim=4, fingerprint=b"f" * 16, limits=Limits(1000, 2**20, 100), capacity=capacity)


def answer_with_key_sum(endpoint: Endpoint, event: Event) -> None:
    """The score of each document is the sum of its key's bytes: any mix-up shows."""
    if not isinstance(event, Request):
        return
    assert isinstance(event.message, Score)
    keys = bytes(event.frames[event.message.keys.frame - 1])
    documents = range(event.message.num_queries, event.message.num_queries + event.message.num_documents)
    scores = array("f", (float(sum(keys[i * KEY_BYTES : (i + 1) * KEY_BYTES])) for i in documents))
    writer = FrameWriter()
    texts = len(keys) // KEY_BYTES
    message = Scores(
        event.name[1],
        writer.add(scores, "float32", [len(scores)]),
        writer.add_ints([1] * texts),
        writer.add_ints([1] * texts),
        endpoint.credits(),
    )
    endpoint.answer(event.name, message, writer.frames)


class RunningService:
    """A real endpoint in a thread of its own, with a handler for its events."""

    def __init__(self, address: str, handler: Handler, description: Description | None = None) -> None:
        self.events: list[Event] = []
        self._stopping = threading.Event()
        self._started = threading.Event()
        self._handler = handler
        self._address = address
        self._description = description or describe()
        self._thread = threading.Thread(target=self._run, daemon=True)  # a test that fails must not keep it
        self._thread.start()
        assert self._started.wait(LIMIT)

    def _run(self) -> None:
        endpoint = Endpoint(
            self._address, self._description, lambda: {"events": len(self.events)}, time.monotonic, 0.0004
        )
        self.endpoint = endpoint
        self._started.set()
        while not self._stopping.is_set():
            endpoint.wait(0.02)
            for event in endpoint.receive():
                self.events.append(event)
                self._handler(endpoint, event)
        endpoint.close()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()


@pytest.fixture
def directory() -> Iterator[Path]:
    path = make_run_directory()
    yield path
    remove_run_directory(path)


@pytest.fixture
def address(directory: Path) -> str:
    return f"ipc://{directory}/service.sock"


@contextlib.asynccontextmanager
async def client_of(address: str) -> AsyncIterator[ServiceClient]:
    client = ServiceClient("worker", address)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


def ask(documents: list[bytes], payload: int = 0) -> tuple[Score, FrameWriter]:
    writer = FrameWriter()
    keys = writer.add_keys([b"q" * KEY_BYTES, *documents])
    if payload:
        writer.frames.append(bytes(payload))
    return Score(0, 0, CLIENT, 0, 1, len(documents), keys), writer


async def scores_of(
    client: ServiceClient, documents: list[bytes], timeout: float = LIMIT, fingerprint: bytes | None = None
) -> list[float]:
    message, writer = ask(documents)
    async with asyncio.timeout(timeout + LIMIT):
        deadline = asyncio.get_running_loop().time() + timeout
        answer, frames = await client.request(message, writer.frames, deadline, fingerprint=fingerprint)
    assert isinstance(answer, Scores)
    return list(frames[answer.scores.frame - 1].cast("f"))


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


def test_many_requests_of_several_clients_each_get_their_own_answer(address: str) -> None:
    service = RunningService(address, answer_with_key_sum)

    async def one_client() -> None:
        async with client_of(address) as client:
            documents = [[secrets.token_bytes(KEY_BYTES) for _ in range(n % 7 + 1)] for n in range(100)]
            answers = await asyncio.gather(*(scores_of(client, some) for some in documents))
            assert answers == [[float(sum(key)) for key in some] for some in documents]

    async def main() -> None:
        await asyncio.gather(*(one_client() for _ in range(3)))

    asyncio.run(main())
    service.stop()


def test_requests_in_flight_survive_the_death_of_the_service(address: str) -> None:
    """P6: the first service takes the requests and never answers; its successor, of another epoch, gets them again."""
    silent = RunningService(address, lambda endpoint, event: None)

    async def main() -> RunningService:
        async with client_of(address) as client:
            documents = [[bytes([n]) * KEY_BYTES] for n in range(20)]
            tasks = [asyncio.create_task(scores_of(client, some)) for some in documents]
            await eventually(lambda: sum(isinstance(event, Request) for event in silent.events) == 20)
            await asyncio.get_running_loop().run_in_executor(None, silent.stop)
            successor = RunningService(address, answer_with_key_sum)
            assert await asyncio.gather(*tasks) == [[float(n * KEY_BYTES)] for n in range(20)]
            assert client.replays == 20
        return successor

    asyncio.run(main()).stop()


def test_cancelled_request_is_cancelled_at_the_service(address: str) -> None:
    service = RunningService(address, lambda endpoint, event: None)

    async def main() -> None:
        async with client_of(address) as client:
            task = asyncio.create_task(scores_of(client, [b"d" * KEY_BYTES]))
            await eventually(lambda: any(isinstance(event, Request) for event in service.events))
            task.cancel()
            await eventually(lambda: any(isinstance(event, Cancelled) for event in service.events))

    asyncio.run(main())
    request, cancelled = (event for event in service.events if isinstance(event, Request | Cancelled))
    assert isinstance(request, Request) and isinstance(cancelled, Cancelled)
    assert request.name == cancelled.name
    service.stop()


def test_deadline_ends_a_request_and_cancels_it(address: str) -> None:
    service = RunningService(address, lambda endpoint, event: None)

    async def main() -> None:
        async with client_of(address) as client:
            await client.wait_ready(LIMIT)
            with pytest.raises(ServiceFailed) as failed:
                await scores_of(client, [b"d" * KEY_BYTES], timeout=0.1)
            assert failed.value.code is ErrorCode.DEADLINE_EXCEEDED
            await eventually(lambda: any(isinstance(event, Cancelled) for event in service.events))

    asyncio.run(main())
    service.stop()


def test_failed_request_is_gone_without_the_collector(address: str) -> None:
    """Its future holds the failure, whose traceback holds the frames of whoever waited, with all of their data."""
    service = RunningService(address, lambda endpoint, event: None)

    async def run() -> list[weakref.ref[array[int]]]:
        left = []
        async with client_of(address) as client:
            await client.wait_ready(LIMIT)
            for _ in range(3):
                message, writer = ask([b"d" * KEY_BYTES])
                keys = array("B", writer.frames[0])
                left.append(weakref.ref(keys))
                with pytest.raises(ServiceFailed):
                    await client.request(message, [keys], asyncio.get_running_loop().time() + 0.01)
        return left

    gc.disable()
    try:
        assert [left() for left in asyncio.run(run())[:-1]] == [None, None]
    finally:
        gc.enable()
        service.stop()


def test_no_service_is_unavailable_at_the_deadline(address: str) -> None:
    async def main() -> None:
        async with client_of(address) as client:
            with pytest.raises(ServiceFailed) as failed:
                await scores_of(client, [b"d" * KEY_BYTES], timeout=0.1)
            assert failed.value.code is ErrorCode.UNAVAILABLE
            assert not client.is_ready

    asyncio.run(main())


def test_who_waits_when_the_client_is_closed_is_told_so(address: str) -> None:
    """C1."""
    service = RunningService(address, lambda endpoint, event: None)

    async def main() -> None:
        async with client_of(address) as client:
            task = asyncio.create_task(scores_of(client, [b"d" * KEY_BYTES], timeout=10 * LIMIT))
            await eventually(lambda: any(isinstance(event, Request) for event in service.events))
        async with asyncio.timeout(LIMIT):
            with pytest.raises(ServiceFailed) as failed:
                await task
        assert failed.value.code is ErrorCode.UNAVAILABLE

    asyncio.run(main())
    service.stop()


def test_a_second_answer_harms_nobody(address: str) -> None:
    """C1: it is there before whoever waits for the first has had its turn."""
    have_come = threading.Event()

    def answer_twice(endpoint: Endpoint, event: Event) -> None:
        answer_with_key_sum(endpoint, event)
        if isinstance(event, Request):
            endpoint._peers[event.name[0]].live.add(event.name[1])
            answer_with_key_sum(endpoint, event)
            have_come.set()

    service = RunningService(address, answer_twice)

    async def main() -> None:
        problems: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        async with client_of(address) as client:
            await client.wait_ready(LIMIT)
            for number in (1, 2):
                task = asyncio.create_task(scores_of(client, [bytes([number]) * KEY_BYTES]))
                await asyncio.sleep(0)
                assert have_come.wait(LIMIT)  # nothing else runs here meanwhile
                have_come.clear()
                assert await task == [16.0 * number]
        assert not problems

    asyncio.run(main())
    service.stop()


def test_a_client_that_was_dropped_sends_again_what_it_has_no_answer_to(address: str) -> None:
    """C1: the service has forgotten its requests, and tells it so by another session."""
    has_dropped = False

    def drop_at_first(endpoint: Endpoint, event: Event) -> None:
        nonlocal has_dropped
        if has_dropped:
            answer_with_key_sum(endpoint, event)
        elif isinstance(event, Request):
            endpoint._drop(event.name[0])
            has_dropped = True

    service = RunningService(address, drop_at_first)

    async def main() -> None:
        async with client_of(address) as client:
            assert await scores_of(client, [b"\1" * KEY_BYTES]) == [16.0]
            assert client.replays == 1
            assert (client._used_bytes, client._used_tokens) == (0, 0), "C3: what is sent again counts once"

    asyncio.run(main())
    service.stop()


def test_what_was_sent_to_the_service_of_before_is_sent_again(address: str) -> None:
    """C1: it comes to the successor before its first Ready comes here; that one says STALE_EPOCH."""
    service = RunningService(address, answer_with_key_sum)

    async def main() -> None:
        async with client_of(address) as client:
            await client.wait_ready(LIMIT)
            service.endpoint.epoch += 1
            assert await scores_of(client, [b"\1" * KEY_BYTES]) == [16.0]
            assert client.replays == 1

    asyncio.run(main())
    service.stop()


def test_a_request_for_one_model_is_not_sent_to_a_service_of_another_one(address: str) -> None:
    """C4: not at first, and not again to the successor of whom it was sent to."""
    silent = RunningService(address, lambda endpoint, event: None)

    async def main() -> RunningService:
        async with client_of(address) as client:
            service = await client.wait_ready(LIMIT)
            mine, other = service.ready.fingerprint, b"o" * 16
            with pytest.raises(ModelChanged):
                await scores_of(client, [b"\1" * KEY_BYTES], fingerprint=other)
            task = asyncio.create_task(scores_of(client, [b"\1" * KEY_BYTES], fingerprint=mine))
            of_any = asyncio.create_task(scores_of(client, [b"\2" * KEY_BYTES]))
            await eventually(lambda: sum(isinstance(event, Request) for event in silent.events) == 2)
            await asyncio.get_running_loop().run_in_executor(None, silent.stop)
            successor = RunningService(address, answer_with_key_sum, replace(describe(), fingerprint=other))
            with pytest.raises(ModelChanged):
                await task
            assert await of_any == [32.0]
            assert not client._outstanding
        return successor

    successor = asyncio.run(main())
    successor.stop()
    assert len([event for event in successor.events if isinstance(event, Request)]) == 1


def test_nothing_is_left_of_what_has_ended(address: str) -> None:
    """C2: answered, overdue, cancelled, or never sent."""
    service = RunningService(address, lambda endpoint, event: None, describe(Credits(bytes=1000, tokens=10)))

    async def main() -> None:
        async with client_of(address) as client:
            await client.wait_ready(LIMIT)
            assert await client.statistics(LIMIT) == {"events": 0.0}
            for _ in range(2):
                with pytest.raises(ServiceFailed):
                    await scores_of(client, [b"d" * KEY_BYTES], timeout=0.05)
                task = asyncio.create_task(scores_of(client, [b"d" * KEY_BYTES]))
                await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(service.stop)
            with pytest.raises(ServiceFailed):
                await client.statistics(0.05)
            with pytest.raises(ServiceFailed):
                await scores_of(client, [b"d" * KEY_BYTES], timeout=0.05)
            assert not client._outstanding and not client._statistics
            assert (client._used_bytes, client._used_tokens) == (0, 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    "capacity",
    [
        pytest.param(Credits(bytes=2**20, tokens=29), id="tokens"),
        pytest.param(Credits(bytes=3 * 2 * KEY_BYTES - 1, tokens=1000), id="bytes"),
    ],
)
def test_credits_bound_what_is_outstanding(address: str, capacity: Credits) -> None:
    """There are enough for two requests; those beyond wait at the client, and go when others are answered."""
    endpoint = Endpoint(address, describe(capacity), dict, time.monotonic)
    held: list[Event] = []
    most = 0

    async def serve_until(done: asyncio.Future[Any]) -> None:
        while not done.done():
            held.extend(endpoint.receive())
            await asyncio.sleep(0)

    async def main() -> None:
        nonlocal most
        async with client_of(address) as client:
            await serve_until(asyncio.create_task(client.wait_ready(LIMIT)))
            deadline = asyncio.get_running_loop().time() + LIMIT
            asked = [ask([b"d" * KEY_BYTES]) for _ in range(10)]
            requests = [client.request(message, writer.frames, deadline, tokens=10) for message, writer in asked]
            answered = asyncio.gather(*requests)
            while not answered.done():
                # what was sent before it is there when it is answered
                await serve_until(asyncio.create_task(client.statistics(LIMIT)))
                most = max(most, len(held))
                for event in held:
                    answer_with_key_sum(endpoint, event)
                held.clear()
            await answered

    asyncio.run(main())
    endpoint.close()
    assert most == 2


def test_capacity_beyond_what_a_message_can_say_is_granted_as_far_as_it_can(address: str) -> None:
    """A device that encodes five million tokens a second, requests that may take ten minutes, and one API server."""
    service = RunningService(address, answer_with_key_sum, describe(Credits(bytes=2**40, tokens=2**40)))

    async def main() -> None:
        async with client_of(address) as client:
            assert await scores_of(client, [b"d" * KEY_BYTES]) == [1600.0]

    asyncio.run(main())
    assert service.endpoint.credits() == Credits(2**31 - 1, 2**31 - 1)
    service.stop()


def test_request_above_all_credits_goes_alone(address: str) -> None:
    service = RunningService(address, answer_with_key_sum, describe(Credits(bytes=1, tokens=1)))

    async def main() -> None:
        async with client_of(address) as client:
            assert await asyncio.gather(*(scores_of(client, [bytes([n]) * KEY_BYTES]) for n in (1, 2))) == [
                [16.0],
                [32.0],
            ]

    asyncio.run(main())
    service.stop()


def test_client_that_falls_silent_is_dropped_with_its_requests(directory: Path, address: str) -> None:
    """Its jobs must not go on costing: SILENCE_LIMIT after its last Hello the owner hears of it."""
    now = [0.0]
    endpoint = Endpoint(address, describe(), dict, lambda: now[0])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = connect_dealer(context, address, b"i" * IDENTITY_BYTES)
    socket.send_multipart(encode(Hello(1)))
    assert socket.poll(int(LIMIT * 1000), zmq.POLLOUT)
    endpoint.wait(LIMIT)
    assert list(endpoint.receive()) == []
    now[0] = 2.0
    assert list(endpoint.receive()) == []
    now[0] = 10.0
    assert list(endpoint.receive()) == [Gone(b"i" * IDENTITY_BYTES)]
    socket.close(0)
    context.term()
    endpoint.close()


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_garbage_on_the_real_socket_does_not_stop_the_service(seed: int) -> None:
    """P9: random frames, cut and flipped messages, then an honest client is served as ever."""
    path = make_run_directory()
    address = f"ipc://{path}/service.sock"
    service = RunningService(address, answer_with_key_sum)
    choose = random.Random(seed)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    attacker = connect_dealer(context, address, choose.randbytes(IDENTITY_BYTES))
    attacker.send_multipart(encode(Hello(1)))
    for _ in range(200):
        message, writer = ask([choose.randbytes(KEY_BYTES)])
        parts = [bytearray(part) for part in encode(message, writer.frames)]
        victim = choose.choice(parts)
        victim[choose.randrange(len(victim))] ^= choose.randrange(1, 256)
        if choose.random() < 0.5:
            parts = [bytearray(choose.randbytes(choose.randrange(200))) for _ in range(choose.randrange(1, 6))]
        attacker.send_multipart(parts)

    async def main() -> None:
        async with client_of(address) as client:
            assert await scores_of(client, [b"\1" * KEY_BYTES]) == [16.0]
            await eventually(lambda: service.endpoint.malformed_messages > 0)

    try:
        asyncio.run(main())
    finally:
        attacker.close(0)
        context.term()
        service.stop()
        remove_run_directory(path)


@contextlib.contextmanager
def endpoint_and_socket(address: str) -> Iterator[tuple[Endpoint, zmq.Socket[bytes]]]:
    """An endpoint that has its turns when a test says so, and the socket of a client that has said Hello."""
    endpoint = Endpoint(address, describe(), dict, time.monotonic)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = connect_dealer(context, address, IDENTITY)
    socket.send_multipart(encode(Hello(1)))
    try:
        yield endpoint, socket
    finally:
        socket.close(0)
        context.term()
        endpoint.close()


def turns_until(
    endpoint: Endpoint, socket: zmq.Socket[bytes], kind: type[Message]
) -> tuple[list[Event], list[Message]]:
    """What happened at the endpoint, and what the client got, up to a message of a kind."""
    events: list[Event] = []
    messages: list[Message] = []
    end = time.monotonic() + LIMIT
    while not any(isinstance(message, kind) for message in messages):
        assert time.monotonic() < end
        events += endpoint.receive()
        while socket.poll(1):
            messages.append(decode_to_client([memoryview(part) for part in socket.recv_multipart()])[0])
    return events, messages


def send_request(endpoint: Endpoint, socket: zmq.Socket[bytes], number: int) -> None:
    message, writer = ask([b"d" * KEY_BYTES])
    mine = msgspec.structs.replace(message, epoch=endpoint.epoch, request_id=number)
    socket.send_multipart(encode(mine, writer.frames))


def test_a_request_that_comes_twice_is_yielded_once_and_answered_once(address: str) -> None:
    """E1: a client that was reconnected sends again what it has no answer to."""
    with endpoint_and_socket(address) as (endpoint, socket):
        turns_until(endpoint, socket, Ready)
        for number in (7, 7, 8):
            send_request(endpoint, socket, number)
        socket.send_multipart(encode(Stats(1)))
        events, _ = turns_until(endpoint, socket, Statistics)
        assert [event.name for event in events if isinstance(event, Request)] == [(IDENTITY, 7), (IDENTITY, 8)]
        for event in (events[0], events[0], events[1]):
            answer_with_key_sum(endpoint, event)
        endpoint.fail((IDENTITY, 7), ErrorCode.INTERNAL, "once more")
        socket.send_multipart(encode(Stats(2)))
        _, messages = turns_until(endpoint, socket, Statistics)
        assert [message.request_id for message in messages if isinstance(message, Scores)] == [7, 8]
        assert len(messages) == 3


def test_a_cancelled_request_is_not_answered(address: str) -> None:
    """E1."""
    with endpoint_and_socket(address) as (endpoint, socket):
        turns_until(endpoint, socket, Ready)
        send_request(endpoint, socket, 7)
        for _ in range(2):
            socket.send_multipart(encode(Cancel(7)))
        socket.send_multipart(encode(Stats(1)))
        (request, cancelled), _ = turns_until(endpoint, socket, Statistics)
        assert cancelled == Cancelled((IDENTITY, 7))
        answer_with_key_sum(endpoint, request)
        socket.send_multipart(encode(Stats(2)))
        assert len(turns_until(endpoint, socket, Statistics)[1]) == 1


def test_a_client_that_takes_no_answers_is_dropped_and_nobody_waits_for_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E2: its queue and the kernel's are full at some time, and its requests end then."""
    monkeypatch.setattr("ipc.sockets.HIGH_WATER_MARK", 4)
    with endpoint_and_socket(address) as (endpoint, socket):
        turns_until(endpoint, socket, Ready)
        events: list[Event] = []
        for number in range(1000):
            send_request(endpoint, socket, number)
            endpoint.wait(LIMIT)
            events += endpoint.receive()
            large = Statistics(number, {"x" * 100_000: 0.0})
            endpoint.answer((IDENTITY, number), large)
            if endpoint.dropped_clients:
                break
        assert endpoint.dropped_clients == 1
        assert not any(isinstance(event, Gone) for event in events)
        send_request(endpoint, socket, 5000)  # in vain: it has to say Hello first
        endpoint.wait(LIMIT)
        assert list(endpoint.receive()) == [Gone(IDENTITY)]


def test_a_client_that_has_gone_is_dropped_when_it_is_answered(address: str) -> None:
    """E2."""
    with endpoint_and_socket(address) as (endpoint, socket):
        turns_until(endpoint, socket, Ready)
        send_request(endpoint, socket, 7)
        endpoint.wait(LIMIT)
        (request,) = endpoint.receive()
        socket.close(0)
        end = time.monotonic() + LIMIT
        while not endpoint.dropped_clients:  # the system may take a moment to tell us
            assert time.monotonic() < end
            endpoint._peers[IDENTITY].live.add(7)
            answer_with_key_sum(endpoint, request)
        assert list(endpoint.receive()) == [Gone(IDENTITY)]


def test_a_client_that_never_stops_leaves_the_service_its_turns(address: str) -> None:
    """E4: another message for each one that is taken, and yet `receive` comes to its end."""
    endpoint = Endpoint(address, describe(), dict, time.monotonic)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = connect_dealer(context, address, b"i" * IDENTITY_BYTES)
    poller = zmq.Poller()
    poller.register(endpoint._socket, zmq.POLLIN)
    socket.send_multipart(encode(Hello(1)))
    for number in range(2):
        message, writer = ask([b"d" * KEY_BYTES])
        first = msgspec.structs.replace(message, epoch=endpoint.epoch, request_id=number)
        socket.send_multipart(encode(first, writer.frames))
    taken = 0
    while not taken:  # the first turn may find the Hello alone
        assert poller.poll(int(LIMIT * 1000))
        for event in endpoint.receive():
            assert isinstance(event, Request)
            taken += 1
            assert taken <= MESSAGES_AT_ONCE
            next_one = msgspec.structs.replace(event.message, request_id=event.name[1] + 2)
            socket.send_multipart(encode(next_one, writer.frames))
            assert poller.poll(int(LIMIT * 1000))
    socket.close(0)
    context.term()
    endpoint.close()


def test_short_identity_is_refused(address: str) -> None:
    service = RunningService(address, answer_with_key_sum)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = connect_dealer(context, address, b"short")
    socket.send(b"anything")

    async def main() -> None:
        await eventually(lambda: service.endpoint.malformed_messages == 1)

    asyncio.run(main())
    socket.close(0)
    context.term()
    service.stop()


def test_run_directory_is_private_and_network_addresses_are_refused(directory: Path) -> None:
    assert directory.stat().st_mode & 0o777 == 0o700
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    for wrong in ("tcp://0.0.0.0:5555", "tcp://127.0.0.1:5555", "ipc://relative", "ipc://@abstract"):
        with pytest.raises(ValueError, match="expected ipc://"):
            bind_router(context, wrong)
    context.term()


CONNECT = """
import os, socket, sys
path, uid = sys.argv[1], int(sys.argv[2])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
for attempt in (lambda: socket.socket(socket.AF_UNIX).connect(path), lambda: os.listdir(os.path.dirname(path))):
    try:
        attempt()
        print("yes")
    except PermissionError:
        print("no")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_stranger_on_the_same_machine_can_neither_connect_nor_look(directory: Path, address: str) -> None:
    endpoint = Endpoint(address, describe(), dict, time.monotonic)
    path = address.removeprefix("ipc://")

    def ask_as(uid: int) -> list[str]:
        command = [sys.executable, "-I", "-c", CONNECT, path, str(uid)]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    try:
        assert ask_as(0) == ["yes", "yes"]
        assert ask_as(65_534) == ["no", "no"]
    finally:
        endpoint.close()
