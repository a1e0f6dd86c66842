"""Answers of a real server: right, in the right shape, and cheap the second time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.end_to_end.running_server import Server, as_input, maxsim, random_embeddings

DIM = 384
QUERY = "Why do leaves change their colour in autumn?"
DOCUMENTS = [
    "The green of a leaf is chlorophyll; in autumn it is broken down, and yellow carotenoids show.",
    "An engine turns heat into motion.",
    "Leaves! (They fall.) ... -- 'autumn'; \"colour\": 100 %, [sic] & more?",
    "",
    "word " * 700,
    "Chlorophyll ist ein grüner Farbstoff. 葉緑素は緑色の色素です。",
    "The [SEP] token and the [MASK] token are parsed as the reference parses them.",
]


def test_scores_are_the_reference_s(shared_server: Server, reference: Any) -> None:
    """P3: within 1e-3 up to 64 query rows, and the same order."""
    query = np.asarray(reference.encode_query([QUERY])[0])
    documents = [np.asarray(rows) for rows in reference.encode_document(DOCUMENTS)]
    expected = [maxsim(query, rows) if len(rows) else 0.0 for rows in documents]
    scores = shared_server.scores(QUERY, DOCUMENTS)
    assert scores == pytest.approx(expected, abs=1e-3)
    assert np.argsort(scores).tolist() == np.argsort(expected).tolist()


def test_answers_are_sorted_and_cut(shared_server: Server) -> None:
    results = shared_server.post("/rerank", {"query": QUERY, "documents": DOCUMENTS, "top_n": 3}).json()["results"]
    assert [result["relevance_score"] for result in results] == sorted(
        (result["relevance_score"] for result in results), reverse=True
    )
    assert len(results) == 3
    assert all(result["document"] == {"text": DOCUMENTS[result["index"]]} for result in results)


def test_equal_scores_keep_the_order_of_the_input(shared_server: Server) -> None:
    results = shared_server.post("/rerank", {"query": QUERY, "documents": ["same"] * 5}).json()["results"]
    assert [result["index"] for result in results] == [0, 1, 2, 3, 4]


def test_embeddings_by_value_and_texts_mix(shared_server: Server) -> None:
    query = random_embeddings(9, DIM, 1)
    rows = [random_embeddings(length, DIM, length) for length in (1, 17, 180)]
    mixed: list[Any] = [as_input(rows[0]), "a text between", as_input(rows[1]), as_input(rows[2], "float16")]
    scores = shared_server.scores(as_input(query), mixed)
    assert [scores[0], scores[2]] == pytest.approx([maxsim(query, rows[0]), maxsim(query, rows[1])], abs=1e-4)
    assert scores[3] == pytest.approx(maxsim(query, rows[2].astype(np.float16).astype(np.float32)), abs=1e-4)
    text_query = shared_server.scores("a text query", [as_input(rows[0])])
    assert -1.0 <= text_query[0] <= 512


def test_embeddings_have_no_text_to_return(shared_server: Server) -> None:
    answer = shared_server.post(
        "/rerank", {"query": "q", "documents": [as_input(random_embeddings(3, DIM, 1)), "text"]}
    )
    by_index = {result["index"]: result for result in answer.json()["results"]}
    assert "document" not in by_index[0]
    assert by_index[1]["document"] == {"text": "text"}


def test_second_time_nothing_is_tokenised_or_encoded(shared_server: Server) -> None:
    documents = [f"document number {number} of this test only" for number in range(50)]
    first = shared_server.post("/rerank", {"query": QUERY, "documents": documents})
    tokens, texts = shared_server.metric("maxsimd_encoded_tokens_total"), shared_server.metric("maxsimd_engine_texts")
    second = shared_server.post("/rerank", {"query": QUERY, "documents": documents})
    assert shared_server.metric("maxsimd_encoded_tokens_total") == tokens
    assert shared_server.metric("maxsimd_engine_texts") == texts
    assert second.json()["results"] == first.json()["results"]
    assert second.json()["usage"] == first.json()["usage"]
    assert second.headers["x-maxsimd-encoded-tokens"] == "0"
    assert float(second.headers["x-maxsimd-tokenize-ms"]) == 0.0


def test_request_larger_than_a_part_is_cut_and_put_together(shared_server: Server) -> None:
    """More embeddings than one message carries, and the same document again in another place."""
    query = random_embeddings(8, DIM, 5)
    rows = [random_embeddings(400, DIM, seed) for seed in range(40)]
    documents = [as_input(rows[index % 40]) for index in range(60)]
    scores = shared_server.scores(as_input(query), documents)
    assert scores == pytest.approx([maxsim(query, rows[index % 40]) for index in range(60)], abs=1e-4)


def test_documents_of_several_messages_keep_their_places(shared_server: Server) -> None:
    texts = [f"one of the few texts that come again and again: {number}" for number in range(23)]
    once = shared_server.scores(QUERY, texts)
    assert shared_server.scores(QUERY, [texts[place % 23] for place in range(4096)]) == pytest.approx(
        [once[place % 23] for place in range(4096)], abs=1e-6
    )


@pytest.mark.parametrize(
    ("path", "shows_by_default", "api_version"),
    [("/rerank", True, "1"), ("/v1/rerank", True, "1"), ("/v2/rerank", False, "2")],
)
def test_rerank_answer_has_the_shape_all_clients_parse(
    shared_server: Server, path: str, shows_by_default: bool, api_version: str
) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS[:2], "model": None, "top_n": None, "max_tokens_per_doc": None}
    answer = shared_server.post(path, body).json()
    assert set(answer) == {"id", "model", "created", "usage", "results", "meta"}
    assert answer["meta"]["api_version"] == {"version": api_version}
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    for shows in (None, True, False):
        results = shared_server.post(path, {**body, "return_documents": shows}).json()["results"]
        expected = shows_by_default if shows is None else shows
        assert all(("document" in result) == expected for result in results)


@pytest.mark.parametrize(
    "fields", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")]
)
def test_score_takes_all_pairs_of_fields(shared_server: Server, fields: tuple[str, str]) -> None:
    one_to_many = shared_server.post("/score", {fields[0]: QUERY, fields[1]: DOCUMENTS}).json()
    assert [entry["index"] for entry in one_to_many["data"]] == list(range(len(DOCUMENTS)))
    assert [entry["score"] for entry in one_to_many["data"]] == shared_server.scores(QUERY, DOCUMENTS)
    assert one_to_many["object"] == "list" and one_to_many["usage"]["completion_tokens"] == 0
    one_to_one = shared_server.post("/v1/score", {fields[0]: QUERY, fields[1]: DOCUMENTS[0]}).json()["data"]
    assert [entry["score"] for entry in one_to_one] == shared_server.scores(QUERY, DOCUMENTS[:1])


def test_score_n_to_n_pairs_by_position(shared_server: Server) -> None:
    queries = ["first", as_input(random_embeddings(5, DIM, 3)), "first"]
    documents = ["one", "two", as_input(random_embeddings(6, DIM, 4))]
    answer = shared_server.post("/score", {"queries": queries, "documents": documents}).json()["data"]
    expected = [shared_server.scores(query, [document])[0] for query, document in zip(queries, documents, strict=True)]
    assert [entry["score"] for entry in answer] == expected


def test_score_modes(shared_server: Server) -> None:
    raw = shared_server.scores(QUERY, DOCUMENTS)
    mean = shared_server.scores(QUERY, DOCUMENTS, score_mode="mean")
    unit = shared_server.scores(QUERY, DOCUMENTS, score_mode="unit")
    assert all(-1.0 <= value <= 1.0 for value in mean)
    assert unit == pytest.approx([(value + 1) / 2 for value in mean])
    ratios = {round(a / b, 3) for a, b in zip(raw, mean, strict=True) if abs(b) > 0.01}
    assert len(ratios) == 1  # the number of query rows


def test_lower_document_limit_is_another_embedding(shared_server: Server) -> None:
    """The effective limit is a part of the name: a cut document never answers for a whole one."""
    long = "a long text about leaves " * 30
    whole = shared_server.post("/rerank", {"query": QUERY, "documents": [long]}).json()["usage"]["prompt_tokens"]
    cut = shared_server.post("/rerank", {"query": QUERY, "documents": [long], "max_tokens_per_doc": 20}).json()
    assert cut["usage"]["prompt_tokens"] < whole
    refused = shared_server.post(
        "/rerank", {"query": QUERY, "documents": ["short", long], "max_tokens_per_doc": 20, "truncation": False}
    )
    assert refused.status_code == 400 and "documents[1]" in refused.json()["message"]
