"""Whatever a client sends, the answer is a 4xx in its dialect that names the field and the rule."""

from __future__ import annotations

from typing import Any

import pytest

from tests.frontend.surface import RERANK_PATHS, SCORE_PATHS, Surface, embeddings, indices, message_of


@pytest.mark.parametrize("path", RERANK_PATHS)
@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        pytest.param({"query": ""}, "query: empty", id="empty-query"),
        pytest.param({"query": " \n"}, "query: empty", id="blank-query"),
        pytest.param({"query": None}, "query: ", id="null-query"),
        pytest.param({"documents": []}, "documents: empty", id="no-documents"),
        pytest.param({"documents": ["a"] * 6}, "documents: 6, at most 5 (--max-documents-per-request)", id="too-many"),
        pytest.param({"documents": ["a", 3]}, "documents[1]: ", id="number"),
        pytest.param({"documents": ["a", {"image": "x"}]}, "documents[1]: expected exactly one", id="image"),
        pytest.param(
            {"documents": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "documents[0].content: a part of type 'image_url', only text can be scored",
            id="vllm-image",
        ),
        pytest.param({"top_n": -1}, "top_n: ", id="top_n"),
        pytest.param({"score_mode": "x"}, "score_mode: ", id="score_mode"),
        pytest.param(
            {"documents": [{"embeddings": {"data": "", "shape": [1, 4]}}]}, "documents[0].embeddings.data: ", id="b64"
        ),
    ],
)
def test_bad_input_is_a_400_in_the_callers_dialect(path: str, fields: dict[str, Any], problem: str) -> None:
    surface = Surface(max_documents_per_request=5)
    response = surface.rerank(path, **fields)
    assert message_of(response).startswith(problem)
    expected = {"message", "id"} if path.startswith("/v2/") else {"error", "detail", "message"}
    assert set(response.json()) == expected
    assert surface.ranker.tasks == []


@pytest.mark.parametrize(
    "documents",
    [
        pytest.param([""] * 10_000, id="ten-thousand-empty"),
        pytest.param(["x" * 1_000_000], id="one-word-of-a-megabyte"),
        pytest.param(["a\0b", "\0"], id="nul"),
        pytest.param(["\U0001f419", "\u202e", "\ufeff"], id="odd-characters"),
    ],
)
def test_strange_documents_are_documents(documents: list[str]) -> None:
    surface = Surface(max_documents_per_request=10_000)
    assert len(indices(surface.rerank(documents=documents))) == len(documents)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"query":"\\ud800","documents":["a"]}', b"[" * 100_000, b'"query"', b"\0"]
)
@pytest.mark.parametrize("path", [*RERANK_PATHS, *SCORE_PATHS])
def test_what_is_not_json_is_a_400(path: str, body: bytes) -> None:
    assert message_of(Surface().request("POST", path, content=body)).startswith("body: ")


def test_the_answer_to_a_long_wrong_body_is_short() -> None:
    response = Surface().rerank(score_mode="x" * 500_000, model="y" * 500_000)
    assert response.status_code == 400
    assert len(response.content) < 3000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/nowhere", 404),
        ("POST", "/v2/nowhere", 404),
        ("POST", "//rerank", 404),
        ("POST", "/rerank/", 404),
        ("POST", "/v1%2frerank", 200),  # a server decodes a path before anybody sees it: this is /v1/rerank
        ("GET", "/rerank", 405),
        ("PUT", "/v2/rerank", 405),
        ("POST", "/health", 405),
    ],
)
def test_unknown_paths_and_methods_are_refused_in_the_callers_dialect(method: str, path: str, status: int) -> None:
    response = Surface().request(method, path, json={"query": "q", "documents": ["d"]})
    assert response.status_code == status
    if status != 200:
        assert set(response.json()) == (
            {"message", "id"} if path.startswith("/v2/") else {"error", "detail", "message"}
        )
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize(
    ("strict", "model", "status"),
    [(False, "any-name", 200), (True, "any-name", 404), (True, "first", 200), (True, "second", 200), (True, None, 200)],
)
@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank", "/score"])
def test_model_names(path: str, strict: bool, model: str | None, status: int) -> None:
    surface = Surface(served_model_names=("first", "second"), strict_model_name=strict)
    response = surface.post(path, {"model": model, "query": "q", "queries": "q", "documents": ["d"]})
    assert response.status_code == status
    if status == 404:
        assert "'any-name'" in message_of(response, 404)
    else:
        assert response.json()["model"] == "first"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        pytest.param({"queries": ["a", "b"], "items": ["c"]}, "queries, items: 2 and 1 items", id="many-to-one"),
        pytest.param({"data_1": ["a", "b"], "data_2": ["c"] * 3}, "data_1, data_2: 2 and 3 items", id="unequal"),
        pytest.param({"queries": "a", "text_2": "b"}, "no pair of fields is complete", id="halves-of-two-pairs"),
        pytest.param({"queries": "a", "documents": None}, "no pair of fields is complete", id="null"),
        pytest.param({"text_1": [], "text_2": []}, "text_2: empty", id="no-documents"),
        pytest.param({"text_1": [], "text_2": ["a"]}, "text_1", id="no-queries"),
        pytest.param({"text_1": ["a", " "], "text_2": ["b", "c"]}, "text_1[1]: empty", id="empty-query"),
        pytest.param({"text_1": ["a", {}], "text_2": ["b", "c"]}, "text_1[1]: expected exactly one", id="empty-object"),
        pytest.param({"queries": "a", "items": ["b", 3]}, "items[1]: Expected", id="document-number"),
    ],
)
def test_a_wrong_score_request_is_refused_with_the_users_own_field_names(body: object, problem: str) -> None:
    assert problem in message_of(Surface().post("/score", body))


def test_scores_beyond_a_float32_are_refused_rather_than_sent_as_null() -> None:
    response = Surface().rerank(documents=["a", embeddings(1, value=3e38)])
    assert "embeddings: too large" in message_of(response)
