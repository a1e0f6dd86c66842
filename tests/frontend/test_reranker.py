"""R2 and R3 of `frontend.reranker`: what is on its way at once, and what is done twice."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import cast

import pytest

from frontend.ranking import EmbeddingsInput, Input, RankingTask, TextInput
from frontend.reranker import Reranker
from frontend.tokenizer import StatelessTokenizer, TokenizedTexts
from ipc.client import ServiceClient
from ipc.messages import KEY_BYTES, Encode, Role, Score
from tests.frontend.desk import DIM, FINGERPRINT, Desk, with_model

LIMIT = 30.0  # seconds that anything here may take


def text(number: int) -> TextInput:
    return TextInput(f"heart {number}", number.to_bytes(KEY_BYTES, "little"))


def value(rows: int) -> EmbeddingsInput:
    return EmbeddingsInput(bytes(rows * DIM * 4), "float32", rows, DIM)


def task(query: Input, documents: Sequence[Input]) -> RankingTask:
    deadline = time.monotonic() + LIMIT
    return RankingTask([query], documents, None, b"someone!", deadline, 32, 180, fingerprint=FINGERPRINT)


def run(test: Coroutine[None, None, None]) -> None:
    asyncio.run(asyncio.wait_for(test, LIMIT))


def reranker_of(worker: Desk, engine: Desk | None = None) -> Reranker:
    return Reranker(cast(ServiceClient, worker), cast(ServiceClient, engine) if engine is not None else None, 2)


def test_a_request_has_few_parts_on_their_way_however_many_it_is() -> None:
    async def test() -> None:
        worker = Desk(part_pairs=10)
        reranker = reranker_of(worker, Desk())
        await with_model(reranker, worker)
        result = await reranker.score(task(text(0), [text(number) for number in range(1, 100)]))
        assert len(result.scores) == 99 and len(worker.asked) == 10
        assert worker.most == 2
        reranker.close()

    run(test())


def test_all_requests_together_supply_no_more_than_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part brings a query of one row and a document of a hundred; there is room for three, and a bit."""
    monkeypatch.setattr("frontend.reranker.BUDGET_BYTES", 3 * 101 * DIM * 4 + DIM)

    async def test() -> None:
        worker = Desk(part_pairs=1)
        reranker = reranker_of(worker)
        results = await asyncio.gather(*[reranker.score(task(value(1), [value(100)] * 5)) for _ in range(5)])
        assert [len(result.scores) for result in results] == [5] * 5 and len(worker.asked) == 25
        assert worker.most == 3
        reranker.close()

    run(test())


class CountingTokenizer(StatelessTokenizer):
    """It remembers what it was asked for."""

    made: Counter[str]

    def encode(
        self, role: Role, texts: Sequence[str], limit: int, truncation: bool, names: Sequence[str]
    ) -> TokenizedTexts:
        self.made.update(texts)
        return super().encode(role, texts, limit, truncation, names)


@pytest.mark.parametrize("has_engine", [True, False], ids=["engine", "worker-encodes"])
def test_no_text_is_tokenised_twice_and_no_query_encoded_twice_for_a_request(
    has_engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that forgets everything at once is asked three times for each part, and each part brings the query."""
    monkeypatch.setattr(CountingTokenizer, "made", Counter(), raising=False)
    monkeypatch.setattr("frontend.reranker.StatelessTokenizer", CountingTokenizer)
    documents = [text(number) for number in range(1, 60)]

    async def test() -> None:
        lost = {text(0).key, *(document.key for document in documents[::2])}
        scores_before_all_is_lost = 10

        def misses(key: bytes) -> bool:
            return key in lost or len(worker.asked) > scores_before_all_is_lost

        def holds(message: Score | Encode) -> bool:
            """A part that brings but the query comes first, then one that brings documents too: until it has."""
            roles = [other.role for other, _ in engine.asked if isinstance(other, Encode)] if engine is not None else []
            return isinstance(message, Encode) and message.role == "query" and "document" not in roles

        worker = Desk(7, misses, hosts_encoder=not has_engine)
        engine = Desk(holds=holds) if has_engine else None
        reranker = reranker_of(worker, engine)
        await with_model(reranker, worker)
        result = await reranker.score(task(text(0), documents))
        assert len(result.scores) == len(documents)
        named = Counter(key for _, keys in worker.asked for key in keys[1:])
        assert max(named.values()) == 3, "as often as a part is asked for"
        assert text(0).text in CountingTokenizer.made and len(CountingTokenizer.made) > len(documents) / 2
        assert CountingTokenizer.made.most_common(1)[0][1] == 1, CountingTokenizer.made.most_common(3)
        if engine is not None:
            queries = [
                keys for message, keys in engine.asked if isinstance(message, Encode) and message.role == "query"
            ]
            assert queries == [[text(0).key]]
        reranker.close()

    run(test())
