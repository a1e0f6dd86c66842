"""Explanations of a real server, held against the token embeddings that it gives out and the texts that it was sent."""

from __future__ import annotations

import base64
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.end_to_end.running_server import Floats, Server, as_input, random_embeddings
from tests.end_to_end.test_rerank import DIM, DOCUMENTS, QUERY

TEXTS = [
    *DOCUMENTS,
    "\r\n  Leaves\u00a0\u2014 \U0001f341\U0001f342 \u2014 in AUTUMN,\r\nde\u0301ja\u0300 vu: "
    "\uff21\uff35\uff34 \u79cb\u306e\u8449",
    "The colour of a leaf. " * 400,
]
Match = dict[str, Any]


def query_embeddings(server: Server, texts: Sequence[str]) -> list[Floats]:
    answer = server.post("/v1/embeddings", {"input": list(texts), "is_query": True}).json()
    return [np.asarray(each["embedding"], np.float32).reshape(-1, DIM) for each in answer["data"]]


def document_embeddings(server: Server, texts: Sequence[str]) -> list[Floats]:
    answer = server.post("/pooling", {"input": list(texts), "encoding_format": "base64"}).json()
    return [np.frombuffer(base64.b64decode(each["data"]), "<f4").reshape(-1, DIM) for each in answer["data"]]


def check_rows(matches: list[Match], score: float, query: Floats, document: Floats) -> None:
    """Every query row once, its best document row, and a sum that is the score."""
    if not len(document):
        assert matches == [] and score == 0.0
        return
    assert [match["query_row"] for match in matches] == list(range(len(query)))
    similarity = query.astype(np.float64) @ document.astype(np.float64).T
    for match in matches:
        row = similarity[match["query_row"]]
        assert match["similarity"] == pytest.approx(row[match["document_row"]], abs=2e-4)
        assert row[match["document_row"]] >= row.max() - 2e-4
    assert sum(match["similarity"] for match in matches) == pytest.approx(score, abs=1e-3)


def check_places(matches: list[Match], query: str, document: str) -> None:
    """What stands at a span is its token, but for what this model's normalizer does."""
    for match in matches:
        for text, side in ((query, "query"), (document, "document")):
            token, span = match[f"{side}_token"], match.get(f"{side}_span")
            assert (span is None) == (token in ("[CLS]", "[SEP]") and "[SEP]" not in text)
            if span is not None and token not in ("[UNK]", "[SEP]", "[MASK]"):
                assert plain(text[span[0] : span[1]]) == token.removeprefix("##")


def plain(text: str) -> str:
    """Lower case, without accents."""
    letters = unicodedata.normalize("NFD", text.lower())
    return "".join(letter for letter in letters if unicodedata.category(letter) != "Mn")


def results_of(server: Server, path: str = "/rerank", **body: Any) -> list[dict[str, Any]]:
    answer = server.post(path, body)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def check_texts(server: Server, truth: Server, **more: Any) -> None:
    """All of TEXTS explained by a server, held against another one's embeddings."""
    (query,) = query_embeddings(truth, [QUERY])
    documents = document_embeddings(truth, TEXTS)
    results = results_of(server, query=QUERY, documents=TEXTS, explain=True, **more)
    assert len(results) == more.get("top_n", len(TEXTS))
    for result in results:
        index, matches = result["index"], result["explanation"]
        check_rows(matches, result["relevance_score"], query, documents[index])
        if "[SEP]" not in TEXTS[index]:
            check_places(matches, QUERY, TEXTS[index])


def test_matches_are_the_best_of_the_token_embeddings_and_stand_where_they_say(shared_server: Server) -> None:
    """Twice: the second time nothing is encoded. Long texts are cut, and one has no token at all."""
    for _ in range(2):
        check_texts(shared_server, shared_server)
    spans = [
        TEXTS[7][slice(*match["document_span"])]
        for match in results_of(shared_server, query="autumn leaves", documents=[TEXTS[7]], explain=True)[0][
            "explanation"
        ]
        if "query_span" in match
    ]
    assert spans == ["AUTUMN", "Leaves"]


def test_only_what_is_shown_is_aligned(shared_server: Server) -> None:
    before = shared_server.metric("maxsimd_worker_aligned_pairs")
    results_of(shared_server, query=QUERY, documents=TEXTS)
    assert shared_server.metric("maxsimd_worker_aligned_pairs") == before
    results = results_of(shared_server, query=QUERY, documents=TEXTS, explain=True, top_n=2)
    assert len(results) == 2 and all(result["explanation"] for result in results)
    assert shared_server.metric("maxsimd_worker_aligned_pairs") == before + 2


def test_explaining_changes_no_score(shared_server: Server) -> None:
    plainly = results_of(shared_server, query=QUERY, documents=TEXTS)
    explained = results_of(shared_server, query=QUERY, documents=TEXTS, explain=True, relevant_spans={})
    added = {"explanation", "relevant_spans"}
    assert [{key: result[key] for key in result if key not in added} for result in explained] == plainly


