"""One server, many languages: TEI's, Infinity's and NIM's requests get the answers that their clients read."""

from __future__ import annotations

from typing import Any

import pytest

from frontend.auth import digest_of
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


@pytest.mark.parametrize(
    ("path", "fields", "result"),
    [
        ("/rerank", {"return_documents": False}, b'{"index":1,"relevance_score":3.0}'),
        ("/rerank", {"return_documents": None}, b'{"index":1,"relevance_score":3.0,"document":{"text":"a heart"}}'),
        ("/v2/rerank", {"return_documents": None}, b'{"index":1,"relevance_score":3.0}'),
        ("/v2/rerank", {"return_documents": True}, b'{"index":1,"relevance_score":3.0,"document":{"text":"a heart"}}'),
        ("/rerank", {"texts": ["", "a heart"]}, b'{"index":1,"score":3.0}'),
        ("/rerank", {"texts": ["", "a heart"], "return_text": True}, b'{"index":1,"score":3.0,"text":"a heart"}'),
    ],
)
def test_a_document_in_the_answer_byte_for_byte(path: str, fields: dict[str, Any], result: bytes) -> None:
    documents = {} if "texts" in fields else {"documents": ["", "a heart"]}
    answer = Surface().post(path, {"query": "a heart heart", **documents, **fields, "top_n": 1})
    assert b"[" + result + b"]" in answer.content


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


# --- errors of bodies that could not be decoded -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "keys"),
    [
        pytest.param("/rerank", {"query": QUERY, "texts": [1]}, {"error", "error_type"}, id="tei"),
        pytest.param("/v2/rerank", {"query": QUERY, "texts": [1]}, {"message", "id"}, id="cohere-with-texts"),
        pytest.param("/rerank", {"query": [["a"]], "documents": []}, {"code", "message"}, id="next-plaid"),
        pytest.param("/rerank", {"query_b64": 1, "documents": []}, {"code", "message"}, id="next-plaid-base64"),
        pytest.param("/rerank", {"query": QUERY, "documents": 1}, {"error", "detail", "message"}, id="vllm"),
        pytest.param(
            "/v1/embeddings", {"input": 1, "input_type": "query"}, {"detail", "code", "request_id"}, id="jina"
        ),
        pytest.param(
            "/v1/embeddings", {"input": "a", "embedding_type": "binary"}, {"detail", "code", "request_id"}, id="binary"
        ),
        pytest.param("/v1/embeddings", {"input": 1}, {"error", "detail", "message"}, id="vllm-embeddings"),
        pytest.param("/tokenize", {"inputs": [1]}, {"error", "error_type"}, id="tei-tokenize"),
        pytest.param("/tokenize", {"prompt": 1}, {"error", "detail", "message"}, id="vllm-tokenize"),
    ],
)
def test_a_wrong_body_is_refused_in_the_words_of_who_sent_it(path: str, body: dict[str, Any], keys: set[str]) -> None:
    response = Surface().post(path, body)
    assert (response.status_code, set(response.json())) == (400, keys)


@pytest.mark.parametrize(
    ("path", "body", "rule"),
    [
        ("/rerank", {"query": "q", "documents": ["d"], "score_mode": "x"}, "expected raw, mean or unit"),
        ("/rerank", {"query": "q", "documents": ["d"], "truncation_side": "left"}, "expected right"),
        ("/v1/rerank", {"query": "q", "documents": ["d"], "rank_fields": ["title"]}, "expected text"),
        ("/pooling", {"input": "a", "embed_dtype": "fp8_e4m3"}, "float16, bfloat16"),
        ("/pooling", {"input": "a", "encoding_format": "x"}, "expected float, base64, bytes or bytes_only"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "x"}, "expected float or base64"),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a"}], "truncate": "x"}, "expected NONE or END"),
        ("/v1/ranking", {"query": {"text": "q"}, "passages": [{"text": "a", "image": "x"}]}, "passages[0].image"),
    ],
)
def test_what_a_field_may_be_is_said(path: str, body: dict[str, Any], rule: str) -> None:
    response = Surface().post(path, body)
    assert response.status_code == 400 and rule in response.json()["message"]


