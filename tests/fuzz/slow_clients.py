"""Clients that keep a connection and do next to nothing on it: each ends within a limit of docs/security.md."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from frontend.http_server import HEAD_TIMEOUT, KEEP_ALIVE, REST_TIMEOUT, UNREAD_TIMEOUT
from tests.fuzz.http_client import as_request, connect, read_to_the_end, read_until_quiet, statuses_of

SLACK = 20.0  # seconds: the machine may be busy
DRIP = 1.0  # seconds between two bytes
REQUEST_TIMEOUT = 8.0  # of the server that is asked

Client = Callable[[socket.socket], Awaitable[bytes]]
HEAD = b"POST /rerank HTTP/1.1\r\nhost: x\r\n"
WORDS = [f"{number} " + "word " * 250 for number in range(16)]
LARGE = as_request({"input": WORDS, "encoding_format": "float"}, b"/pooling")  # its answer has 16 MB or more


@dataclass(frozen=True)
class Slow:
    """What a client does, the status it gets (None: none), and the seconds after which its connection has ended."""

    client: Client
    status: int | None
    limit: float
    is_admitted: bool = False  # it announces a body that somebody waits for
    is_greedy: bool = False  # it wants so much that others are refused meanwhile, and perhaps itself at first


async def _bytes_of(data: bytes) -> AsyncIterator[bytes]:
    for place in range(len(data)):
        yield data[place : place + 1]
        await asyncio.sleep(DRIP)


async def _until_closed(connection: socket.socket) -> bytes:
    loop, got = asyncio.get_running_loop(), b""
    try:
        while part := await loop.sock_recv(connection, 2**18):
            got += part
    except ConnectionResetError:
        pass
    return got


def sends(data: bytes) -> Client:
    """So much, and nothing more."""

    async def client(connection: socket.socket) -> bytes:
        await asyncio.get_running_loop().sock_sendall(connection, data)
        return await _until_closed(connection)

    return client


def drips(beginning: bytes, piece: bytes) -> Client:
    """A beginning, then a piece without end, byte by byte."""

    async def client(connection: socket.socket) -> bytes:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(connection, beginning)
        reading = asyncio.create_task(_until_closed(connection))
        async for byte in _bytes_of(piece * 1000):
            if reading.done():
                break
            try:
                await loop.sock_sendall(connection, byte)
            except (BrokenPipeError, ConnectionResetError):
                break
        return await reading

    return client


async def takes_nothing(connection: socket.socket) -> bytes:
    """Of a large answer it reads the first piece: the kernel tells it of the end."""
    loop = asyncio.get_running_loop()
    poller = select.poll()
    poller.register(connection, 0)  # errors and hang-ups only
    got = b""
    while not got.startswith(b"HTTP/1.1 200"):  # others want as much: it may be refused at first
        if got:
            rest, _ = await read_until_quiet(connection)
            assert statuses_of(got + rest) == [429], got
        await loop.sock_sendall(connection, LARGE)
        got = await loop.sock_recv(connection, 1000)
    while not poller.poll(0):
        await asyncio.sleep(0.1)
    return got


async def pipelines_and_takes_nothing(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    poller = select.poll()
    poller.register(connection, 0)
    sending = asyncio.create_task(
        loop.sock_sendall(connection, b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 2000)
    )
    while not poller.poll(0):
        await asyncio.sleep(0.1)
    await asyncio.gather(sending, return_exceptions=True)
    return b""


async def is_answered_then_idle(connection: socket.socket) -> bytes:
    await asyncio.get_running_loop().sock_sendall(connection, b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n")
    got, _ = await read_until_quiet(connection)
    return got + await _until_closed(connection)


CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
UNREAD = b"POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"
BODY = json.dumps({"query": "q", "documents": ["d"]}).encode()
SLOW = {
    "says nothing": Slow(sends(b""), None, KEEP_ALIVE),
    "is idle after an answer": Slow(is_answered_then_idle, 200, KEEP_ALIVE),
    "ends within its head": Slow(sends(HEAD), 408, HEAD_TIMEOUT),
    "drips its head": Slow(drips(HEAD, b"a: b\r\n"), 408, HEAD_TIMEOUT),
    "drips empty lines": Slow(drips(b"", b"\r\n"), 408, HEAD_TIMEOUT),
    "ends within its body": Slow(
        sends(HEAD + b"content-length: 100\r\n\r\n{"), 408, REQUEST_TIMEOUT + REST_TIMEOUT, True
    ),
    "drips its body": Slow(
        drips(HEAD + b"content-length: 9999\r\n\r\n", b" "), 408, REQUEST_TIMEOUT + REST_TIMEOUT, True
    ),
    "drips chunks without end": Slow(drips(CHUNKED, b"1\r\n \r\n"), 408, REQUEST_TIMEOUT + REST_TIMEOUT, True),
    "drips an extension": Slow(drips(CHUNKED + b"1;", b"a"), 408, REQUEST_TIMEOUT + REST_TIMEOUT, True),
    "drips a trailer": Slow(drips(CHUNKED + b"1\r\n{\r\n0\r\na: ", b"b"), 408, REQUEST_TIMEOUT + REST_TIMEOUT, True),
    "waits for 100 and sends nothing": Slow(
        sends(HEAD + b"expect: 100-continue\r\ncontent-length: 100\r\n\r\n"), 408, REQUEST_TIMEOUT + REST_TIMEOUT, True
    ),
    "drips a body that nobody reads": Slow(drips(UNREAD, b"x"), 404, REST_TIMEOUT),
    "offers an upgrade and waits": Slow(
        sends(b"GET /live HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"), 200, KEEP_ALIVE
    ),
    "takes nothing of its answer": Slow(takes_nothing, 200, REQUEST_TIMEOUT + 2 * UNREAD_TIMEOUT, is_greedy=True),
    "pipelines and takes nothing": Slow(pipelines_and_takes_nothing, None, 2 * UNREAD_TIMEOUT),
}


async def run_all(port: int, times: int) -> list[str]:
    """All of them at once, so many times over, on a server of one API server that nobody else asks.

    The greedy ones begin when all who announce a body have been let in: else these might be refused (429) because there
    is no room for more work, and it would not be seen what becomes of their bodies.

    Returns:
        What was wrong.
    """

    async def one(name: str, slow: Slow) -> str | None:
        started = time.monotonic()
        connection = await connect(port)
        try:
            async with asyncio.timeout(slow.limit + SLACK):
                got = await slow.client(connection)
        except TimeoutError:
            return f"{name}: still open after {time.monotonic() - started:.0f} s"
        finally:
            connection.close()
        statuses = [status for status in statuses_of(got) if status != 100]
        if slow.status is not None and statuses[:1] != [slow.status]:
            return f"{name}: {statuses} in place of {slow.status}"
        return None

    def begin(are_greedy: bool) -> list[asyncio.Task[str | None]]:
        some = [each for each in SLOW.items() if each[1].is_greedy is are_greedy]
        return [asyncio.create_task(one(*each)) for each in some * times]

    tasks = begin(are_greedy=False)
    async with asyncio.timeout(REQUEST_TIMEOUT):
        while await _admitted(port) < times * sum(slow.is_admitted for slow in SLOW.values()):
            await asyncio.sleep(0.02)
    tasks += begin(are_greedy=True)
    return [problem for problem in await asyncio.gather(*tasks) if problem is not None]


async def _admitted(port: int) -> int:
    """Requests that the API server has let in and not answered."""
    connection = await connect(port)
    try:
        await asyncio.get_running_loop().sock_sendall(connection, b"GET /load HTTP/1.1\r\nconnection: close\r\n\r\n")
        answer = await read_to_the_end(connection)
    finally:
        connection.close()
    return int(json.loads(answer.split(b"\r\n\r\n", 1)[1])["server_load"])
