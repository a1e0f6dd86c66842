"""Promise P3 through the whole server: every format, 1, 2 and 4 API servers, any mix of traffic.

1 and 4 only where it is asked for: pytest -m long tests/end_to_end/test_fidelity.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import MultiVectorEncoder

from tests.end_to_end.running_server import Floats, Server, maxsim
from tests.engine.checkpoints import write_modern, write_pylate, write_stanford, write_xlmr
from tests.engine.test_parity import write_native

TOLERANCE = 1e-3  # P3: up to 64 query rows in float32
QUERIES = [
    "Which animal has three hearts?",
    "naïve Ünïcode, 東京 and emoji 🙂",
    "a query that is a good deal longer than the sixteen tokens which these small models give to queries, so it is cut",
    "text with [MASK] and [SEP] inside, and [unused0] [Q] markers",
    "moss",
]
DOCUMENTS = [
    "An octopus has three hearts, and its blood is blue.",
    "?!... (--)",
    "word " * 200,
    "Crème brûlée; well-known, isn't it? [unused1] [D] [SEP]",
    "short",
    "Mosses have no roots; they drink through their leaves.",
    "!",
    "The deep sea is dark, cold, and full of animals that make their own light (most of them blue).",
]
FORMATS: dict[str, Callable[[Path], Path]] = {
    "stanford": lambda path: write_stanford(path),
    "stanford-attends": lambda path: write_stanford(path, attend_to_mask_tokens=True),
    "pylate-two-dense-no-skiplist": lambda path: write_pylate(path, dims=(24, 8), skiplist_words=[]),
    "xlmr": lambda path: write_xlmr(path),
    "modern": lambda path: write_modern(path),
    "native-min": lambda path: write_native(path, expansion={"strategy": "min", "length": 12, "attend": True}),
}


@dataclass(frozen=True)
class Serving:
    """A server and what the reference says of every pair."""

    server: Server
    expected: Floats  # [queries, documents]


@pytest.fixture(scope="module", params=FORMATS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Floats]:
    """A model on disk and the reference's scores of all pairs."""
    directory = FORMATS[request.param](tmp_path_factory.mktemp(request.param) / "model")
    reference: Any = MultiVectorEncoder(str(directory), device="cpu")
    queries = [np.asarray(rows) for rows in reference.encode_query(QUERIES)]
    documents = [np.asarray(rows) for rows in reference.encode_document(DOCUMENTS)]
    scores = [[maxsim(query, rows) if len(rows) else 0.0 for rows in documents] for query in queries]
    return directory, np.asarray(scores, dtype=np.float32)


@pytest.fixture(
    scope="module", params=[pytest.param(1, marks=pytest.mark.long), 2, pytest.param(4, marks=pytest.mark.long)]
)
def serving(request: pytest.FixtureRequest, checkpoint: tuple[Path, Floats]) -> Iterator[Serving]:
    directory, expected = checkpoint
    # a small budget and a store of a few documents: batches are cut and entries evicted all the time
    server = Server(
        str(directory), "--api-server-count", str(request.param), "--max-batch-tokens", "64",
        "--embedding-cache-size", "8MiB",
    )  # fmt: skip
    yield Serving(server, expected)
    server.end()


@dataclass(frozen=True)
class Asked:
    """One request: of a client's kind, by the places of its texts."""

    path: str
    query: int
    documents: Sequence[int]


def requests() -> st.SearchStrategy[Asked]:
    documents = st.lists(st.integers(0, len(DOCUMENTS) - 1), min_size=1, max_size=2 * len(DOCUMENTS))
    return st.builds(Asked, st.sampled_from(["/rerank", "/v2/rerank", "/score"]), st.integers(0, 4), documents)


@given(mix=st.lists(requests(), min_size=1, max_size=8))
@settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow])
def test_every_answer_in_any_mix_of_traffic_is_the_reference_s(serving: Serving, mix: list[Asked]) -> None:
    with httpx.Client(base_url=serving.server.url, timeout=60) as client, ThreadPoolExecutor(len(mix)) as pool:
        answers = list(pool.map(lambda asked: ask(client, asked), mix))
    for asked, scores in zip(mix, answers, strict=True):
        expected = serving.expected[asked.query, list(asked.documents)]
        np.testing.assert_allclose(scores, expected, atol=TOLERANCE, rtol=0)
        order = np.argsort(-np.asarray(scores), kind="stable")
        fall = -np.diff(expected[order])  # in our order the reference's scores never rise by more than rounding
        assert (fall > -2 * TOLERANCE).all()


def ask(client: httpx.Client, asked: Asked) -> list[float]:
    """The scores, in the order of the documents."""
    query, documents = QUERIES[asked.query], [DOCUMENTS[place] for place in asked.documents]
    is_score = asked.path == "/score"
    body = {"text_1": query, "text_2": documents} if is_score else {"query": query, "documents": documents}
    answer = client.post(asked.path, content=json.dumps(body))
    assert answer.status_code == 200, answer.text
    results = answer.json()["data" if is_score else "results"]
    name = "score" if is_score else "relevance_score"
    return [result[name] for result in sorted(results, key=lambda result: int(result["index"]))]


def test_the_self_check_is_shown_and_runs_once_per_model(start: Callable[..., Server], tmp_path: Path) -> None:
    arguments = [str(write_stanford(tmp_path / "model")), "--cache-directory", str(tmp_path / "cache")]
    first = shown_check(start(*arguments))
    assert first["passed"] and first["pairs"] == 24 and 0 <= first["largest_difference"] <= first["tolerance"]
    (record,) = (tmp_path / "cache" / "self-checks").iterdir()
    content = json.loads(record.read_text())
    content["check"][0] = 23  # a mark: what the second start shows is what it read
    record.write_text(json.dumps(content))
    assert shown_check(start(*arguments)) == {**first, "pairs": 23}


def shown_check(server: Server) -> dict[str, Any]:
    (model,) = httpx.get(f"{server.url}/v1/models").json()["data"]
    check: dict[str, Any] = model["self_check"]
    return check


def test_deterministic_scores_are_bitwise_the_same_in_any_traffic(start: Callable[..., Server]) -> None:
    scores = []
    for documents in (DOCUMENTS, DOCUMENTS[::-1]):
        server = start("--deterministic")  # a new store: everything is encoded again
        by_text = dict(zip(documents, server.scores(QUERIES[0], documents), strict=True))
        scores.append([by_text[document] for document in DOCUMENTS])
        server.end()
    assert scores[0] == scores[1]
