"""Frames of any kind to the codec and to real services: nothing ends, nothing grows, all that is bad is counted.

More of them: `make test ARGS="-m long tests/fuzz"`; a million, and the coverage-guided ones: tests/fuzz/README.md
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from ipc.codec import decode_to_client, decode_to_service, encode
from ipc.errors import MalformedMessage
from ipc.messages import IDENTITY_BYTES, MAX_MESSAGE_BYTES, Hello
from tests.end_to_end.running_server import wait_until
from tests.engine.checkpoints import write_stanford
from tests.fuzz.broken import BREAKS, Break, make_broken
from tests.fuzz.frames import World, is_malformed, make_answer, make_case, right_message
from tests.fuzz.known import Known
from tests.fuzz.services import VOCABULARY, Sender, Service, send_cases

MODULES = ("scorer_worker", "engine")
MIB = 2**20
# Bytes, of a process that has been sent 20,000 frames: by how much it may have grown after 100,000 more; and, the
# second time, after 500 of which some are large. Measured: worker 14 to 51 MiB, engine 1 to 11; large ones 0 to 4. That
# comes in steps, when work meets that is larger than any before (malloc keeps what it took); so of five times 20,000
# frames some leave a process as it was, and what is kept of each frame would show in all of them. Measured: the least
# of them at most 1.3 MiB.
MOST_GROWTH, MOST_STEADY_GROWTH = {"scorer_worker": 80 * MIB, "engine": 32 * MIB}, 2 * MIB
# And by how much more it may have at any time: two of the largest messages, one decoded while another one comes.
# Measured: one of them, and 30 MiB.
MOST_AT_ONCE = 2 * MAX_MESSAGE_BYTES
PER_BYTE, AT_ONCE = 40, 2**16  # what decoding may allocate: for each byte of the message, and besides


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stanford(tmp_path_factory.mktemp("fuzz") / "model")


@pytest.fixture(scope="module")
def known(model: Path) -> Known:
    return Known(model)


@pytest.fixture(scope="module")
def services(model: Path, known: Known) -> Iterator[dict[str, Service]]:
    """Both, started side by side; the worker has the known embeddings."""
    running = {module: Service(module, model) for module in MODULES}
    try:
        for service in running.values():
            service.wait_up()
        known.give(running["scorer_worker"].address)
        yield running
    finally:
        codes = {module: service.stop() for module, service in running.items()}
    assert set(codes.values()) == {0}, codes


def decode(parts: list[memoryview]) -> None:
    try:
        decode_to_service(parts)
    except MalformedMessage as error:
        assert str(error)


@settings(max_examples=100, derandomize=True, database=None)
@given(st.randoms(use_true_random=False))
def test_any_frames_are_a_message_or_malformed(choose: random.Random) -> None:
    decode([memoryview(part) for part in make_case(choose, World())])
    with contextlib.suppress(MalformedMessage):
        decode_to_client([memoryview(part) for part in make_answer(choose, World())])


@pytest.mark.parametrize("break_it", BREAKS)
def test_what_is_known_to_be_broken_is_malformed(break_it: Break) -> None:
    choose = random.Random(break_it.__name__)
    for _ in range(200):
        parts = make_broken(choose, World(), break_it)
        assert is_malformed(parts), parts


def test_what_is_right_is_not_malformed() -> None:
    choose = random.Random(11)
    for _ in range(2000):
        message, writer = right_message(choose, World())
        decode_to_service([memoryview(part).cast("B") for part in encode(message, writer.frames)])


def test_what_decoding_allocates_is_bounded_by_what_came() -> None:
    check_allocations(seed=1, count=500)


@pytest.mark.long
def test_what_decoding_allocates_is_bounded_by_what_came_in_many_more_cases() -> None:
    check_allocations(seed=2, count=20_000)


def check_allocations(seed: int, count: int) -> None:
    choose, world = random.Random(seed), World(is_large=True)
    tracemalloc.start()
    try:
        for _ in range(count):
            parts = [memoryview(part) for part in make_case(choose, world)]
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            decode(parts)
            allocated = tracemalloc.get_traced_memory()[1] - before
            assert allocated <= PER_BYTE * sum(map(len, parts)) + AT_ONCE, bytes(parts[0][:1000])
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("module", MODULES)
def test_every_bad_frame_is_counted_and_nothing_else_happens(
    services: dict[str, Service], known: Known, module: str
) -> None:
    check_service(services[module], known, seed=3, count=1500)


@pytest.mark.long
@pytest.mark.parametrize("module", MODULES)
def test_every_bad_frame_of_many_more_is_counted(services: dict[str, Service], known: Known, module: str) -> None:
    check_service(services[module], known, seed=4, count=100_000)


@pytest.mark.long
@pytest.mark.parametrize("module", MODULES)
def test_nothing_grows_with_frames(services: dict[str, Service], known: Known, module: str) -> None:
    """Texts cannot be encoded here: what torch keeps for each shape of a batch is no frame's."""
    service = services[module]
    check_service(service, known, 5, 20_000, World(vocabulary=0))  # what allocators keep is there now
    descriptors, grown = service.descriptors(), []
    for seed in range(20, 25):
        so_far = service.memory()
        check_service(service, known, seed, 20_000, World(vocabulary=0))
        grown.append(service.memory() - so_far)
    assert min(grown) <= MOST_STEADY_GROWTH and sum(grown) <= MOST_GROWTH[module], grown
    # afterwards: in what these leave behind a leak of small frames would find room
    check_service(service, known, 6, 500, World(vocabulary=0, is_large=True))
    so_far = service.memory()
    check_service(service, known, 8, 500, World(vocabulary=0, is_large=True))
    assert service.memory() - so_far <= MOST_GROWTH[module]
    assert service.descriptors() <= descriptors


