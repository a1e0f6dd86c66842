"""Raw sockets against a real server: no 500, no hang, no growth, no traceback, whatever is sent, however it is left.

The same cases each time. More of them, and those that wait for a time limit: `make test ARGS="-m long tests/fuzz"`.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable, Iterator

import pytest

from frontend.config import DEFAULT_BATCH_TOKENS
from tests.end_to_end.conftest import start  # fixture
from tests.end_to_end.running_server import Server, wait_until
from tests.fuzz.http_client import (
    Held,
    as_request,
    ask_on,
    come_and_go,
    connect,
    descriptors,
    growth,
    held_by,
    run_cases,
    wrong_lines,
)
from tests.fuzz.services import KEEP_NO_SHAPES
from tests.fuzz.slow_clients import REQUEST_TIMEOUT, run_all
from tests.fuzz.stopped import ask_in_vain, miss_together, room_for_connections

__all__ = ["start"]

QUERY, DOCUMENTS = "which animal sleeps", ["a cat sleeps outside", "", "the dog"]
BATCH_TOKENS = DEFAULT_BATCH_TOKENS["cpu"]
MIB = 2**20
STILL = 25  # looks in a row
FILLING = 1600  # texts: more than the store holds, and the engine's memory of what it encoded last
# Bytes by which a process may have grown, when the store is full, and so every row of it written once. Measured, over
# 10,000 clients that come and go: launcher 0.1 MiB, API servers 0.6, worker 0.5; over 16,000 cases as much. An engine's
# batches are of all sizes, and malloc keeps more for them at first: 13 MiB in the first 400 clients, 50 in 9,000 (13 of
# them after 3,000), then nothing.
MOST_GROWTH = {"launcher": 2 * MIB, "frontend.api_server": 4 * MIB, "scorer_worker": 4 * MIB, "engine": 32 * MIB}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Two API servers. Each has answered: what is opened for the first request, as files of metrics, is open. The store
    is full, for `MOST_GROWTH`.
    """
    running = Server("--api-server-count", "2", "--embedding-cache-size", "16MiB", environment=KEEP_NO_SHAPES)

    async def ask_both() -> None:
        request = as_request({"query": QUERY, "documents": DOCUMENTS})
        await asyncio.gather(*(ask_on(running.port, request, times=2) for _ in range(4)))

    try:
        asyncio.run(ask_both())
        for start in range(0, FILLING, 200):
            running.scores(QUERY, [f"a document to fill the store, {start + number}" for number in range(200)])
        assert running.metric("maxsimd_worker_store_evictions") > 0
        yield running
    finally:
        running.end()


HELD = ("worker_jobs", "worker_store_held_entries", "worker_suspects", "engine_requests_waiting", "engine_suspects")


def check(server: Server, seed: int, count: int) -> None:
    expected = server.scores(QUERY, DOCUMENTS)
    outcome = asyncio.run(run_cases(server.port, seed, count))
    assert outcome.problems == []
    assert {200, 400} <= outcome.statuses.keys(), outcome
    assert outcome.statuses[429] < max(3, outcome.statuses[200] / 100), outcome
    assert server.scores(QUERY, DOCUMENTS) == pytest.approx(expected, abs=1e-3)
    assert wrong_lines(server) == []


def settled(server: Server) -> dict[str, Held]:
    """What the processes hold once every client has gone, and nothing is done for one."""
    wait_until(lambda: not any(server.metric(f"maxsimd_{name}") for name in HELD))
    before: list[dict[str, int]] = []

    def is_still() -> bool:
        before.append(descriptors(held_by(server)))
        return len(before) > STILL and all(each == before[-1] for each in before[-STILL:])

    wait_until(is_still)
    return held_by(server)


def test_whatever_is_sent_is_answered_as_documented_or_closed(server: Server) -> None:
    check(server, seed=1, count=60)
    before = settled(server)
    check(server, seed=2, count=300)
    wait_until(lambda: descriptors(held_by(server)) == descriptors(before))


@pytest.mark.long
def test_whatever_is_sent_again_and_again_leaves_nothing(server: Server) -> None:
    check(server, seed=3, count=2000)
    before = settled(server)
    for seed in range(4, 8):
        check(server, seed, count=4000)
    leaves_nothing(server, before)


