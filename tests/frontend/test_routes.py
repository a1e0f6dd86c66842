"""Answers as clients parse them: exact shapes, scores in their order, dialects, and what the server tells of itself."""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from frontend.auth import digest_of
from frontend.ranking import EmbeddingsInput, TextInput
from frontend.version import VERSION
from ipc.errors import ServiceFailed
from ipc.messages import ErrorCode, ModelSpec
from tests.frontend.surface import (
    DOCUMENTS,
    QUERY,
    RERANK_PATHS,
    SCORE_PATHS,
    SCORES,
    SPEC,
    Surface,
    WordRanker,
    embeddings,
    indices,
    message_of,
)

# --- rerank --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "api_version"), [("/rerank", "1"), ("/v1/rerank", "1"), ("/v2/rerank", "2")])
def test_a_rerank_answer_is_the_superset_that_all_clients_parse(path: str, api_version: str) -> None:
    before = int(time.time())
    response = Surface().rerank(path, return_documents=True)
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert before <= answer.pop("created") <= time.time()
    assert isinstance(answer.pop("id"), str)
    tokens = len(QUERY) + sum(map(len, DOCUMENTS))
    assert answer == {
        "model": "the-model",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": [
            {"index": index, "relevance_score": SCORES[index], "document": {"text": DOCUMENTS[index]}}
            for index in (3, 1, 0, 2)
        ],
        "meta": {
            "api_version": {"version": api_version},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": tokens},
        },
    }


@pytest.mark.parametrize(
    ("path", "asked", "shows"),
    [
        ("/rerank", None, True),
        ("/rerank", True, True),
        ("/rerank", False, False),
        ("/v1/rerank", None, True),
        ("/v1/rerank", False, False),
        ("/v2/rerank", None, False),
        ("/v2/rerank", True, True),
        ("/v2/rerank", False, False),
    ],
)
def test_documents_come_back_where_the_dialect_expects_them(path: str, asked: bool | None, shows: bool) -> None:
    results = Surface().rerank(path, return_documents=asked).json()["results"]
    assert [("document" in result) for result in results] == [shows] * len(DOCUMENTS)


def test_a_document_of_embeddings_has_no_text_to_return_and_never_a_null() -> None:
    response = Surface().rerank(documents=["three hearts", embeddings(2), {"text": "three"}])
    assert [result.get("document") for result in response.json()["results"]] == [
        {"text": "three hearts"},
        None,
        {"text": "three"},
    ]
    assert "null" not in response.text


@pytest.mark.parametrize(
    ("top_n", "expected"),
    [
        pytest.param(None, [3, 1, 0, 2], id="unset"),
        pytest.param(0, [3, 1, 0, 2], id="zero-is-all"),
        pytest.param(1, [3], id="one"),
        pytest.param(2, [3, 1], id="two"),
        pytest.param(4, [3, 1, 0, 2], id="all"),
        pytest.param(10**30, [3, 1, 0, 2], id="more-than-there-are"),
    ],
)
def test_top_n_cuts_the_best(top_n: int | None, expected: list[int]) -> None:
    assert indices(Surface().rerank(top_n=top_n)) == expected


def test_equal_scores_stay_in_the_order_of_the_input() -> None:
    documents = ["x", "three", "y", "three", "z", "three"]
    assert indices(Surface().rerank(documents=documents)) == [1, 3, 5, 0, 2, 4]


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(["three", "hearts", "three hearts", "octopus", ""]), min_size=1, max_size=12))
def test_an_answer_ranks_every_document_once(documents: list[str]) -> None:
    results = Surface().rerank(documents=documents).json()["results"]
    assert sorted(result["index"] for result in results) == list(range(len(documents)))
    order = [(-result["relevance_score"], result["index"]) for result in results]
    assert order == sorted(order)
    assert all(result["document"]["text"] == documents[result["index"]] for result in results)


def test_texts_objects_parts_and_embeddings_mix_in_one_request() -> None:
    surface = Surface()
    part = {"content": [{"type": "text", "text": "three"}, {"type": "text", "text": "hearts"}]}
    response = surface.rerank(query={"text": "three hearts"}, documents=["three", {"text": "x"}, part, embeddings(5)])
    assert indices(response) == [3, 2, 0, 1]
    (task,) = surface.ranker.tasks
    assert [text.text for text in (*task.queries, *task.documents) if isinstance(text, TextInput)] == [
        "three hearts",
        "three",
        "x",
        "three\nhearts",
    ]
    last = task.documents[3]
    assert isinstance(last, EmbeddingsInput)
    assert (last.rows, last.dim, last.dtype, last.embeddings) == (5, 4, "float32", struct.pack("<20f", *[0.5] * 20))


