"""One server, many languages: TEI's, Infinity's and NIM's requests get the answers that their clients read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.frontend.surface import DOCUMENTS, QUERY, SCORES, Surface

BEST_FIRST = [3, 1, 0, 2]  # of SCORES; equal ones in the order of the input


def test_texts_make_it_tei_s() -> None:
    answer = Surface().post("/rerank", {"query": QUERY, "texts": DOCUMENTS}).json()
    assert answer == [{"index": index, "score": SCORES[index]} for index in BEST_FIRST]


def test_tei_returns_texts_if_asked_and_cuts_at_top_n() -> None:
    body = {"query": QUERY, "texts": DOCUMENTS, "return_text": True, "top_n": 2, "raw_scores": False,
            "truncation_direction": "Right", "truncate": True}  # fmt: skip
    answer = Surface().post("/rerank", body).json()
    assert answer == [{"index": index, "score": SCORES[index], "text": DOCUMENTS[index]} for index in BEST_FIRST[:2]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": []}, "texts: empty, at least 1"),
        ({"truncation_direction": "left"}, "truncation_direction: texts are cut on the right only"),
    ],
)
def test_tei_s_errors_are_tei_s(change: dict[str, Any], message: str) -> None:
    response = Surface().post("/rerank", {"query": QUERY, "texts": DOCUMENTS, **change})
    assert response.status_code == 400
    assert response.json() == {"error": message, "error_type": "validation"}


def test_raw_scores_win_over_the_server_s_mode() -> None:
    server = Surface(score_mode="unit")
    unit = server.post("/rerank", {"query": QUERY, "texts": DOCUMENTS}).json()
    raw = server.post("/rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True}).json()
    assert all(0 <= each["score"] <= 1 for each in unit)
    assert [each["score"] for each in raw] == [SCORES[index] for index in BEST_FIRST]


def test_documents_win_over_texts() -> None:
    answer = Surface().post("/rerank", {"query": QUERY, "documents": DOCUMENTS, "texts": ["x"]}).json()
    assert len(answer["results"]) == len(DOCUMENTS)


def test_neither_documents_nor_texts_is_named() -> None:
    response = Surface().post("/rerank", {"query": QUERY})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "documents")


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank"])
def test_infinity_s_documents_are_strings(path: str) -> None:
    server = Surface(dialect="infinity")
    body = {"query": QUERY, "documents": DOCUMENTS, "return_documents": True, "model": "default/not-specified"}
    answer = server.post(path, body).json()
    assert answer["object"] == "rerank" and answer["id"].startswith("infinity-")
    assert answer["results"] == [
        {"index": index, "relevance_score": SCORES[index], "document": DOCUMENTS[index]} for index in BEST_FIRST
    ]
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0


def test_infinity_s_documents_are_null_unless_asked_for() -> None:
    answer = Surface(dialect="infinity").post("/rerank", {"query": QUERY, "documents": DOCUMENTS}).json()
    assert [result["document"] for result in answer["results"]] == [None] * len(DOCUMENTS)


def test_cohere_stays_cohere_on_a_server_that_speaks_infinity() -> None:
    answer = Surface(dialect="infinity").post("/v2/rerank", {"query": QUERY, "documents": DOCUMENTS}).json()
    assert "object" not in answer and answer["meta"]["api_version"] == {"version": "2"}


@pytest.mark.parametrize("path", ["/v1/ranking", "/ranking"])
def test_nim_ranks_all_passages(path: str) -> None:
    passages = [{"text": document} for document in DOCUMENTS]
    answer = Surface().post(path, {"model": "m", "query": {"text": QUERY}, "passages": passages, "truncate": "END"})
    assert answer.json()["rankings"] == [{"index": index, "logit": SCORES[index]} for index in BEST_FIRST]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"passages": []}, "passages"),
        ({"query": {}}, "query.text"),
        ({"query": {"text": ""}}, "query.text"),
        ({"passages": [{"text": 1}]}, "passages[0].text"),
        ({"truncate": "MIDDLE"}, "truncate"),
    ],
)
def test_nim_s_wrong_fields_are_named(change: dict[str, Any], field: str) -> None:
    body = {"query": {"text": QUERY}, "passages": [{"text": "a"}], **change}
    response = Surface().post("/v1/ranking", body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, field)


def test_tei_s_info_names_a_reranker() -> None:
    info = Surface().request("GET", "/info").json()
    assert info["model_id"] == "the-model" and "reranker" in info["model_type"]
    assert info["max_input_length"] == 180 and info["auto_truncate"] is True


def test_infinity_s_models_can_rerank() -> None:
    (model,) = Surface().request("GET", "/models").json()["data"]
    assert (model["id"], model["capabilities"]) == ("the-model", ["rerank"])
