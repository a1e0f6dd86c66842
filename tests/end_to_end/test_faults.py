"""P1 and P6: whatever is killed, no request accepted elsewhere fails, and no answer is wrong."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import numpy as np
import pytest

from tests.end_to_end.running_server import Floats, Server, as_input, maxsim, random_embeddings, wait_until

DIM = 384
TEXTS = [
    f"{subject} {verb} {place}"
    for subject in ("a cat", "the dog", "one bird")
    for verb in ("sleeps", "runs", "eats")
    for place in ("at home", "outside", "in the garden")
]
QUERY = "which animal sleeps outside?"


@pytest.fixture(scope="module")
def text_scores(reference: Any) -> dict[str, float]:
    """QUERY's score of each of TEXTS from the reference's embeddings: a server's own scores would hide its faults."""
    query, *documents = (
        np.asarray(rows, dtype=np.float32)
        for rows in [*reference.encode_query([QUERY]), *reference.encode_document(TEXTS)]
    )
    return {text: maxsim(query, rows) for text, rows in zip(TEXTS, documents, strict=True)}


class Load:
    """Connections that ask for the same scores in different mixes, and hold every answer against the truth.

    Args:
        text_scores: the fixture's.
    """

    def __init__(self, server: Server, text_scores: Mapping[str, float], seed: int) -> None:
        self._server = server
        self._choose = random.Random(seed)
        self._query = random_embeddings(7, DIM, 100)
        self._rows = [random_embeddings(self._choose.randrange(1, 60), DIM, 200 + number) for number in range(30)]
        self._text_scores = text_scores
        self.answers = 0
        self.resets = 0
        self.problems: list[str] = []
        self.is_over = False

    async def run(self, connections: int) -> None:
        await asyncio.gather(*(self._one_connection() for _ in range(connections)))

    async def _one_connection(self) -> None:
        while not self.is_over:
            async with httpx.AsyncClient(base_url=self._server.url, timeout=60) as client:
                try:
                    while not self.is_over:
                        await self._one_request(client)
                except httpx.TransportError:
                    self.resets += 1  # its API server was killed: the next connection goes to another

    async def _one_request(self, client: httpx.AsyncClient) -> None:
        body, expected, tolerance = self._choose.choice((self._texts, self._values))()
        body["explain"] = self._choose.random() < 0.2
        answer = await client.post("/rerank", json=body)
        if answer.status_code != 200:
            self.problems.append(f"{answer.status_code} {answer.text}")
            return
        results = sorted(answer.json()["results"], key=lambda result: result["index"])
        scores = [result["relevance_score"] for result in results]
        if scores != pytest.approx(expected, abs=tolerance):
            self.problems.append(f"{scores}, expected {expected}")
        if body["explain"]:
            sums = [sum(match["similarity"] for match in result["explanation"]) for result in results]
            if sums != pytest.approx(expected, abs=tolerance):
                self.problems.append(f"similarities add up to {sums}, expected {expected}")
        self.answers += 1

    def _texts(self) -> tuple[dict[str, Any], list[float], float]:
        chosen = self._choose.sample(TEXTS, self._choose.randrange(1, len(TEXTS)))
        return {"query": QUERY, "documents": chosen}, [self._text_scores[text] for text in chosen], 1e-3

    def _values(self) -> tuple[dict[str, Any], list[float], float]:
        chosen: list[Floats] = self._choose.sample(self._rows, self._choose.randrange(1, 12))
        body = {"query": as_input(self._query), "documents": [as_input(rows) for rows in chosen]}
        return body, [maxsim(self._query, rows) for rows in chosen], 1e-4


async def under_load(load: Load, connections: int, disturb: Callable[[], None]) -> None:
    """Run the load, disturb it in the middle, and go on until many more answers have come."""
    running = asyncio.create_task(load.run(connections))
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, wait_until, lambda: load.answers > 50)
    await loop.run_in_executor(None, disturb)
    before = load.answers
    await loop.run_in_executor(None, wait_until, lambda: load.answers > before + 100)
    load.is_over = True
    await running


