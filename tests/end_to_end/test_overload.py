"""P7: who finds everything in the store is served in any burst; what there is no room to encode is refused early."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

import httpx
import numpy as np

from frontend.admission import FIRST_BYTES
from frontend.api_server import BODIES_BYTES
from tests.end_to_end.running_server import Server, maxsim

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


def test_of_a_burst_of_new_work_what_has_no_room_is_refused_and_the_rest_is_right(
    start: Callable[..., Server], reference: Any
) -> None:
    server = start("--api-server-count", "1", "--request-timeout", "10")  # of which the engine grants a part
    known = documents(50, "known")
    expected = server.scores(QUERY, known)
    lists = [*(documents(400, f"burst {number}") for number in range(40)), known]
    answers = asyncio.run(burst(server, [(QUERY, texts) for texts in lists]))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}, statuses
    for texts, answer in zip(lists, answers, strict=True):
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
        else:
            check_scores(answer, texts, reference)
    assert server.scores(QUERY, known) == expected
    assert len(server.scores(QUERY, lists[statuses.index(200)])) == 400  # they are in the store: nothing is left over


def check_scores(answer: httpx.Response, texts: list[str], reference: Any) -> None:
    """Of some of them, all over the list."""
    results = answer.json()["results"]
    assert sorted(result["index"] for result in results) == list(range(len(texts)))
    some = range(0, len(texts), 25)
    scores = {result["index"]: result["relevance_score"] for result in results}
    (query,) = reference.encode_query([QUERY])
    embeddings = reference.encode_document([texts[place] for place in some])
    truth = [maxsim(np.asarray(query), np.asarray(document)) for document in embeddings]
    np.testing.assert_allclose([scores[place] for place in some], truth, atol=1e-3)


def test_in_a_flood_a_request_is_refused_before_its_body_has_come(start: Callable[..., Server]) -> None:
    server = start("--api-server-count", "1", "--no-engine", "--dim", "8", "--max-body-bytes", "1MiB")
    most = BODIES_BYTES // FIRST_BYTES
    with ExitStack() as stack:
        held = [stack.enter_context(closing(announce(server.port, FIRST_BYTES))) for _ in range(most)]
        refused = stack.enter_context(closing(announce(server.port, FIRST_BYTES)))
        answer = refused.getresponse()  # of the body nothing has been sent
        assert answer.status == 429 and int(answer.headers["retry-after"]) >= 1
        assert b"%d requests are waiting" % most in answer.read()
        for connection in held:
            connection.send(b"x" * FIRST_BYTES)
        assert [connection.getresponse().status for connection in held] == [400] * most
    assert server.is_ready()


def announce(port: int, size: int) -> http.client.HTTPConnection:
    """A request whose head is here, and whose body is not."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("POST", "/rerank")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    return connection
