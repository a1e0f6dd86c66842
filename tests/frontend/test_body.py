"""Bodies in pieces, too large, too slow or cut off; clients that hang up; requests that are refused unread."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Callable

import pytest
from starlette.types import Message

from tests.frontend.surface import DOCUMENTS, LIMIT, QUERY, Surface, WordRanker, message_of


class Connection:
    """One request, byte by byte: what is sent when, and whether anybody read it."""

    def __init__(self, surface: Surface, *chunks: bytes, length: int | None = None, hangs_up: bool = False) -> None:
        self._app = surface.app
        self._chunks = list(chunks)
        self._hangs_up = hangs_up
        self._length = length
        self.hang_up = asyncio.Event()
        self.chunks_read = 0
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        if self.chunks_read < len(self._chunks):
            chunk = self._chunks[self.chunks_read]
            self.chunks_read += 1
            is_last = self.chunks_read == len(self._chunks) and not self._hangs_up
            return {"type": "http.request", "body": chunk, "more_body": not is_last}
        if not self._hangs_up:
            await self.hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def run(self) -> int:
        """The status of the answer."""
        length = [] if self._length is None else [(b"content-length", str(self._length).encode())]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/rerank",
            "root_path": "",
            "query_string": b"",
            "headers": length,
            "client": ("10.0.0.1", 1),
        }
        async with asyncio.timeout(LIMIT):
            await self._app(scope, self.receive, self.send)
        status = self.sent[0]["status"]
        assert isinstance(status, int)
        return status


BODY = json.dumps({"query": QUERY, "documents": DOCUMENTS}).encode()


def test_a_body_in_chunks_is_one_body() -> None:
    connection = Connection(Surface(), *(BODY[i : i + 7] for i in range(0, len(BODY), 7)))
    assert asyncio.run(connection.run()) == 200


def test_a_body_announced_as_too_large_is_not_read() -> None:
    connection = Connection(Surface(max_body_bytes=100), BODY * 10, length=101)
    assert asyncio.run(connection.run()) == 413
    assert connection.chunks_read == 0


@pytest.mark.parametrize("digits", [20, 5000])
def test_a_length_of_absurd_length_is_too_large(digits: int) -> None:
    assert Surface().request("POST", "/rerank", headers={"content-length": "9" * digits}).status_code == 413


@pytest.mark.parametrize("length", [b"-1", b"1e3", b"0x10", b"\xb2", b""])
def test_a_length_that_is_no_number_is_a_400(length: bytes) -> None:
    response = Surface().request("POST", "/rerank", headers={"content-length": length})
    assert message_of(response).startswith("content-length: ")


def test_a_body_in_chunks_is_refused_as_soon_as_it_is_too_large() -> None:
    connection = Connection(Surface(max_body_bytes=100), *[b" " * 40] * 1000)
    assert asyncio.run(connection.run()) == 413
    assert connection.chunks_read == 3


def test_a_body_of_exactly_the_limit_is_read() -> None:
    surface = Surface(max_body_bytes=len(BODY))
    assert asyncio.run(Connection(surface, BODY, length=len(BODY)).run()) == 200
    assert asyncio.run(Connection(surface, BODY, b"", length=len(BODY)).run()) == 200
    assert asyncio.run(Connection(surface, BODY, b" ").run()) == 413


def test_a_body_that_does_not_come_is_a_408() -> None:
    assert asyncio.run(Connection(Surface(request_timeout=0.01)).run()) == 408


def test_when_overloaded_the_body_is_not_read() -> None:
    async def run() -> tuple[int, int, int]:
        surface = Surface(max_bodies=1000)
        surface.ranker.may_answer = asyncio.Event()
        first = Connection(surface, BODY, length=900)
        running = asyncio.create_task(first.run())
        await until(lambda: bool(surface.ranker.tasks))
        second = Connection(surface, BODY, length=900)
        refused = await second.run()
        assert (b"retry-after-ms" in dict(second.sent[0]["headers"])) and second.chunks_read == 0
        surface.ranker.may_answer.set()
        return await running, refused, await Connection(surface, BODY, length=900).run()

    assert asyncio.run(run()) == (200, 429, 200)


@pytest.mark.parametrize(
    "document",
    [
        pytest.param("a" * 300, id="ascii"),
        pytest.param("é" * 150, id="two-bytes-each"),
        pytest.param("漢" * 100, id="three-bytes-each"),
    ],
)
def test_what_waits_to_be_encoded_counts_by_the_bytes_of_its_text(document: str) -> None:
    """A Han character is about one token: counted as a third of one, it would be let in three times too often."""

    async def run() -> tuple[int, int]:
        surface = Surface()
        surface.ranker.may_answer = asyncio.Event()
        surface.admission.capacity_tokens = 100  # a token for three bytes, before anything has been learned
        body = json.dumps({"query": QUERY, "documents": [document]}).encode()
        running = asyncio.create_task(Connection(surface, body).run())
        await until(lambda: bool(surface.ranker.tasks))
        refused = await Connection(surface, body).run()
        surface.ranker.may_answer.set()
        return await running, refused

    assert asyncio.run(run()) == (200, 429)


def test_a_body_without_length_is_refused_where_there_is_no_room_for_more_of_it() -> None:
    async def run() -> tuple[int, int, int]:
        surface = Surface(max_bodies=100_000)
        surface.ranker.may_answer = asyncio.Event()
        first = asyncio.create_task(Connection(surface, BODY).run())
        await until(lambda: bool(surface.ranker.tasks))
        second = Connection(surface, *[b" " * 10_000] * 1000)
        refused = await second.run()
        surface.ranker.may_answer.set()
        return await first, refused, second.chunks_read

    status, refused, chunks_read = asyncio.run(run())
    assert (status, refused) == (200, 429)
    assert chunks_read < 20


def test_a_body_is_gone_when_its_texts_are_scored() -> None:
    async def run() -> int:
        surface = Surface()
        surface.ranker.may_answer = asyncio.Event()
        body = BODY.replace(b"{", b'{"unknown":"' + b"a" * 2**22 + b'",', 1)
        connection = Connection(surface, body[: 2**21], body[2**21 :], length=len(body))
        tracemalloc.start()
        try:
            running = asyncio.create_task(connection.run())
            await until(lambda: bool(surface.ranker.tasks))
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        surface.ranker.may_answer.set()
        assert await running == 200
        return held

    assert asyncio.run(run()) < 2**21


def test_when_the_client_hangs_up_its_work_is_cancelled() -> None:
    async def run() -> WordRanker:
        surface = Surface()
        surface.ranker.may_answer = asyncio.Event()
        connection = Connection(surface, BODY, length=len(BODY))
        running = asyncio.create_task(connection.run())
        await until(lambda: bool(surface.ranker.tasks))
        connection.hang_up.set()
        await running
        assert surface.admission.outstanding == 0
        return surface.ranker

    assert asyncio.run(run()).cancelled == 1


@pytest.mark.parametrize("sent", [pytest.param(BODY[:10], id="half-of-it"), pytest.param(BODY, id="what-looks-whole")])
def test_a_client_that_hangs_up_within_its_body_costs_nothing(sent: bytes) -> None:
    surface = Surface()
    asyncio.run(Connection(surface, sent, length=len(BODY) + 1, hangs_up=True).run())
    assert (surface.ranker.tasks, surface.admission.outstanding) == ([], 0)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0)