def test_one_document_need_not_be_in_a_list() -> None:
    assert indices(Surface().rerank(documents="three")) == [0]


def test_a_server_without_an_encoder_ranks_embeddings_and_refuses_texts() -> None:
    surface = Surface(WordRanker(spec=None))
    assert indices(surface.rerank(query=embeddings(1), documents=[embeddings(1), embeddings(3)])) == [1, 0]
    assert "--no-engine" in message_of(surface.rerank(query=embeddings(1), documents=["a"]))


def test_texts_wait_for_an_encoder_that_is_on_its_way() -> None:
    surface = Surface(WordRanker(spec=None))
    surface.ranker.has_encoder = True
    response = surface.rerank()
    assert "encoder" in message_of(response, 503)
    assert "retry-after" in response.headers


# --- score ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SCORE_PATHS)
@pytest.mark.parametrize(
    "pair", [("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2")]
)
def test_a_score_answer_has_vllms_shape(path: str, pair: tuple[str, str]) -> None:
    answer = Surface().post(path, {pair[0]: QUERY, pair[1]: DOCUMENTS}).json()
    tokens = len(QUERY) + sum(map(len, DOCUMENTS))
    assert isinstance(answer.pop("id"), str) and isinstance(answer.pop("created"), int)
    assert answer == {
        "object": "list",
        "model": "the-model",
        "data": [{"index": index, "object": "score", "score": score} for index, score in enumerate(SCORES)],
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        },
    }


@pytest.mark.parametrize(
    ("queries", "documents", "expected"),
    [
        pytest.param("three", "three", [2.0], id="one-to-one"),
        pytest.param(["three"], ["three", "x"], [2.0, 0.0], id="one-to-many"),
        pytest.param(["three", "x"], ["three", "three"], [2.0, 0.0], id="pairs"),
        pytest.param(["x", embeddings(3)], [embeddings(2), "y"], [2.0, 3.0], id="pairs-of-texts-and-embeddings"),
    ],
)
def test_queries_and_documents_are_paired_as_by_vllm(queries: object, documents: object, expected: list[float]) -> None:
    answer = Surface().post("/score", {"queries": queries, "documents": documents}).json()
    assert [entry["score"] for entry in answer["data"]] == expected


# --- score modes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("server", "asked", "expected"),
    [
        pytest.param("raw", None, [0.0, 2.0, 0.0, 3.0], id="raw"),
        pytest.param("raw", "mean", [0.0, 0.5, 0.0, 0.75], id="mean"),
        pytest.param("raw", "unit", [0.5, 0.75, 0.5, 0.875], id="unit"),
        pytest.param("unit", None, [0.5, 0.75, 0.5, 0.875], id="the-server's"),
        pytest.param("unit", "raw", [0.0, 2.0, 0.0, 3.0], id="asked-beats-the-server's"),
    ],
)
def test_score_modes(server: str, asked: str | None, expected: list[float]) -> None:
    surface = Surface(score_mode=server)
    answer = surface.post("/score", {"queries": QUERY, "documents": DOCUMENTS, "score_mode": asked}).json()
    assert [entry["score"] for entry in answer["data"]] == expected
    ranked = {r["index"]: r["relevance_score"] for r in surface.rerank(score_mode=asked).json()["results"]}
    assert [ranked[index] for index in range(4)] == expected


def test_the_raw_score_of_a_model_trained_with_means_is_the_mean() -> None:
    spec = ModelSpec("m", 4, SPEC.query, SPEC.document, similarity="meanmaxsim")
    answer = Surface(WordRanker(spec)).post("/score", {"queries": QUERY, "documents": DOCUMENTS}).json()
    assert [entry["score"] for entry in answer["data"]] == [0.0, 0.5, 0.0, 0.75]


# --- failures of the services --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "status", "retry_after"),
    [
        (ErrorCode.OVERLOADED, 429, "3"),
        (ErrorCode.UNAVAILABLE, 503, "3"),
        (ErrorCode.DEADLINE_EXCEEDED, 503, "3"),
        (ErrorCode.WORKER_CRASHED, 500, None),
    ],
)
@pytest.mark.parametrize("path", [*RERANK_PATHS, *SCORE_PATHS])
def test_a_failure_of_the_services_is_answered(
    path: str, code: ErrorCode, status: int, retry_after: str | None
) -> None:
    surface = Surface()
    surface.ranker.failure = ServiceFailed(code, "why", 2500)
    response = surface.post(path, {"query": "q", "queries": "q", "documents": ["d"]})
    assert message_of(response, status) == "why"
    assert response.headers.get("retry-after") == retry_after
    assert surface.admission.outstanding == 0


