"""Connections as strangers use them: heads without end, heads that never end, what is not HTTP, pipelining."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from starlette.types import Receive, Scope, Send

from frontend import http_server
from frontend.http_server import MAX_HEAD_BYTES, MAX_HEADERS, HttpServer

LIMIT = 10.0
LARGE = 8 * 2**20  # more than the sockets of a connection hold


@dataclass
class Client:
    """The other end of a connection, and what the application has seen of it."""

    socket: socket.socket
    paths: list[str] = field(default_factory=list)
    headers: list[bytes] = field(default_factory=list)  # names
    bodies: bytearray = field(default_factory=bytearray)
    left: asyncio.Event = field(default_factory=asyncio.Event)  # a request was told that its client has gone
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def read_to_the_end(self) -> bytes:
        """All that comes until the server closes."""
        parts = []
        async with asyncio.timeout(LIMIT):
            while part := await asyncio.get_running_loop().sock_recv(self.socket, 65_536):
                parts.append(part)
        return b"".join(parts)

    async def read(self, expected: bytes) -> bytes:
        """What comes until it holds so much."""
        got = b""
        async with asyncio.timeout(LIMIT):
            while expected not in got:
                part = await asyncio.get_running_loop().sock_recv(self.socket, 65_536)
                assert part, f"closed after {got!r}"
                got += part
        return got


@asynccontextmanager
async def connect() -> AsyncIterator[Client]:
    theirs, ours = socket.socketpair()
    ours.setblocking(False)
    client = Client(ours)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        client.paths.append(scope["path"])
        client.headers += [name for name, _ in scope["headers"]]
        more = scope["path"] != "/unread"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                client.left.set()
                return
            client.bodies += message["body"]
            more = message.get("more_body", False) or scope["path"] == "/wait"
        body = bytes(LARGE) if scope["path"] == "/large" else b"ok"
        length = b"%d" % len(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})

    server = HttpServer(app, "maxsimd/test")
    await server.serve(theirs, client.closed.set)
    try:
        yield client
    finally:
        ours.close()
        async with asyncio.timeout(LIMIT):
            await client.closed.wait()
        assert server.num_connections == 0


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


def parts_of(answer: bytes) -> tuple[int, dict[str, object]]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


GET = b"GET /a HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("head", "is_fine"),
    [
        pytest.param(GET + b"a: b\r\n" * (MAX_HEADERS - 1), True, id="as-many-headers-as-allowed"),
        pytest.param(GET + b"a: b\r\n" * MAX_HEADERS, False, id="one-header-more"),
        pytest.param(GET + b"a: " + b"b" * (MAX_HEAD_BYTES - 100) + b"\r\n", True, id="long-header"),
        pytest.param(GET + b"a: " + b"b" * MAX_HEAD_BYTES + b"\r\n", False, id="too-long-header"),
        pytest.param(b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nhost: x\r\n", False, id="too-long-path"),
    ],
)
def test_heads_have_a_limit(head: bytes, is_fine: bool) -> None:
    async def test() -> None:
        async with connect() as client:
            await client.send(head + b"connection: close\r\n\r\n" if is_fine and len(head) > 2000 else head + b"\r\n")
            if is_fine:
                assert b"ok" in await client.read(b"ok")
                return
            status, body = parts_of(await client.read_to_the_end())
            assert status == 431 and body["message"] == "headers: at most 100 of them and 32768 bytes"
            assert client.paths == []

    run(test)


def test_a_head_without_end_is_refused_before_it_is_kept() -> None:
    async def test() -> None:
        async with connect() as client:
            await client.send(GET + b"a: ")
            with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012 - whichever piece comes after the answer
                for _ in range(1000):
                    await client.send(b"b" * 4096)
                raise AssertionError("four megabytes of one header were taken")

    run(test)


def test_a_head_that_does_not_come_is_a_408(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT", 0.05)

    async def test() -> None:
        async with connect() as client:
            await client.send(GET)
            status, body = parts_of(await client.read_to_the_end())
            assert status == 408 and str(body["message"]).startswith("headers: not complete within")

    run(test)


def test_the_time_of_a_head_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that takes longer than its head may, and a second one on the same connection."""
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT", 0.05)

    async def test() -> None:
        async with connect() as client:
            for _ in range(2):
                await client.send(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n")
                passed = asyncio.Event()
                asyncio.get_running_loop().call_later(0.1, passed.set)
                await passed.wait()
                await client.send(b"{}")
                await client.read(b"ok")
            assert client.paths == ["/a", "/a"]

    run(test)


def test_a_connection_that_says_nothing_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "KEEP_ALIVE", 0.05)

    async def test() -> None:
        async with connect() as client:
            assert await client.read_to_the_end() == b""

    run(test)


def test_a_connection_that_says_nothing_after_an_answer_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "KEEP_ALIVE", 0.05)

    async def test() -> None:
        async with connect() as client:
            await client.send(GET + b"\r\n")
            await client.read(b"ok")
            assert await client.read_to_the_end() == b""

    run(test)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"nonsense\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
def test_what_is_not_http_is_a_400_in_json(data: bytes) -> None:
    async def test() -> None:
        async with connect() as client:
            await client.send(data)
            status, body = parts_of(await client.read_to_the_end())
            assert status == 400 and body["message"] == "request: Invalid HTTP request received"
            assert body["error"] == {
                "message": body["message"], "type": "BadRequestError", "param": None, "code": 400
            }  # fmt: skip

    run(test)


