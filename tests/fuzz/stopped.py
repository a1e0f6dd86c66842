"""Many requests to a server whose engine or worker is stopped meanwhile (SIGSTOP): what they need has to wait."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import httpx

from tests.end_to_end.running_server import Server, wait_until
from tests.fuzz.http_client import LIMIT, as_request, connect, descriptors, held_by
from tests.fuzz.owed import Answer, answers_in

MOST_SECONDS = 6.0  # the launcher kills a service that is silent for 10
OPENED_AT_ONCE = 500  # connections; the listener's backlog is 2,048


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing, and goes on afterwards whatever happened."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def room_for_connections(server: Server) -> int:
    """How many this process, the launcher and the least API server can have open, once they may have as many as the
    hard limit allows.
    """
    room = []
    for pid in (os.getpid(), server.process.pid, *server.children("frontend.api_server")):
        _, most = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, most))
        room.append(most - 300)  # for what they have open besides
    return min(room)


async def open_many(port: int, count: int) -> list[socket.socket]:
    opened: list[socket.socket] = []
    while len(opened) < count:
        opened += await asyncio.gather(*(connect(port) for _ in range(min(OPENED_AT_ONCE, count - len(opened)))))
    return opened


async def send_each(connections: Sequence[socket.socket], requests: Sequence[bytes]) -> None:
    """One request on each connection."""
    loop = asyncio.get_running_loop()
    for connection, request in zip(connections, requests, strict=True):
        await loop.sock_sendall(connection, request)


async def read_answer(connection: socket.socket) -> tuple[Answer, bytes]:
    """The one answer, and its body.

    Raises:
        TimeoutError: there is none.
    """
    got = b""
    async with asyncio.timeout(LIMIT):
        while not any(answer.is_whole for answer in answers_in(got, [])):
            part = await asyncio.get_running_loop().sock_recv(connection, 2**18)
            assert part, f"closed after {got!r}"
            got += part
    (answer,) = answers_in(got, [])
    return answer, got.split(b"\r\n\r\n", 1)[1]


@dataclass(frozen=True)
class Together:
    """What came of requests that missed a document together."""

    missed: int  # while the engine was stopped: none of these found it in the store, and none could be served
    statuses: frozenset[int]
    scores: frozenset[float]


async def miss_together(server: Server, query: str, document: str, count: int) -> Together:
    """So many equal requests on connections of their own; the query is in the store, the document is not.

    The engine is stopped until all have been told that it is missing, or for MOST_SECONDS.
    """
    before = server.metric("maxsimd_worker_store_misses")
    (engine,) = server.children("engine")
    request = as_request({"query": query, "documents": [document]})
    connections = await open_many(server.port, count)
    try:
        with stopped(engine):
            end = time.monotonic() + MOST_SECONDS
            sending = asyncio.create_task(send_each(connections, [request] * count))
            missed = 0
            while missed < count and (left := end - time.monotonic()) > 0:
                missed = int(await _metric_within(server, "maxsimd_worker_store_misses", left) or before) - int(before)
        await sending
        answers = await asyncio.gather(*map(read_answer, connections))
    finally:
        for connection in connections:
            connection.close()
    statuses = frozenset(answer.status for answer, _ in answers)
    bodies = [json.loads(body) for answer, body in answers if answer.status == 200]
    return Together(missed, statuses, frozenset(body["results"][0]["relevance_score"] for body in bodies))


async def _metric_within(server: Server, name: str, seconds: float) -> float | None:
    """A metric without labels; None: it took longer (it is answered when the engine has not, within a second)."""
    async with httpx.AsyncClient() as client:
        try:
            text = (await client.get(f"{server.url}/metrics", timeout=seconds)).text
        except httpx.TimeoutException:
            return None
    match = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(match.group(1)) if match else None


# --- what nobody waits for ----------------------------------------------------------------------------------------


async def ask_in_vain(server: Server, module: str, leaving: Sequence[bytes], overdue: Sequence[bytes]) -> set[int]:
    """Requests that meet a stopped service: some clients hang up, the others' deadlines pass, and then it goes on.

    Returns:
        The statuses of those whose deadlines have passed.
    """
    (pid,) = server.children(module)
    before = _connections(server)
    connections = await open_many(server.port, len(leaving) + len(overdue))
    try:
        with stopped(pid):
            await send_each(connections, [*leaving, *overdue])
            answers = await asyncio.gather(*map(read_answer, connections[len(leaving) :]))
            for connection in connections:
                connection.close()
            # an API server that has closed its end has told the service that nobody waits
            await asyncio.to_thread(wait_until, lambda: _connections(server) <= before, MOST_SECONDS)
    finally:
        for connection in connections:
            connection.close()
    return {answer.status for answer, _ in answers}


def _connections(server: Server) -> int:
    held = descriptors(held_by(server))
    return sum(count for name, count in held.items() if "api_server" in name)
