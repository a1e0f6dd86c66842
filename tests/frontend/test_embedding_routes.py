"""Token embeddings out: each vocabulary's request, answer and error, with a ranker whose rows are known."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest

from ipc.messages import ModelSpec, TextSpec
from tests.frontend.surface import Surface, WordRanker

PATHS = {
    "/pooling": "input",
    "/v1/embeddings": "input",
    "/v1/multi-vector": "input",
    "/embed_all": "inputs",
    "/encode": "texts",
}


def rows_of(text: str | list[int]) -> list[list[float]]:
    """What `WordRanker` makes of a text."""
    ids = [ord(letter) for letter in text] if isinstance(text, str) else text
    return [[token + place / 8 for place in range(4)] for token in ids]


def ask(path: str, *surface: Surface, **body: Any) -> Any:
    (server,) = surface or (Surface(),)
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    return response.json()


def refusal(path: str, **body: Any) -> Any:
    response = Surface().post(path, body)
    assert response.status_code == 400, response.text
    return response.json()


INPUTS = [
    pytest.param("ab", ["ab"], id="text"),
    pytest.param(["ab", "c"], ["ab", "c"], id="texts"),
    pytest.param([5, 6, 7], [[5, 6, 7]], id="token-ids"),
    pytest.param([[5, 6], [7]], [[5, 6], [7]], id="lists-of-token-ids"),
    pytest.param([{"text": "ab"}, "c", [5]], ["ab", "c", [5]], id="mixed"),
]


@pytest.mark.parametrize(("given", "texts"), INPUTS)
def test_pooling_answers_as_vllm(given: Any, texts: list[Any]) -> None:
    answer = ask("/pooling", input=given, task="token_embed", model=None)
    assert answer["id"].startswith("pooling-") and answer["object"] == "list" and answer["model"] == "the-model"
    assert answer["data"] == [
        {"index": index, "object": "pooling", "data": rows_of(text)} for index, text in enumerate(texts)
    ]
    tokens = sum(map(len, texts))
    assert answer["usage"] == {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


@pytest.mark.parametrize(("given", "texts"), INPUTS)
def test_embeddings_are_singular_for_vllm_and_plural_for_jina(given: Any, texts: list[Any]) -> None:
    answer = ask("/v1/embeddings", input=given, encoding_format="float")
    assert answer["data"] == [
        {"index": index, "object": "embedding", "embedding": rows_of(text)} for index, text in enumerate(texts)
    ]
    for path, more in [("/v1/embeddings", {"input_type": "document"}), ("/v1/multi-vector", {})]:
        plural = ask(path, input=given, **more)
        assert plural["data"] == [
            {"index": index, "object": "embeddings", "embeddings": rows_of(text)} for index, text in enumerate(texts)
        ]
        assert set(plural) == {"model", "object", "usage", "data"}


@pytest.mark.parametrize(("given", "texts"), INPUTS)
def test_embed_all_answers_as_tei(given: Any, texts: list[Any]) -> None:
    assert ask("/embed_all", inputs=given) == [rows_of(text) for text in texts]


def test_encode_answers_as_next_plaid() -> None:
    assert ask("/encode", texts=["ab", "c"]) == {"num_texts": 2, "embeddings": [rows_of("ab"), rows_of("c")]}
    packed = ask("/encode", texts=["ab", "c"], encoding_format="base64")
    assert packed["shapes"] == [[2, 4], [1, 4]]
    assert base64.b64decode(packed["embeddings_b64"][1]) == struct.pack("<4f", *rows_of("c")[0])


@pytest.mark.parametrize(
    ("path", "more", "role"),
    [
        ("/pooling", {}, "document"),
        ("/pooling", {"input_type": "query"}, "query"),
        ("/v1/embeddings", {}, "document"),
        ("/v1/embeddings", {"is_query": True}, "query"),
        ("/v1/embeddings", {"is_query": False}, "document"),
        ("/v1/embeddings", {"input_type": "query"}, "query"),
        ("/v1/embeddings", {"embedding_type": "float"}, "document"),
        ("/v1/multi-vector", {"input_type": "query"}, "query"),
        ("/embed_all", {"prompt_name": "query"}, "query"),
        ("/embed_all", {}, "document"),
        ("/encode", {"input_type": "query"}, "query"),
    ],
)
def test_the_request_says_whether_a_text_is_a_query(path: str, more: dict[str, Any], role: str) -> None:
    surface = Surface()
    ask(path, surface, **{PATHS[path]: ["a"]}, **more)
    assert [task.role for task in surface.ranker.embedding_tasks] == [role]


@pytest.mark.parametrize("endianness", ["little", "big", "native", None])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", None])
@pytest.mark.parametrize("form", ["base64", "bytes", "bytes_only"])
def test_pooling_writes_every_dtype_in_every_order(form: str, dtype: str | None, endianness: str | None) -> None:
    body = {"input": ["ab", "c"], "encoding_format": form, "embed_dtype": dtype, "endianness": endianness}
    response = Surface().post("/pooling", body)
    assert response.status_code == 200, response.text
    expected = [
        b"".join(pack(value, dtype, endianness) for row in rows_of(text) for value in row) for text in ("ab", "c")
    ]
    if form == "base64":
        assert [base64.b64decode(each["data"]) for each in response.json()["data"]] == expected
        return
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.content == b"".join(expected)
    assert ("metadata" in response.headers) == (form == "bytes")
    if form == "bytes":
        metadata = json.loads(response.headers["metadata"])
        assert [response.content[each["start"] : each["end"]] for each in metadata["data"]] == expected
        assert [each["shape"] for each in metadata["data"]] == [[2, 4], [1, 4]]
        assert {each["embed_dtype"] for each in metadata["data"]} == {dtype or "float32"}
        assert metadata["usage"]["prompt_tokens"] == 3


def pack(value: float, dtype: str | None, endianness: str | None) -> bytes:
    """One number; those of `rows_of` are exact in every dtype but bfloat16, which `WordRanker` cuts."""
    little = struct.pack("<e", value) if dtype == "float16" else struct.pack("<f", value)
    little = little[2:] if dtype == "bfloat16" else little
    return little[::-1] if endianness == "big" else little


def test_jina_s_base64_is_one_string_a_row() -> None:
    answer = ask("/v1/multi-vector", input="ab", embedding_type="base64")
    assert [struct.unpack("<4f", base64.b64decode(row)) for row in answer["data"][0]["embeddings"]] == [
        tuple(row) for row in rows_of("ab")
    ]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/pooling", {"input": []}, "input: empty"),
        ("/pooling", {}, "input: "),
        ("/pooling", {"input": ["a", 3]}, "input[1]: a number among texts"),
        ("/pooling", {"input": [-1]}, "input[0]: "),
        ("/pooling", {"input": "a", "task": "embed"}, "task: "),
        ("/pooling", {"input": "a", "dimensions": 4}, "dimensions: "),
        ("/pooling", {"input": "a", "normalize": True}, "normalize: "),
        ("/pooling", {"input": "a", "embed_dtype": "fp8_e4m3"}, "embed_dtype: "),
        ("/pooling", {"input": "a", "add_special_tokens": False}, "add_special_tokens: "),
        ("/v1/embeddings", {"input": "a", "dimensions": 8}, "dimensions: 8"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "base64"}, "encoding_format: "),
        ("/v1/embeddings", {"input": "a", "is_query": True, "input_type": "query"}, "is_query: "),
        ("/v1/multi-vector", {"input": "a", "embedding_type": "binary"}, "embedding_type: "),
        ("/embed_all", {"inputs": "a", "truncation_direction": "left"}, "truncation_direction: "),
        ("/encode", {"texts": ["a"], "pool_factor": 2}, "pool_factor: 2"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(path: str, body: dict[str, Any], message: str) -> None:
    answer = refusal(path, **body)
    assert message in json.dumps(answer)


def test_each_vocabulary_has_its_own_error() -> None:
    assert set(refusal("/pooling")) == {"error", "detail", "message"}
    assert set(refusal("/v1/multi-vector")) == {"detail", "code", "request_id"}
    assert set(refusal("/v1/embeddings", input=[], input_type="query")) == {"detail", "code", "request_id"}
    assert set(refusal("/embed_all")) == {"error", "error_type"}
    assert refusal("/encode") == {"code": "BAD_REQUEST", "message": "texts: required"}


@pytest.mark.parametrize(("path", "field"), PATHS.items())
def test_every_optional_field_may_be_null(path: str, field: str) -> None:
    names = [
        "model",
        "input_type",
        "encoding_format",
        "dimensions",
        "embed_dtype",
        "endianness",
        "is_query",
        "truncate",
    ]
    names += ["truncation", "truncate_prompt_tokens", "embedding_type", "prompt_name", "pool_factor", "user", "task"]
    assert ask(path, **{field: ["a"]}, **dict.fromkeys(names)) == ask(path, **{field: ["a"]}) or path in (
        "/pooling",
        "/v1/embeddings",  # an id and a time of their own
    )


def test_a_server_without_an_encoder_says_so() -> None:
    response = Surface(WordRanker(None)).post("/pooling", {"input": "a"})
    assert response.status_code == 400 and "--no-engine" in response.json()["message"]


def test_token_ids_never_have_a_text_s_name() -> None:
    """Names decide what is encoded once for several requests."""
    ranker = WordRanker(ModelSpec("m", 4, TextSpec(max_length=32), TextSpec(max_length=180)))
    surface = Surface(ranker)
    ask("/pooling", surface, input=["aaaa", [0x61616161]])
    ask("/rerank", surface, query="q", documents=["aaaa"])
    text, ids = ranker.embedding_tasks[0].keys
    assert text != ids
    assert text == ranker.tasks[0].documents[0].key  # type: ignore[union-attr]  # encoded once for both
