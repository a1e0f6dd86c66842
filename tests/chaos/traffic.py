"""Clients that keep requests in flight, break off some of them, and hold every answer against the reference.

Each connection asks one request after the other: documents at random, some twice, texts and embeddings by value mixed;
half of the requests have a salt of their own, so that their texts are encoded again. Of all requests most are waited
for; some are given up while they run, some are cut off half-way through their body, some have hardly any time.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.chaos.truth import TOLERANCE, Truth
from tests.end_to_end.running_server import wait_until

CANCELLED, CUT_OFF, HURRIED = 0.06, 0.04, 0.04  # shares of the requests
PATIENCE = 120.0  # seconds a client waits; a server answers within --request-timeout
JOIN_LIMIT = 150.0


class Traffic:
    """Load on a server for as long as the `with` block runs; at its end every request has ended.

    Args:
        retries: ask again, on a new connection, where one was reset. Else its request is lost.
    """

    def __init__(self, url: str, truth: Truth, connections: int = 12, seed: int = 0, retries: bool = False) -> None:
        self.answers = 0  # right or wrong
        self.resets = 0  # connections that ended before their answer
        self.lost = 0  # requests that ended so
        self.given_up = 0
        self.problems: list[str] = []
        self._url = url
        self._truth = truth
        self._choose = random.Random(seed)
        self._retries = retries
        self._turns = [0] * connections  # requests that each connection has finished
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="traffic")

    def __enter__(self) -> Traffic:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ask nothing new, and wait until what was asked has been answered."""
        self._is_over.set()
        self._thread.join(JOIN_LIMIT)
        assert not self._thread.is_alive(), "a request has had no answer at all"

    def wait_answers(self, more: int) -> None:
        """Until so many more answers have come."""
        target = self.answers + more
        wait_until(lambda: self.answers >= target or not self._thread.is_alive())
        assert self._thread.is_alive(), "the traffic has ended"

    def wait_seconds(self, seconds: float) -> None:
        """Let the traffic run for so long."""
        self._is_over.wait(seconds)

    def wait_round(self) -> None:
        """Until no request is left that ran when this was called."""
        before = list(self._turns)
        wait_until(lambda: all(now > then for now, then in zip(self._turns, before, strict=True)))

    async def _run(self) -> None:
        await asyncio.gather(*(self._ask_on(place) for place in range(len(self._turns))))

    async def _ask_on(self, place: int) -> None:
        limits = httpx.Limits(max_connections=1)
        async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE, limits=limits) as client:
            while not self._is_over.is_set():
                query, documents = self._choose_texts()
                body = self._body(query, documents)
                kind = self._choose.random()
                if kind < CANCELLED:
                    await self._give_up(client, body)
                elif kind < CANCELLED + CUT_OFF:
                    await self._cut_off(body)
                else:
                    await self._ask(client, body, query, documents, is_hurried=kind > 1 - HURRIED)
                self._turns[place] += 1

    def _choose_texts(self) -> tuple[int, list[int]]:
        documents = self._choose.choices(range(len(self._truth.documents)), k=self._choose.randrange(1, 12))
        return self._choose.randrange(len(self._truth.queries)), documents

    def _body(self, query: int, documents: list[int]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "query": self._truth.queries[query],
            "documents": [self._truth.documents[document] for document in documents],
        }
        if self._choose.random() < 0.5:
            body["cache_salt"] = f"{self._choose.getrandbits(64):x}"
        return body

    async def _ask(
        self, client: httpx.AsyncClient, body: dict[str, Any], query: int, documents: list[int], is_hurried: bool
    ) -> None:
        if is_hurried:
            body["timeout_ms"] = self._choose.randrange(1, 100)
        while True:
            try:
                answer = await client.post("/rerank", json=body)
                break
            except httpx.TransportError:
                self.resets += 1
                if not self._retries:
                    self.lost += 1
                    return
        if is_hurried and answer.status_code == 503 and "retry-after" in answer.headers:
            return
        self.answers += 1
        self._check(answer, query, documents)

    def _check(self, answer: httpx.Response, query: int, documents: list[int]) -> None:
        """Every document once, best first, each with the score of its own pair."""
        if answer.status_code != 200:
            self.problems.append(f"{answer.status_code}: {answer.text}")
            return
        results = answer.json()["results"]
        scores = [result["relevance_score"] for result in results]
        if sorted(result["index"] for result in results) != list(range(len(documents))):
            self.problems.append(f"not one result for each of {len(documents)} documents: {results}")
        if scores != sorted(scores, reverse=True):
            self.problems.append(f"not in order: {scores}")
        for result in results:
            expected = self._truth.scores[query, documents[result["index"]]]
            if not abs(result["relevance_score"] - expected) <= TOLERANCE:
                self.problems.append(f"query {query}, documents {documents}: {result}, expected {expected}")

    async def _give_up(self, client: httpx.AsyncClient, body: dict[str, Any]) -> None:
        """Hang up while the server works."""
        try:
            async with asyncio.timeout(self._choose.random() * 0.05):
                await client.post("/rerank", json=body)
        except (TimeoutError, httpx.TransportError):
            self.given_up += 1

    async def _cut_off(self, body: dict[str, Any]) -> None:
        """Hang up half-way through the body."""
        content = json.dumps(body).encode()
        head = f"POST /rerank HTTP/1.1\r\nhost: test\r\ncontent-length: {len(content)}\r\n\r\n".encode()
        address = urlsplit(self._url)
        try:
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(head + content[: len(content) // 2])
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except OSError:
            pass  # the server has gone: so has this request, as it was meant to
        self.given_up += 1
