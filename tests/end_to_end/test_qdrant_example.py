"""The example with a vector database: what it finds and reranks is ranked as the texts themselves are."""

from __future__ import annotations

import sys

import pytest

from tests.end_to_end.running_server import Server
from tests.test_examples import ANSWERS, SAMPLE, load


def test_qdrant_s_candidates_are_ranked_as_their_texts_are(
    shared_server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load("qdrant_rerank")
    question = SAMPLE["query"]
    passages = [document["text"] for document in SAMPLE["documents"]]
    database = example.index(shared_server.url, passages)
    (query,) = example.embed(shared_server.url, [question], "query")
    candidates = example.search(database, query, len(passages))
    ranked = example.rerank(shared_server.url, query, [rows for _, rows in candidates])
    database.close()
    scores = {candidates[place][0]: score for place, score in ranked}
    expected = shared_server.scores(question, passages)
    assert [scores[number] for number in range(len(passages))] == pytest.approx(expected, abs=0.01)
    best = [SAMPLE["documents"][candidates[place][0]]["title"] for place, _ in ranked[:4]]
    assert set(best) == ANSWERS
    monkeypatch.setattr(sys, "argv", ["qdrant_rerank.py", "--url", shared_server.url, "--candidates", "5"])
    assert example.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == question and len(lines) == 6
