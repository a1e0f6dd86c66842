"""Clients of raw sockets, and what a server's processes hold."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httptools

from tests.end_to_end.running_server import Server
from tests.fuzz.http_cases import Case, make_case
from tests.fuzz.owed import Owed, answers_in, complaints, is_paid, owed_for

QUIET = 0.25  # seconds without a byte in which an answer to a part of a request would have come; not what is tested
LIMIT = 60.0  # seconds; the server itself ends whatever it does within 30
AT_ONCE = 24  # connections
ENOUGH = 12  # problems: a server that answers nothing shall not take LIMIT for each case
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


@dataclass
class Outcome:
    """What came of many cases."""

    statuses: Counter[int] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


async def run_cases(port: int, seed: int, count: int) -> Outcome:
    """Cases on connections of their own, some at a time."""
    outcome, turns = Outcome(), asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with turns:
            if len(outcome.problems) >= ENOUGH:
                return
            case = make_case(random.Random(seed * 1_000_003 + number))
            await _run_case(port, case, outcome, f"case {number} of seed {seed}")

    await asyncio.gather(*(one(number) for number in range(count)))
    return outcome


async def _run_case(port: int, case: Case, outcome: Outcome, name: str) -> None:
    connection = await connect(port)
    owed = owed_for(b"".join(case.pieces))
    got = b""
    try:
        async with asyncio.timeout(LIMIT):
            await _send(connection, case)
            if case.leaving == "half-closes":
                got = await read_to_the_end(connection)
            elif case.leaving == "reads":
                got = await _read_what_is_owed(connection, owed)
        if case.leaving in ("reads", "half-closes"):
            answers = answers_in(got, owed.methods)
            outcome.statuses.update(answer.status for answer in answers)
            wrong = complaints(owed, answers, is_right=not case.names, has_left=case.leaving == "half-closes")
            outcome.problems += [f"{name}: {each}: {case.names}: {case.pieces[0][:300]!r}" for each in wrong]
    except TimeoutError:
        outcome.problems.append(f"{name}: not answered, or not closed, within {LIMIT} s: {case.names}, {owed}")
    except ValueError as error:
        outcome.problems.append(f"{name}: {error}: {case.names}")
    finally:
        if case.leaving == "resets":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.close()


async def _send(connection: socket.socket, case: Case) -> None:
    try:
        for piece in case.pieces:
            await asyncio.get_running_loop().sock_sendall(connection, piece)
            await asyncio.sleep(0)
        if case.leaving == "half-closes":
            connection.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the server has said no, and closed: what it said is still to be read


async def _read_what_is_owed(connection: socket.socket, owed: Owed) -> bytes:
    """All that comes until the server closes: by itself, or since we close our half when nothing more is to come."""
    loop, got = asyncio.get_running_loop(), b""
    while not is_paid(owed, answers_in(got, owed.methods)):
        part = await _receive(loop, connection)
        if not part:
            return got
        got += part
    if owed.is_begun:  # it may be answered before all of it is there
        part, end = await read_until_quiet(connection)
        got += part
        if end != "kept open":
            return got
    with contextlib.suppress(OSError):  # it has ended already
        connection.shutdown(socket.SHUT_WR)
    return got + await read_to_the_end(connection)


async def read_to_the_end(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    loop, got = asyncio.get_running_loop(), b""
    while part := await _receive(loop, connection):
        got += part
    return got


async def _receive(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> bytes:
    """Nothing: it has ended."""
    try:
        return await loop.sock_recv(connection, 2**18)
    except OSError:
        return b""


async def connect(port: int) -> socket.socket:
    connection = socket.socket()
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return connection


async def read_until_quiet(connection: socket.socket) -> tuple[bytes, str]:
    """What comes until the server closes, or says nothing for a while after something."""
    got = b""
    while await _is_readable(connection):
        try:
            part = connection.recv(2**18)
        except OSError:
            return got, "reset"
        if not part:
            return got, "closed"
        got += part
    return got, "kept open"


async def _is_readable(connection: socket.socket) -> bool:
    """Within QUIET. (A `sock_recv` that is cancelled in the turn in which it has read something loses that.)"""
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        async with asyncio.timeout(QUIET):
            await readable.wait()
    except TimeoutError:
        return readable.is_set()
    finally:
        loop.remove_reader(connection)
    return True


def statuses_of(data: bytes) -> list[int]:
    """Of the answers, one after the other; where a HEAD has misled the parser, of the first."""
    found: list[int] = []

    class Answers:
        def on_headers_complete(self) -> None:
            found.append(parser.get_status_code())

    parser = httptools.HttpResponseParser(Answers())
    with contextlib.suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
        parser.feed_data(data)
    if not found:
        match = _STATUS.match(data)
        return [int(match.group(1))] if match else []
    return found


@dataclass(frozen=True)
class Held:
    """What one process holds."""

    descriptors: int
    memory: int  # bytes


def held_by(server: Server) -> dict[str, Held]:
    """Of the launcher and of each of its children."""
    pids = {"launcher": server.process.pid}
    for module in ("frontend.api_server", "engine", "scorer_worker"):
        pids |= {f"{module} {number}": pid for number, pid in enumerate(server.children(module))}
    return {name: Held(_descriptors(pid), _memory(pid)) for name, pid in pids.items()}


def descriptors(held: dict[str, Held]) -> dict[str, int]:
    return {name: each.descriptors for name, each in held.items()}


def growth(before: dict[str, Held], after: dict[str, Held]) -> dict[str, int]:
    """Bytes, by process."""
    return {name: after[name].memory - before[name].memory for name in before}


def _descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def _memory(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS:"))


def wrong_lines(server: Server) -> Sequence[str]:
    """Of the log: what no client may cause."""
    return [line for line in server.lines if "Traceback" in line or "Exception" in line or "up again" in line]


# --- clients that come and go ---------------------------------------------------------------------------------------


async def come_and_go(port: int, seed: int, count: int) -> None:
    """Connections that end before their head, in it, in their body, while they are served, or afterwards."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        choose = random.Random(seed * 1_000_003 + number)
        async with turns, asyncio.timeout(LIMIT):
            await _come_and_go(port, choose)

    await asyncio.gather(*(one(number) for number in range(count)))


async def _come_and_go(port: int, choose: random.Random) -> None:
    texts = [f"document {choose.getrandbits(40)}" for _ in range(choose.randrange(1, 4))]
    request = as_request({"query": "does anybody wait", "documents": texts})
    end_of_head = request.index(b"\r\n\r\n")
    stage = choose.choice(("before", "head", "body", "served", "served", "answered"))
    end = {
        "before": 0,
        "head": choose.randrange(1, end_of_head),
        "body": choose.randrange(end_of_head + 4, len(request)),
    }.get(stage, len(request))
    connection = await connect(port)
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(connection, request[:end])
        if stage == "served":
            await asyncio.sleep(choose.random() * 0.03)  # whatever it is doing then
        elif stage == "answered":
            await loop.sock_recv(connection, 2**16)
        if choose.random() < 0.3:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    finally:
        connection.close()


def as_request(body: object, path: bytes = b"/rerank") -> bytes:
    """A request as it should be."""
    content = json.dumps(body).encode()
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (path, len(content), content)


async def ask_on(port: int, request: bytes, times: int) -> Counter[int]:
    """The same request again and again on one connection; statuses."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    statuses: Counter[int] = Counter()
    try:
        for _ in range(times):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None, head
            await reader.readexactly(int(length.group(1)))
            statuses.update(statuses_of(head))
    finally:
        writer.close()
        await writer.wait_closed()
    return statuses