def test_clients_that_come_and_go_leave_nothing(server: Server) -> None:
    asyncio.run(come_and_go(server.port, seed=1, count=50))
    before = settled(server)
    asyncio.run(come_and_go(server.port, seed=2, count=400))
    leaves_nothing(server, before)


@pytest.mark.long
def test_ten_thousand_clients_that_come_and_go_leave_nothing(server: Server) -> None:
    asyncio.run(come_and_go(server.port, seed=3, count=3000))
    before = settled(server)
    asyncio.run(come_and_go(server.port, seed=4, count=10_000))
    leaves_nothing(server, before)


@pytest.mark.long
def test_every_slow_client_ends_within_its_limit(start: Callable[..., Server]) -> None:
    """Heads, bodies and answers that do not come or are not taken; all of them at once, six times over."""
    slow = start("--api-server-count", "1", "--request-timeout", str(REQUEST_TIMEOUT))
    slow.scores(QUERY, DOCUMENTS)
    before = settled(slow)

    assert asyncio.run(run_all(slow.port, times=6)) == []
    wait_until(lambda: descriptors(held_by(slow)) == descriptors(before))
    assert wrong_lines(slow) == []


def leaves_nothing(server: Server, before: dict[str, Held]) -> None:
    wait_until(lambda: descriptors(held_by(server)) == descriptors(before))
    after = settled(server)
    assert descriptors(after) == descriptors(before)
    for name, grown in growth(before, after).items():
        assert grown <= MOST_GROWTH[name.split()[0]], (name, grown / MIB)
    assert wrong_lines(server) == []


def test_a_flood_of_connections_keeps_nobody_from_an_answer(server: Server) -> None:
    flood(server, connections=500)


@pytest.mark.long
def test_a_flood_of_thousands_of_connections_keeps_nobody_from_an_answer(server: Server) -> None:
    flood(server, connections=4000)


def flood(server: Server, connections: int) -> None:
    """They are opened all at once and say nothing, or half a head. The second flood finds the room that the first has
    made: in an API server 3 to 7 KiB for each connection, which malloc keeps.
    """

    async def open_all() -> list[socket.socket]:
        loop = asyncio.get_running_loop()
        opened = await asyncio.gather(*(connect(server.port) for _ in range(connections)))
        for connection in opened[::2]:
            await loop.sock_sendall(connection, b"GET /live HTTP/1.1\r\nhost: x\r\n")
        return opened

    def come_and_leave() -> None:
        opened = asyncio.run(open_all())
        assert len(server.scores(QUERY, DOCUMENTS)) == len(DOCUMENTS)
        for connection in opened:
            connection.close()

    come_and_leave()
    before = settled(server)
    come_and_leave()
    leaves_nothing(server, before)


def test_api_servers_without_free_descriptors_serve_again_when_there_are_some(server: Server) -> None:
    """Connections for which there is none are closed, or wait in the launcher."""
    before = settled(server)
    pids = server.children("frontend.api_server")
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_NOFILE) for pid in pids}
    for pid, held in zip(pids, (each for name, each in before.items() if "api_server" in name), strict=True):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (held.descriptors + 20, limits[pid][1]))

    async def open_too_many() -> list[socket.socket]:
        return await asyncio.gather(*(connect(server.port) for _ in range(120)))

    try:
        for connection in asyncio.run(open_too_many()):
            connection.close()
        wait_until(server.is_ready)
    finally:
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limit)
    leaves_nothing(server, before)
    assert len(server.scores(QUERY, DOCUMENTS)) == len(DOCUMENTS)


def test_what_nobody_waits_for_is_not_encoded(server: Server) -> None:
    """Forty clients with work for many seconds, who hang up when the first of it has reached the engine."""
    clients, documents, words = 40, 8, 200
    before = server.metric("maxsimd_engine_tokens")

    async def ask_and_leave() -> None:
        connections = [await connect(server.port) for _ in range(clients)]
        for number, connection in enumerate(connections):
            texts = [f"{number} {place} " + "word " * words for place in range(documents)]
            await asyncio.get_running_loop().sock_sendall(connection, as_request({"query": "q", "documents": texts}))
        # the others wait in the API servers, for room in the engine
        await asyncio.to_thread(wait_until, lambda: server.metric("maxsimd_engine_requests_waiting") >= 3)
        for connection in connections:
            connection.close()

    asyncio.run(ask_and_leave())
    settled(server)
    assert server.metric("maxsimd_engine_tokens") - before < clients * documents * words / 2
    assert server.metric("maxsimd_engine_cancelled") > 0


