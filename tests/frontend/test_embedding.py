"""M1 and M2 of `frontend.embedding`: how much memory embeddings take that are made for answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TypeVar, cast

import pytest

from frontend.embedding import Embedder, EmbeddingResult, EmbeddingTask
from frontend.errors import RequestFailed
from frontend.fair_threads import FairThreads
from frontend.tokenizer import StatelessTokenizer
from ipc.client import ServiceClient
from ipc.messages import KEY_BYTES
from tests.frontend.desk import DIM, FINGERPRINT, PAUSES, Desk
from tests.frontend.surface import SPEC, TOKENIZER_JSON

T = TypeVar("T")

LIMIT = 30.0  # seconds that anything here may take
ROWS = 10
SIZE = ROWS * DIM * 4  # bytes of embeddings of one request here
TOKENIZER = StatelessTokenizer(SPEC, TOKENIZER_JSON)


def task(rows: int = ROWS) -> EmbeddingTask:
    """Of token ids: nothing is tokenised, so nothing waits for a thread."""
    key, deadline = b"k" * KEY_BYTES, time.monotonic() + LIMIT
    return EmbeddingTask([[3] * rows], [key], "document", "float32", b"someone!", deadline, 100, True, ["input[0]"])


def run(test: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(test, LIMIT))


def embedder_of(desk: Desk) -> Embedder:
    return Embedder(cast(ServiceClient, desk), FairThreads(1, "tokenise"))


async def embed(embedder: Embedder, wanted: EmbeddingTask, write: Callable[[EmbeddingResult], T]) -> T:
    """What was written of the embeddings."""
    _, written = await embedder.embed(wanted, TOKENIZER, FINGERPRINT, DIM, write)
    return written


def test_a_request_for_more_than_an_answer_holds_is_refused_before_anything_is_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("frontend.embedding.MAX_ANSWER_BYTES", SIZE)
    desk = Desk()

    async def test() -> None:
        _, rows = await embedder_of(desk).embed(
            task(), TOKENIZER, FINGERPRINT, DIM, lambda result: result.texts[0].rows
        )
        assert rows == ROWS and len(desk.asked) == 1
        with pytest.raises(RequestFailed, match=f"input: {SIZE + DIM * 4} bytes of embeddings, at most {SIZE}"):
            await embed(embedder_of(desk), task(ROWS + 1), lambda result: None)
        assert len(desk.asked) == 1

    run(test())


def test_all_requests_together_hold_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.embedding.MAX_ANSWER_BYTES", 2 * SIZE + DIM)
    desk = Desk()

    async def test() -> None:
        embedder = embedder_of(desk)
        await asyncio.gather(*[embed(embedder, task(), lambda result: None) for _ in range(7)])
        assert len(desk.asked) == 7 and desk.most == 2

    run(test())


def test_they_are_held_until_the_answer_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.embedding.MAX_ANSWER_BYTES", SIZE)
    desk = Desk()
    is_writing, may_end = threading.Event(), threading.Event()

    def write(result: EmbeddingResult) -> None:
        is_writing.set()
        assert may_end.wait(LIMIT)

    async def test() -> None:
        embedder = embedder_of(desk)
        requests = [asyncio.create_task(embed(embedder, task(), write)) for _ in range(2)]
        assert await asyncio.to_thread(is_writing.wait, LIMIT)
        for _ in range(PAUSES):
            await asyncio.sleep(0)
        assert len(desk.asked) == 1, "there is no room for the second one's yet"
        may_end.set()
        await asyncio.gather(*requests)
        assert len(desk.asked) == 2

    run(test())