def check_service(service: Service, known: Known, seed: int, count: int, world: World | None = None) -> None:
    before = service.memory()
    service.forget_peak()
    found = send_cases(service, world or World(vocabulary=VOCABULARY), seed, count)
    assert service.process.poll() is None, service.log
    assert found["malformed"] == found["counted"] > 0
    assert found["malformed_answers"] == [] and found["answers"] > 0
    assert service.memory("VmHWM") - before <= MOST_AT_ONCE
    nothing_is_held(service)
    known.check_embeddings(service.address)
    if service.module == "scorer_worker":
        known.check_scores(service.address)


def nothing_is_held(service: Service) -> None:
    """Clients have gone, with everything that they asked for."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with Sender(context, service.address) as sender:
        held = ("jobs", "jobs_waiting_for_room", "store_held_entries", "encode_requests_waiting", "requests_waiting")
        names = [name for name in (*held, "suspects") if name in sender.statistics()]
        assert "suspects" in names
        wait_until(lambda: not any(sender.statistics()[name] for name in names))
    context.term()


def test_ten_thousand_encodes_of_one_text_that_wait_together_are_one(
    services: dict[str, Service], known: Known
) -> None:
    """The engine is stopped until all have been sent: credits let that many out, four clients' queues hold them."""
    service, clients, each = services["engine"], 4, 2500
    found, counted = asyncio.run(known.ask_for_one_text_together(service, clients, each))
    assert len(found) == clients * each and len(set(found)) == 1
    known.check_text(found[0])
    # a client that was silent for as long as all of this took on a busy machine may have been dropped, and sent again
    assert counted["texts"] == 1 and counted["requests"] >= clients * each


@pytest.mark.parametrize("module", MODULES)
def test_clients_that_take_over_each_others_identity_disturb_nobody(services: dict[str, Service], module: str) -> None:
    """They come, say something, and go; some as somebody who is still there.

    libzmq reads no more of a connection whose route has been taken over: it keeps its descriptor (docs/security.md).
    """
    service, choose, world = services[module], random.Random(9), World(vocabulary=VOCABULARY)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    identities = [bytes([number]) * IDENTITY_BYTES for number in range(3)]
    with Sender(context, service.address) as honest:
        world.epoch = honest.ready().epoch
        some: list[Sender] = []
        for _ in range(150):
            some.append(Sender(context, service.address, choose.choice(identities)))
            some[-1].say(Hello(1))
            for _ in range(3):
                choose.choice(some).send(make_case(choose, world))
            if len(some) > 5:
                some.pop(choose.randrange(len(some))).close()
        assert honest.statistics()
        for sender in some:
            sender.close()
    context.term()
    assert service.process.poll() is None, service.log
    nothing_is_held(service)


@pytest.mark.parametrize("module", MODULES)
def test_bytes_that_are_not_even_zeromqs_disturb_nobody(services: dict[str, Service], module: str) -> None:
    service, choose = services[module], random.Random(10)
    before = service.descriptors()
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\0" + bytes(31)
    ready = b"\x04\x26\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"
    huge = b"\x02\x7f" + b"\xff" * 7  # a frame of 2^63 bytes is announced
    for number in range(200):
        raw = choose.randbytes(choose.randrange(100))
        data = (raw, greeting[: choose.randrange(64)], greeting + raw, greeting + ready + huge, greeting + ready + raw)
        with socket.socket(socket.AF_UNIX) as stranger, contextlib.suppress(BrokenPipeError, ConnectionResetError):
            stranger.connect(service.address.removeprefix("ipc://"))
            stranger.sendall(data[number % len(data)])
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with Sender(context, service.address) as honest:
        assert honest.ready().epoch
    context.term()
    wait_until(lambda: service.descriptors() <= before)


def test_random_bytes_are_malformed() -> None:
    choose = random.Random(0)
    assert all(is_malformed([choose.randbytes(choose.randrange(1, 50))]) for _ in range(200))