def test_pipelined_requests_are_all_answered_in_order() -> None:
    async def test() -> None:
        async with connect() as client:
            paths = [f"/{number}" for number in range(50)]
            await client.send(b"".join(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() for path in paths))
            got = b""
            while got.count(b"HTTP/1.1 200 OK") < 50 or not got.endswith(b"ok"):
                got += await client.read(b"ok")
            assert client.paths == paths

    run(test)


def test_a_wrong_head_after_a_request_is_not_mistaken_for_it() -> None:
    async def test() -> None:
        async with connect() as client:
            await client.send(GET + b"\r\n")
            await client.read(b"ok")
            await client.send(b"nonsense\r\n\r\n")
            status, _ = parts_of(await client.read_to_the_end())
            assert status == 400 and client.paths == ["/a"]

    run(test)


@pytest.mark.parametrize("body", [b"", b"content-length: 3\r\n"])
def test_an_upgrade_that_is_offered_is_not_taken_up_and_http_goes_on(body: bytes) -> None:
    """As curl --http2 and Java's client offer h2c; what comes with it, and after it, is answered."""
    offer = b"POST /a HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n" + body + b"\r\n"

    async def test() -> None:
        async with connect() as client:
            await client.send(offer + (b"abc" if body else b"") + GET + b"\r\n")
            await client.read(b"ok")
            await client.send(b"GET /b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            await client.read_to_the_end()
            assert client.paths == ["/a", "/a", "/b"]
            assert bytes(client.bodies) == (b"abc" if body else b"")
            assert b"upgrade" not in client.headers

    run(test)


@pytest.mark.parametrize("last", [b"HTTP/1.1\r\nconnection: close", b"HTTP/1.0"])
def test_an_upgrade_that_is_offered_with_a_last_request_keeps_it_from_no_answer(last: bytes) -> None:
    """llhttp takes nothing more after the head of a last request."""
    offer = b"GET /b %s\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" % last

    async def test() -> None:
        async with connect() as client:
            await client.send(GET + b"\r\n" + offer)
            await client.read_to_the_end()
            assert client.paths == ["/a", "/b"]

    run(test)


CHUNKED = b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


def test_trailers_are_no_headers() -> None:
    async def test() -> None:
        async with connect() as client:
            await client.send(CHUNKED + b"1\r\na\r\n0\r\nauthorization: Bearer x\r\nx-request-id: y\r\n\r\n")
            await client.read(b"ok")
            assert client.headers == [b"host", b"transfer-encoding"]

    run(test)


@pytest.mark.parametrize(
    "beginning", [b"1\r\na\r\n0\r\nname: ", b"1\r\na\r\n1;extension="], ids=["trailer", "extension"]
)
def test_what_stands_between_the_pieces_of_a_body_has_a_limit(beginning: bytes) -> None:
    async def test() -> None:
        async with connect() as client:
            await client.send(CHUNKED + beginning)
            with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012 - whichever piece comes after the answer
                for _ in range(1000):
                    await client.send(b"b" * 4096)
                raise AssertionError("four megabytes were taken")

    run(test)


def test_a_body_whose_chunks_are_broken_is_a_400() -> None:
    async def test() -> None:
        async with connect() as client:
            await client.send(CHUNKED + b"1\r\na\r\n")
            await client.send(b"zz\r\n")
            status, _ = parts_of(await client.read_to_the_end())
            assert status == 400 and client.left.is_set()

    run(test)


def test_the_rest_of_a_body_that_nobody_reads_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its request has been answered, and it goes on, a byte now and then."""
    monkeypatch.setattr(http_server, "REST_TIMEOUT", 0.05)

    async def test() -> None:
        async with connect() as client:
            await client.send(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n")
            await client.read(b"ok")
            await client.send(b"a")
            assert await client.read_to_the_end() == b""

    run(test)


def test_after_the_rest_of_a_body_the_next_request_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "KEEP_ALIVE", 0.05)

    async def test() -> None:
        async with connect() as client:
            await client.send(b"POST /unread HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n")
            await client.read(b"ok")
            await client.send(b"aa")
            assert await client.read_to_the_end() == b""

    run(test)


@pytest.mark.parametrize("head", [b"", b"connection: close\r\n"], ids=["kept", "closed"])
def test_a_client_that_does_not_take_its_answer_is_left(head: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "UNREAD_TIMEOUT", 0.05)

    async def test() -> None:
        async with connect() as client:
            await client.send(b"GET /large HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n")
            async with asyncio.timeout(LIMIT):
                await client.closed.wait()

    run(test)


def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "UNREAD_TIMEOUT", 0.2)

    async def test() -> None:
        async with connect() as client:
            await client.send(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            loop, size = asyncio.get_running_loop(), 0
            while part := await loop.sock_recv(client.socket, 2**18):
                size += len(part)
                passed = asyncio.Event()
                loop.call_later(0.01, passed.set)  # some 40 pieces or more: twice the limit in all
                await passed.wait()
            assert size > LARGE

    run(test)


def test_whoever_pipelines_and_leaves_is_waited_for_by_no_request() -> None:
    """The one that runs is told, not only the one that came last; that one never begins."""

    async def test() -> None:
        async with connect() as client:
            await client.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n" + GET + b"\r\n")
            async with asyncio.timeout(LIMIT):
                while not client.paths:
                    await asyncio.sleep(0)
            client.socket.close()
            async with asyncio.timeout(LIMIT):
                await client.left.wait()
            assert client.paths == ["/wait"]

    run(test)


def test_a_tunnel_is_refused() -> None:
    async def test() -> None:
        async with connect() as client:
            await client.send(b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n" + GET + b"\r\n")
            status, body = parts_of(await client.read_to_the_end())
            assert (status, body["message"], client.paths) == (405, "method: CONNECT is not allowed", [])

    run(test)
