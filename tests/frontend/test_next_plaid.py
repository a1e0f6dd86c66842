"""next-plaid's shapes of rerank: chosen by the query's keys, answered and refused in its words."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from tests.frontend.surface import Surface, message_of


def packed(rows: int) -> str:
    return base64.b64encode(struct.pack(f"<{4 * rows}f", *[0.5] * 4 * rows)).decode()


NUMBERS: dict[str, Any] = {
    "query": [[0.5] * 4] * 2,
    "documents": [{"embeddings": [[0.5] * 4] * rows} for rows in (1, 3, 2)],
}
PACKED: dict[str, Any] = {
    "query_b64": packed(2),
    "query_shape": [2, 4],
    "documents": [{"embeddings_b64": packed(rows), "shape": [rows, 4]} for rows in (1, 3, 2)],
}
ANSWER = {
    "results": [{"index": 1, "score": 3.0}, {"index": 2, "score": 2.0}, {"index": 0, "score": 1.0}],
    "num_documents": 3,
}


@pytest.mark.parametrize("body", [NUMBERS, PACKED, {**NUMBERS, "documents": PACKED["documents"]}])
def test_embeddings_rank_in_either_form(body: dict[str, Any]) -> None:
    assert Surface().post("/rerank", body).json() == ANSWER


def test_a_large_body_is_decoded_to_the_same() -> None:
    surface = Surface()
    filler = {"user": "x" * 2**20}
    assert surface.post("/rerank", {**PACKED, **filler}).json() == ANSWER
    assert surface.post("/rerank", {**NUMBERS, **filler}).json() == ANSWER
    small = Surface()
    small.post("/rerank", PACKED)
    assert surface.ranker.tasks[0].documents == small.ranker.tasks[0].documents


def test_texts_rank_under_a_path_of_their_own() -> None:
    body = {"query": "three hearts", "documents": ["one heart", "three hearts"]}
    answer = Surface().post("/rerank_with_encoding", body).json()
    assert answer == {"results": [{"index": 1, "score": 3.0}, {"index": 0, "score": 0.0}], "num_documents": 2}


def test_its_forms_of_embeddings_also_stand_in_other_requests() -> None:
    body = {"query": "three hearts", "documents": [*NUMBERS["documents"][:1], *PACKED["documents"][1:], "three hearts"]}
    results = Surface().post("/rerank", body).json()["results"]
    assert [result["index"] for result in results] == [1, 3, 2, 0]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/rerank", {**PACKED, "query_shape": None}, "query_shape: required"),
        ("/rerank", {**PACKED, "query_shape": [3, 4]}, "query_b64: 44 characters"),
        ("/rerank", {**PACKED, "documents": [{"embeddings_b64": packed(1)}]}, "documents[0].shape: required"),
        (
            "/rerank",
            {**PACKED, "documents": [{"embeddings_b64": packed(1), "shape": [2, 4]}]},
            "documents[0].embeddings_b64: 24 characters",
        ),
        ("/rerank", {**NUMBERS, "query": []}, "query: empty"),
        ("/rerank", {**NUMBERS, "documents": [{"embeddings": [[1], [1, 2]]}]}, "documents[0].embeddings[1]: 2 numbers"),
        ("/rerank_with_encoding", {"query": "q", "documents": ["d"], "pool_factor": 2}, "pool_factor: 2"),
        ("/rerank_with_encoding", {"query": "q", "documents": []}, "documents: empty"),
    ],
)
def test_what_is_wrong_is_said_in_its_words(path: str, body: dict[str, Any], message: str) -> None:
    response = Surface().post(path, body)
    assert message_of(response).startswith(message)
    assert response.json() == {"code": "BAD_REQUEST", "message": message_of(response)}