def test_what_was_given_up_while_the_engine_was_stopped_is_not_encoded(server: Server) -> None:
    """By clients that have hung up, and by deadlines that have passed: of no work is more done than a batch or two.

    What lies in the engine's socket when it goes on may be read a part at a time, and a batch begin with the first.
    """
    documents, words, each = 8, 100, 12
    bodies = [
        {
            "query": f"query {number}",
            "documents": [f"{number} {place} " + "word " * words for place in range(documents)],
        }
        for number in range(2 * each)
    ]
    names = ("tokens", "answered", "cancelled", "expired")
    before = {name: server.metric(f"maxsimd_engine_{name}") for name in names}
    overdue = [as_request(body | {"timeout_ms": 700}) for body in bodies[each:]]
    statuses = asyncio.run(ask_in_vain(server, "engine", [as_request(body) for body in bodies[:each]], overdue))
    assert statuses == {503}
    settled(server)
    grown = {name: server.metric(f"maxsimd_engine_{name}") - before[name] for name in names}
    assert grown["tokens"] <= 2 * BATCH_TOKENS < 2 * each * documents * words / 4
    assert grown["answered"] <= grown["tokens"] / words
    assert grown["cancelled"] + grown["expired"] >= 2 * each
    assert wrong_lines(server) == []


def test_what_was_given_up_while_the_worker_was_stopped_is_not_scored(server: Server) -> None:
    """Of texts that are in the store, so that a Score is all that is asked: none of its pairs is scored."""
    documents, each = [f"document {place} is in the store" for place in range(8)], 12
    request = {"query": QUERY, "documents": documents}
    server.scores(QUERY, documents)
    names = ("pairs", "answered", "cancelled", "expired")
    before = {name: server.metric(f"maxsimd_worker_{name}") for name in names}
    overdue = as_request(request | {"timeout_ms": 700})
    statuses = asyncio.run(ask_in_vain(server, "scorer_worker", [as_request(request)] * each, [overdue] * each))
    assert statuses == {503}
    settled(server)
    grown = {name: server.metric(f"maxsimd_worker_{name}") - before[name] for name in names}
    assert grown["pairs"] == 0 and grown["answered"] == 0
    assert grown["cancelled"] + grown["expired"] == 2 * each
    server.scores(QUERY, documents)
    assert server.metric("maxsimd_worker_pairs") - before["pairs"] == len(documents)  # so they are counted
    assert wrong_lines(server) == []


def test_requests_that_miss_the_same_texts_have_them_encoded_once(server: Server) -> None:
    assert miss_once(server, "a document that is the same for all of them", count=400) == 400


@pytest.mark.long
def test_ten_thousand_requests_that_miss_the_same_texts_have_them_encoded_once(start: Callable[..., Server]) -> None:
    """In rounds of as many as can be sent while the engine is stopped, each with a document of its own.

    Who may wait long is let in though many wait: what the engine grants is what it can do within a share of that time.
    """
    server = start("--api-server-count", "2", "--request-timeout", "300")
    count = min(10_000, room_for_connections(server))
    missed = rounds = 0
    while missed < 10_000:
        rounds += 1
        missed += miss_once(server, f"a document that is the same for all of round {rounds}", count)
        assert rounds < 40, missed
    assert wrong_lines(server) == []


def miss_once(server: Server, document: str, count: int) -> int:
    """Equal requests, all sent while the engine is stopped.

    Returns:
        How many had missed the document before anything could be encoded. (The others came while it was encoded, or
        later; for them it was encoded no more than for these.)
    """
    (expected,) = server.scores(QUERY, [document], cache_salt="names of their own: nothing that is asked for below")
    server.scores(QUERY, ["the query is in the store"])
    names = ("texts", "requests", "answered")
    before = {name: server.metric(f"maxsimd_engine_{name}") for name in names}
    together = asyncio.run(miss_together(server, QUERY, document, count))
    after = {name: server.metric(f"maxsimd_engine_{name}") for name in names}
    assert together.statuses == {200}
    assert len(together.scores) == 1 and min(together.scores) == pytest.approx(expected, abs=1e-3)
    assert after["texts"] - before["texts"] == 1
    assert together.missed <= after["requests"] - before["requests"] <= count
    assert after["answered"] - before["answered"] == after["requests"] - before["requests"]
    return together.missed