def test_embeddings_by_value_are_explained_by_their_rows(shared_server: Server) -> None:
    query = random_embeddings(9, DIM, 1)
    rows = [random_embeddings(length, DIM, length) for length in (1, 17, 180)]
    documents = [as_input(each) for each in rows]
    for result in results_of(shared_server, query=as_input(query), documents=documents, explain=True):
        check_rows(result["explanation"], result["relevance_score"], query, rows[result["index"]])
        assert all(set(match) == {"similarity", "query_row", "document_row"} for match in result["explanation"])
    (text,) = document_embeddings(shared_server, [TEXTS[0]])
    (mixed,) = results_of(shared_server, query=as_input(query), documents=[TEXTS[0]], explain=True)
    check_rows(mixed["explanation"], mixed["relevance_score"], query, text)
    assert all("query_token" not in match and "document_token" in match for match in mixed["explanation"])


def test_pairs_are_explained_in_their_order(shared_server: Server) -> None:
    queries = [QUERY, "engines", QUERY]
    body = {"queries": queries, "documents": [TEXTS[1], TEXTS[1], TEXTS[0]], "explain": True, "score_mode": "unit"}
    data = shared_server.post("/score", body).json()["data"]
    embedded = query_embeddings(shared_server, queries)
    documents = document_embeddings(shared_server, [TEXTS[1], TEXTS[1], TEXTS[0]])
    for pair, query, document in zip(data, embedded, documents, strict=True):
        raw = (2 * pair["score"] - 1) * len(query)  # similarities are what they are in any score_mode
        check_rows(pair["explanation"], raw, query, document)


def test_a_lower_limit_explains_what_is_left_of_the_text(shared_server: Server) -> None:
    (result,) = results_of(shared_server, query=QUERY, documents=[TEXTS[0]], explain=True, max_tokens_per_doc=8)
    check_places(result["explanation"], QUERY, TEXTS[0])
    assert max(match.get("document_span", [0, 0])[1] for match in result["explanation"]) <= len(TEXTS[0]) // 3


def test_relevant_spans_are_the_words_of_the_text(shared_server: Server) -> None:
    spans = {"mode": "enabled", "threshold": 0.6}
    (result,) = results_of(
        shared_server, "/v2/rerank", query="autumn leaves", documents=[TEXTS[7]], relevant_spans=spans
    )
    found = [TEXTS[7][span["start"] : span["end"]] for span in result["relevant_spans"]]
    assert found == ["Leaves", "AUTUMN"]
    assert all(0.6 <= span["score"] <= 1.0 for span in result["relevant_spans"])
    assert "explanation" not in result and "document" not in result
    (best,) = results_of(
        *(shared_server, "/v2/rerank"),
        query="autumn leaves",
        documents=[TEXTS[7]],
        relevant_spans={**spans, "max_spans": 1},
    )
    assert best["relevant_spans"] == [max(result["relevant_spans"], key=lambda span: span["score"])]


def test_the_answer_in_the_documentation_is_the_servers(shared_server: Server) -> None:
    """docs/http.md, Explanations: a command, then one result of its answer."""
    section = (Path(__file__).parents[2] / "docs" / "http.md").read_text("utf-8").partition("## Explanations")[2]
    body, result = re.findall(r"-d '(.*?)'\n\n +(\{.*?\])\}\n\n", section, re.DOTALL)[0]
    expected = json.loads(result + "}")
    (found,) = results_of(shared_server, **json.loads(body))
    for key in ("index", "document"):
        assert found[key] == expected[key]
    assert found["relevance_score"] == pytest.approx(expected["relevance_score"], abs=0.01)
    numbers = [match.pop("similarity") for match in found["explanation"]]
    assert numbers == pytest.approx([match.pop("similarity") for match in expected["explanation"]], abs=0.01)
    assert found["explanation"] == expected["explanation"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("others", "arguments"),
    [
        pytest.param(190, ["--embedding-cache-size", "8MiB"], id="store-of-a-part-of-the-request"),
        pytest.param(
            10,
            ["--no-embedding-cache", "--embedding-cache-size", "32MiB", "--engine-placement", "worker"],
            id="nothing-is-kept-and-the-worker-encodes",
            marks=pytest.mark.long,
        ),
    ],
)
def test_texts_that_have_left_the_store_are_brought_again(
    start: Callable[..., Server], shared_server: Server, others: int, arguments: list[str]
) -> None:
    """Between the scores and the alignment, which is of a few of many documents."""
    server = start("--api-server-count", "2", *arguments)
    fillers = [f"Number {number} of many documents, about nothing in particular. " * 2 for number in range(others)]
    check_texts(server, shared_server)
    missed = server.metric("maxsimd_worker_store_misses")
    results = results_of(server, query=QUERY, documents=[*TEXTS, *fillers], explain=True, top_n=3)
    assert server.metric("maxsimd_worker_store_misses") > missed + len(fillers)
    documents = document_embeddings(shared_server, TEXTS)
    (query,) = query_embeddings(shared_server, [QUERY])
    for result in results:
        check_rows(result["explanation"], result["relevance_score"], query, documents[result["index"]])
