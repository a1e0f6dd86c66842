"""Programs that are too heavy to be run here: the bodies they send, and that their answers hold what they read.

By version: llama-index (cohere 0.10, jina 0.6, tei 0.6, nvidia 0.7), haystack (jina 1.2, cohere 11.0, nvidia 3.0),
langchain-community 0.4.2 and voyageai 0.5.0 were run by hand against this server, and the bodies that came written
down; Open WebUI 0.12, Dify's plugins, RAGFlow, LibreChat, MaxKB, Weaviate and vLLM 0.33's benchmark are known from
their code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.end_to_end.running_server import Server

QUERY = "Which animal has three hearts?"
DOCUMENTS = [
    "Maples turn red in autumn.",
    "An octopus has three hearts and blue blood.",
    "A chameleon has one heart.",
]
ASK = {"query": QUERY, "documents": DOCUMENTS}


def by_index(answer: Any) -> list[float]:
    """Sorted by index and joined with the documents: all of them must be there."""
    results = sorted(answer["results"], key=lambda result: result["index"])
    assert [result["index"] for result in results] == [0, 1, 2]
    return [result["relevance_score"] for result in results]


def with_documents(answer: Any) -> list[float]:
    for result in answer["results"]:
        assert result["document"].get("text") == DOCUMENTS[result["index"]]
    return by_index(answer)


def tei(answer: Any) -> list[float]:
    assert len(answer) == 3
    return [result["score"] for result in sorted(answer, key=lambda result: int(result["index"]))]


def nvidia(answer: Any) -> list[float]:
    return [ranking["logit"] for ranking in sorted(answer["rankings"], key=lambda ranking: int(ranking["index"]))]


def voyage(answer: Any) -> list[float]:
    assert answer["usage"]["total_tokens"] > 0
    return by_index({"results": answer["data"]})


def counted(answer: Any) -> list[float]:
    assert answer["usage"]["prompt_tokens"] > 0
    assert answer["usage"]["total_tokens"] > 0
    assert isinstance(answer["model"], str)
    return by_index(answer)


MODEL = {"model": "jina-reranker-v2-base-multilingual"}
PASSAGES = {"query": {"text": QUERY}, "passages": [{"text": text} for text in DOCUMENTS]}
Check = Callable[[Any], list[float]]
PROGRAMS: dict[str, tuple[str, dict[str, Any], Check]] = {
    "vllm bench": ("/rerank", {**ASK, "model": "m", "truncate_prompt_tokens": -1}, counted),
    "llama-index cohere": ("/v2/rerank", {**ASK, "model": "rerank-v3.5", "top_n": 3}, by_index),
    "llama-index jina": ("/v1/rerank", {**ASK, **MODEL, "top_n": 3}, by_index),
    "llama-index tei": ("/rerank", {"query": QUERY, "texts": DOCUMENTS}, tei),
    "llama-index nvidia": ("/v1/ranking", {**PASSAGES, "model": "all-MiniLM-L6-v2"}, nvidia),
    "nvidia, cut": ("/v1/ranking", {**PASSAGES, "model": "nv", "truncate": "END"}, nvidia),
    "haystack jina": ("/v1/rerank", {**ASK, **MODEL, "top_n": None}, counted),
    "haystack cohere": ("/v2/rerank", {**ASK, "model": "any", "top_n": 10, "max_tokens_per_doc": 4096}, by_index),
    "haystack nvidia": ("/v1/ranking", {**PASSAGES, "model": "nv"}, nvidia),
    "open webui": ("/v1/rerank", {**ASK, "model": "any", "top_n": 3}, by_index),
    "dify compatible": ("/v1/rerank", {**ASK, "model": "any", "top_n": 3}, with_documents),
    "dify jina": ("/v1/rerank", {**ASK, **MODEL, "top_n": 3, "return_documents": False}, counted),
    "dify cohere": ("/v1/rerank", {**ASK, "model": "any", "top_n": 3, "return_documents": True}, with_documents),
    "dify tei": ("/rerank", {"query": QUERY, "texts": DOCUMENTS, "return_text": True}, tei),
    "ragflow": ("/v1/rerank", {**ASK, "model": "any", "top_n": 3, "return_documents": False}, by_index),
    "librechat": ("/v1/rerank", {**ASK, **MODEL, "top_n": 3, "return_documents": True}, with_documents),
    "maxkb": ("/v1/rerank", {**ASK, "model": "any"}, with_documents),
    "langchain infinity": (
        "/rerank",
        {**ASK, "model": "any", "return_documents": False, "raw_scores": False},
        counted,
    ),
    "voyage": ("/v1/rerank", {**ASK, "model": "rerank-2", "top_k": None, "truncation": True}, voyage),
    "langchain": ("/v2/rerank", {**ASK, "model": "any", "top_n": 3, "max_tokens_per_doc": None}, by_index),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_finds_what_it_reads(shared_server: Server, program: str) -> None:
    path, body, check = PROGRAMS[program]
    answer = shared_server.post(path, body)
    assert answer.status_code == 200, answer.text
    scores = check(answer.json())
    assert scores == pytest.approx(shared_server.scores(QUERY, DOCUMENTS), rel=1e-5) or "tei" in program
    assert max(range(3), key=scores.__getitem__) == 1


@pytest.mark.parametrize("role", ["query", "document"])
def test_weaviate_reads_the_plural(shared_server: Server, role: str) -> None:
    body = {"model": "jina-colbert-v2", "input": DOCUMENTS, "input_type": role, "embedding_type": "float"}
    answer = shared_server.post("/v1/multi-vector", {**body, "dimensions": shared_dim(shared_server)}).json()
    assert answer["usage"]["total_tokens"] > 0
    assert [each["index"] for each in answer["data"]] == [0, 1, 2]
    for each in answer["data"]:
        assert {len(row) for row in each["embeddings"]} == {shared_dim(shared_server)}


def test_llama_index_s_nvidia_reads_the_models_first(shared_server: Server) -> None:
    """`root` is taken for the base model; the first one that is its own is the default."""
    (model,) = httpx.get(shared_server.url + "/v1/models").json()["data"]
    assert model["id"] == model["root"] == "all-MiniLM-L6-v2"


def test_dify_s_tei_plugin_looks_for_a_reranker(shared_server: Server) -> None:
    assert "reranker" in httpx.get(shared_server.url + "/info").json()["model_type"]


def shared_dim(server: Server) -> int:
    """Of the embedded model."""
    answer = server.post("/v1/multi-vector", {"model": "m", "input": ["a"], "input_type": "query"}).json()
    return len(answer["data"][0]["embeddings"][0])