def test_an_error_echoes_little_of_the_input() -> None:
    response = Surface().post("/pooling", {"input": "a", "encoding_format": "A" * 5000})
    assert response.status_code == 400 and response.json()["message"].count("A") <= 200
    assert "expected float, base64, bytes or bytes_only" in response.json()["message"]


# --- others -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [2, None])
def test_voyage_finds_data(top_k: int | None) -> None:
    body = {"query": QUERY, "documents": DOCUMENTS, "model": "rerank-2", "top_k": top_k, "truncation": True}
    answer = Surface().post("/v1/rerank", body).json()
    assert answer["data"] == [{"index": i, "relevance_score": SCORES[i]} for i in BEST_FIRST[:top_k]]
    assert [result["index"] for result in answer["results"]] == BEST_FIRST[:top_k]
    assert answer["usage"]["total_tokens"] > 0
    assert "data" not in Surface().post("/v1/rerank", {"query": QUERY, "documents": DOCUMENTS}).json()


def test_mixedbread_finds_data_with_inputs_if_asked() -> None:
    body = {"model": "m", "query": QUERY, "input": [*DOCUMENTS[:3], {"text": DOCUMENTS[3]}], "rank_fields": None}
    answer = Surface().post("/v1/reranking", body).json()
    assert answer["data"] == [{"index": i, "score": SCORES[i], "object": "rank_result"} for i in BEST_FIRST]
    assert (answer["object"], answer["top_k"], answer["return_input"]) == ("list", 4, False)
    answer = Surface().post("/v1/reranking", {**body, "top_k": 2, "return_input": True}).json()
    assert [each["input"] for each in answer["data"]] == [DOCUMENTS[i] for i in BEST_FIRST[:2]]
    assert (answer["top_k"], answer["return_input"]) == (2, True)
    wrong = Surface().post("/v1/reranking", {"query": QUERY, "input": [{}]})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "input[0]")


def test_nim_s_probes_need_no_key_and_its_metrics_do() -> None:
    surface = Surface(api_key_digests=(digest_of("key"),))
    live = surface.request("GET", "/v1/health/live")
    assert live.json() == {"object": "health.response", "message": "Service is live.", "status": "live"}
    ready = surface.request("GET", "/v1/health/ready")
    assert ready.json() == {"object": "health.response", "message": "Service is ready.", "status": "ready"}
    surface.ranker.is_ready = False
    assert surface.request("GET", "/v1/health/ready").status_code == 503
    assert surface.request("GET", "/v1/health/live").status_code == 200
    assert surface.request("GET", "/v1/metrics").status_code == 401
    keyed = {"authorization": "Bearer key"}
    assert "maxsimd_requests" in surface.request("GET", "/v1/metrics", headers=keyed).text


def test_the_load_is_what_has_not_ended() -> None:
    surface = Surface()
    assert surface.request("GET", "/load").json() == {"server_load": 0}
    ticket = surface.admission.try_admit(1)
    assert surface.request("GET", "/load").json() == {"server_load": 1}
    ticket.release()


def test_infinity_s_health_has_the_time() -> None:
    assert Surface(dialect="infinity").request("GET", "/health").json()["unix"] > 1.7e9
    assert Surface().request("GET", "/health").content == b""


@pytest.mark.parametrize("more", [{"return_multivector": True}, {"embedding_type": ["float"]}, {"input_type": "query"}])
def test_who_speaks_jina_gets_the_plural(more: dict[str, Any]) -> None:
    answer = Surface().post("/v1/embeddings", {"model": "jina-embeddings-v4", "input": ["ab"], **more}).json()
    assert len(answer["data"][0]["embeddings"]) == 2


def test_jina_s_list_of_types_has_one() -> None:
    surface = Surface()
    rows = surface.post("/v1/multi-vector", {"input": ["ab"], "embedding_type": ["base64"]}).json()["data"][0]
    assert all(isinstance(row, str) for row in rows["embeddings"])
    assert surface.post("/v1/multi-vector", {"input": ["a"], "embedding_type": ["float", "base64"]}).status_code == 400
    refused = surface.post("/v1/embeddings", {"input": ["ab"], "return_multivector": False})
    assert refused.status_code == 400 and "return_multivector" in refused.json()["detail"]