@pytest.mark.parametrize("path", ["/rerank", "/v2/rerank"])
def test_a_bug_is_a_500_that_tells_nothing_and_is_logged(path: str, caplog: pytest.LogCaptureFixture) -> None:
    surface = Surface()
    surface.ranker.failure = ZeroDivisionError("the secret of the house")
    with caplog.at_level(logging.ERROR, "maxsimd.api_server"):
        response = surface.rerank(path)
    assert message_of(response, 500).startswith("internal error")
    assert "secret" not in response.text and "ZeroDivision" not in response.text
    assert "the secret of the house" in caplog.text
    assert response.headers["x-request-id"] in caplog.text
    assert surface.admission.outstanding == 0


# --- API keys, ids, timings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/rerank", "/v2/rerank", "/v1/models", "/metrics", "/version", "/nowhere", "//health"]
)
def test_a_missing_key_is_a_401_in_the_callers_dialect(path: str) -> None:
    response = Surface(api_key_digests=(digest_of("key"),)).request("POST", path, content=b"not even JSON")
    assert message_of(response, 401).startswith("Authorization: ")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-request-id"]
    assert ("error" in response.json()) != path.startswith("/v2/")


def test_a_request_keeps_its_own_id() -> None:
    response = Surface().post("/v2/rerank", {}, x_request_id="my-id.7")
    assert response.headers["x-request-id"] == "my-id.7"
    assert response.json()["id"] == "my-id.7"


@pytest.mark.parametrize("given_id", ["", "x" * 129, "two words", "\x7f"])
def test_an_id_that_is_no_id_is_replaced(given_id: str) -> None:
    response = Surface().post("/rerank", {}, x_request_id=given_id)
    assert len(response.headers.get_list("x-request-id")) == 1
    assert response.headers["x-request-id"] not in ("", given_id)


def test_two_requests_have_two_ids() -> None:
    surface = Surface()
    assert surface.rerank().json()["id"] != surface.rerank().json()["id"]


def test_timings_are_shown_only_where_the_server_says_so() -> None:
    """They tell what was in the store."""
    shown, hidden = Surface(expose_timings=True).rerank(), Surface().rerank()
    assert shown.headers["x-maxsimd-score-ms"] == "2.000"
    assert float(shown.headers["x-maxsimd-total-ms"]) > 0
    assert not [name for name in hidden.headers if name.startswith("x-maxsimd-")]


# --- status --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("is_ready", "is_draining", "expected"),
    [
        pytest.param(True, False, {"/live": 200, "/health": 200, "/ping": 200, "/ready": 200}, id="serving"),
        pytest.param(False, False, {"/live": 200, "/health": 503, "/ping": 503, "/ready": 503}, id="worker-away"),
        pytest.param(True, True, {"/live": 200, "/health": 200, "/ping": 200, "/ready": 503}, id="stopping"),
    ],
)
def test_probes(is_ready: bool, is_draining: bool, expected: dict[str, int]) -> None:
    surface = Surface(is_draining=is_draining, api_key_digests=(digest_of("key"),))
    surface.ranker.is_ready = is_ready
    responses = {path: surface.request("GET", path) for path in expected}
    assert {path: response.status_code for path, response in responses.items()} == expected
    assert all("retry-after" in response.headers for response in responses.values() if response.status_code == 503)


def test_the_version() -> None:
    assert Surface().request("GET", "/version").json() == {"version": VERSION}


@pytest.mark.parametrize(("names", "listed"), [((), ["the-model"]), (("first", "second"), ["first", "second"])])
def test_models_are_listed_as_by_vllm(names: Sequence[str], listed: list[str]) -> None:
    answer = Surface(served_model_names=tuple(names)).request("GET", "/v1/models").json()
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == listed
    for model in answer["data"]:
        assert {name: model[name] for name in ("object", "owned_by", "root", "parent", "max_model_len")} == {
            "object": "model",
            "owned_by": "maxsimd",
            "root": listed[0],
            "parent": None,
            "max_model_len": 180,
        }
        assert isinstance(model["created"], int)
        assert model["permission"][0]["object"] == "model_permission"
        assert model["self_check"] == {
            "passed": True,
            "pairs": 24,
            "largest_difference": 2e-6,
            "tolerance": 1e-3,
            "dtype": "float32",
            "device": "cpu",
            "checked_at": 1_700_000_000,
        }
