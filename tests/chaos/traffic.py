"""Clients that keep requests in flight, break off some of them, and hold every answer against the reference.

Each connection asks one request after the other: documents at random, some twice, texts and embeddings by value mixed;
half of the requests have a salt of their own, so that their texts are encoded again; some ask for token embeddings,
some for what must be refused. Of all requests most are waited for; some are given up while they run, some are cut off
half-way through their body, some have hardly any time.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from tests.chaos.truth import DIM, TOLERANCE, Truth
from tests.end_to_end.running_server import Floats, as_input, random_embeddings, wait_until

# shares of the requests
CANCELLED, CUT_OFF, HURRIED = 0.06, 0.04, 0.04
EMBEDDED, WRONG = 0.06, 0.06
WRONG_REQUESTS: list[tuple[str, Any, int]] = [  # and the status that each of them gets
    ("/rerank", {"query": "no documents"}, 400),
    ("/rerank", {"query": "a number", "documents": [7]}, 400),
    ("/rerank", {"query": "too wide", "documents": [as_input(random_embeddings(2, DIM + 1, 5))]}, 400),
    ("/rerank", {"query": "no time", "documents": ["a"], "timeout_ms": "soon"}, 400),
    ("/score", {"queries": ["two", "queries"], "documents": ["and", "three", "documents"]}, 400),
    ("/pooling", {"input": ["a"], "dimensions": DIM - 1}, 400),
    ("/no/such/path", {}, 404),
]
PATIENCE = 120.0  # seconds a client waits; a server answers within --request-timeout
JOIN_LIMIT = 150.0


class Traffic:
    """Load on a server for as long as the `with` block runs; at its end every request has ended.

    Args:
        other: what may be answered too, instead: a whole answer is the one's or the other's.
        retries: ask again, on a new connection, where one was reset. Else its request is lost.
        pause: seconds between a connection's requests.
    """

    def __init__(
        self,
        url: str,
        truth: Truth,
        connections: int = 12,
        seed: int = 0,
        retries: bool = False,
        pause: float = 0.0,
        other: Truth | None = None,
    ) -> None:
        self.answers = 0  # right or wrong
        self.resets = 0  # connections that ended before their answer
        self.reset_errors: list[str] = []  # how, of the first ones
        self.lost = 0  # requests that ended so
        self.given_up = 0
        self.problems: list[str] = []
        self._url = url
        self._truth = truth
        self._truths = [truth] if other is None else [truth, other]
        self._choose = random.Random(seed)
        self._retries = retries
        self._pause = pause
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
                    await self._give_up(body, query, documents)
                elif kind < CANCELLED + CUT_OFF:
                    await self._cut_off(body)
                elif kind < CANCELLED + CUT_OFF + EMBEDDED:
                    await self._embed(client)
                elif kind < CANCELLED + CUT_OFF + EMBEDDED + WRONG:
                    await self._ask_wrongly(client)
                else:
                    await self._rank(client, body, query, documents, is_hurried=kind > 1 - HURRIED)
                self._turns[place] += 1
                await asyncio.sleep(self._pause)

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

    async def _rank(
        self, client: httpx.AsyncClient, body: dict[str, Any], query: int, documents: list[int], is_hurried: bool
    ) -> None:
        if is_hurried:
            body["timeout_ms"] = self._choose.randrange(1, 100)

        def check(answer: httpx.Response) -> None:
            if not (is_hurried and answer.status_code == 503 and "retry-after" in answer.headers):
                self._check(answer, query, documents)

        await self._ask(client, "/rerank", body, check)

    async def _embed(self, client: httpx.AsyncClient) -> None:
        """Token embeddings of some texts, each of which must be the reference's."""
        role = self._choose.choice(("query", "document"))
        chosen = self._choose.choices(list(self._truth.embeddings[role]), k=self._choose.randrange(1, 6))
        body = {"input": chosen, "input_type": role, "encoding_format": "base64", "embed_dtype": "float32"}

        def check(answer: httpx.Response) -> None:
            if answer.status_code != 200:
                self.problems.append(f"/pooling: {answer.status_code}: {answer.text}")
                return
            data = [base64.b64decode(each["data"]) for each in answer.json()["data"]]
            rows = [np.frombuffer(each, "<f4").reshape(-1, DIM) for each in data]
            if not any(_are_near(rows, [truth.embeddings[role][text] for text in chosen]) for truth in self._truths):
                self.problems.append(f"/pooling: {chosen} as a {role}: other embeddings than the reference's")

        await self._ask(client, "/pooling", body, check)

    async def _ask_wrongly(self, client: httpx.AsyncClient) -> None:
        path, body, status = self._choose.choice(WRONG_REQUESTS)

        def check(answer: httpx.Response) -> None:
            if answer.status_code != status:
                self.problems.append(f"{path} {body}: {answer.status_code}, expected {status}: {answer.text}")

        await self._ask(client, path, body, check)

    async def _ask(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any], check: Callable[[httpx.Response], None]
    ) -> None:
        """One request, whose answer goes to `check`."""
        while True:
            try:
                answer = await client.post(path, json=body)
                break
            except httpx.TransportError as error:
                self.resets += 1
                self.reset_errors += [f"{path}: {error!r}"] if len(self.reset_errors) < 20 else []
                if not self._retries:
                    self.lost += 1
                    return
        self.answers += 1
        check(answer)

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
        expected = [[truth.scores[query, documents[result["index"]]] for result in results] for truth in self._truths]
        if not any(np.allclose(scores, one, rtol=0, atol=TOLERANCE) for one in expected):
            self.problems.append(f"query {query}, documents {documents}: {results}, expected {expected}")

    async def _give_up(self, body: dict[str, Any], query: int, documents: list[int]) -> None:
        """Hang up while the server works; an answer that was there before is held against the reference as any other.

        On a connection of its own: httpx's pool may lose the place of a request that was cancelled, and whoever
        asks on it next then waits for PATIENCE in vain.
        """
        try:
            async with httpx.AsyncClient(base_url=self._url, timeout=PATIENCE) as client:
                async with asyncio.timeout(self._choose.random() * 0.05):
                    answer = await client.post("/rerank", json=body)
        except (TimeoutError, httpx.TransportError):
            self.given_up += 1
            return
        self.answers += 1
        self._check(answer, query, documents)

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


def _are_near(rows: Sequence[Floats], expected: Sequence[Floats]) -> bool:
    return len(rows) == len(expected) and all(
        ours.shape == theirs.shape and np.allclose(ours, theirs, atol=TOLERANCE)
        for ours, theirs in zip(rows, expected, strict=True)
    )
