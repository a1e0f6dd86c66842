"""P7: who finds everything in the store is served in any burst; what there is no room to encode is refused early."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import httpx

from tests.end_to_end.running_server import Server

DOCUMENT = "document {} of {}: " + "late interaction keeps one embedding for every token of a text " * 6
QUERY = "which document is about late interaction?"


def documents(count: int, name: str) -> list[str]:
    return [DOCUMENT.format(number, name) for number in range(count)]


async def burst(server: Server, queries: Sequence[tuple[str, list[str]]]) -> list[httpx.Response]:
    """All at once, each on a connection of its own."""
    limits = httpx.Limits(max_connections=len(queries))
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        posts = [client.post("/rerank", json={"query": query, "documents": texts}) for query, texts in queries]
        return await asyncio.gather(*posts)


def test_a_burst_of_large_requests_that_the_store_can_answer_is_answered(start: Callable[..., Server]) -> None:
    server = start("--api-server-count", "1")
    texts = documents(500, "a store")
    expected = server.scores(QUERY, texts)
    encoded = server.metric("maxsimd_engine_texts")
    answers = asyncio.run(burst(server, [(QUERY, texts)] * 40))
    assert [answer.status_code for answer in answers] == [200] * 40
    for answer in answers:
        results = sorted(answer.json()["results"], key=lambda result: result["index"])
        assert [result["relevance_score"] for result in results] == expected
    assert server.metric("maxsimd_engine_texts") == encoded


def test_of_a_burst_of_new_work_what_has_no_room_is_refused_and_the_rest_is_right(start: Callable[..., Server]) -> None:
    server = start("--api-server-count", "1")
    known = documents(50, "known")
    expected = server.scores(QUERY, known)
    new = [(QUERY, documents(400, f"burst {number}")) for number in range(40)]
    answers = asyncio.run(burst(server, [*new, (QUERY, known)]))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}, statuses
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
        else:
            assert len(answer.json()["results"]) in (len(known), 400)
    assert server.scores(QUERY, known) == expected
    for (query, texts), status in zip(new, statuses, strict=False):
        if status == 200:
            assert len(server.scores(query, texts)) == 400  # they are in the store: served, and nothing is left over
            break