@pytest.fixture(scope="module")
def server() -> Any:
    running = Server("--api-server-count", "4", "--embedding-cache-size", "256MiB")
    yield running
    running.end()


def kill(server: Server, module: str) -> None:
    """Kill the newest process of this kind and wait until another one has taken its place."""
    victim = server.children(module)[-1]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: victim not in server.children(module) and server.children(module))
    wait_until(server.is_ready)


@pytest.mark.parametrize("module", ["frontend.api_server", "engine", "scorer_worker"])
def test_kill_under_load(server: Server, text_scores: Mapping[str, float], module: str) -> None:
    load = Load(server, text_scores, seed=len(module))
    asyncio.run(under_load(load, 8, lambda: kill(server, module)))
    assert load.problems == []
    if module != "frontend.api_server":
        assert load.resets == 0
    assert len(server.children("frontend.api_server")) == 4


def test_stress_every_answer_is_right(server: Server, text_scores: Mapping[str, float]) -> None:
    """Many connections over four API servers, texts and embeddings mixed."""
    load = Load(server, text_scores, seed=7)
    asyncio.run(under_load(load, 32, lambda: wait_until(lambda: load.answers > 400)))
    assert load.problems == [] and load.resets == 0


def test_tiny_store_changes_no_answer(start: Callable[..., Server], text_scores: Mapping[str, float]) -> None:
    """Evictions under load, waiting for room, Missing after Missing: the same scores."""
    server = start("--api-server-count", "2", "--embedding-cache-size", "8MiB")
    load = Load(server, text_scores, seed=3)
    asyncio.run(under_load(load, 8, lambda: None))
    assert load.problems == [] and load.resets == 0


def test_thousands_of_documents_of_one_row_fit_a_small_store(start: Callable[..., Server]) -> None:
    """Each takes 16 rows of room: a request of them is cut into parts by that, not by its rows."""
    server = start("--api-server-count", "1", "--embedding-cache-size", "16MiB", "--no-engine", "--dim", "64")
    query, rows = random_embeddings(3, 64, 1), random_embeddings(4096, 64, 2)
    scores = server.scores(as_input(query), [as_input(rows[place : place + 1]) for place in range(4096)])
    assert scores == pytest.approx([maxsim(query, rows[place : place + 1]) for place in range(4096)], abs=1e-4)
    assert not any("up again" in line for line in server.lines)


def test_no_cache_changes_no_answer(start: Callable[..., Server], text_scores: Mapping[str, float]) -> None:
    server = start("--api-server-count", "2", "--no-embedding-cache", "--embedding-cache-size", "32MiB")
    load = Load(server, text_scores, seed=4)
    asyncio.run(under_load(load, 4, lambda: None))
    assert load.problems == [] and load.resets == 0
    assert server.metric("maxsimd_worker_store_entries") == 0


def test_hosted_encoder_gives_the_same_scores(
    start: Callable[..., Server], shared_server: Server, text_scores: Mapping[str, float]
) -> None:
    """--engine-placement worker: token ids travel, embeddings stay; kills are survived just so."""
    server = start("--api-server-count", "2", "--engine-placement", "worker", "--embedding-cache-size", "512MiB")
    assert not server.children("engine")
    assert server.scores(QUERY, TEXTS) == pytest.approx(shared_server.scores(QUERY, TEXTS), abs=1e-4)
    missed, asked = server.metric("maxsimd_worker_store_misses"), server.metric("maxsimd_worker_requests")
    server.scores("a query that nobody has asked before", TEXTS)
    assert server.metric("maxsimd_worker_store_misses") == missed, "a new query goes with the first Score"
    assert server.metric("maxsimd_worker_requests") == asked + 1
    many = [f"{number}: {'late interaction ' * 50}" for number in range(170)]  # more ids than one batch of the encoder
    server.scores(QUERY, many)
    assert server.metric("maxsimd_worker_requests") == asked + 1 + 1 + 2, "one by names, two with ids"
    load = Load(server, text_scores, seed=5)
    asyncio.run(under_load(load, 6, lambda: kill(server, "scorer_worker")))
    assert load.problems == [] and load.resets == 0
