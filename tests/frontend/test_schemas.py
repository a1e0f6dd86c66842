"""Request bodies: what is accepted, and that everything else is a 400 that names the field and the rule."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend.errors import MAX_ECHO, RequestFailed
from frontend.schemas import InputObject, RerankBody, as_list, decode_rerank, decode_score, text_of
from ipc.messages import ErrorCode

MINIMAL = {"query": "q", "documents": ["d"]}
OPTIONAL = [
    "model",
    "top_n",
    "return_documents",
    "max_tokens_per_doc",
    "max_tokens_per_query",
    "truncate_prompt_tokens",
    "truncation",
    "score_mode",
    "cache_salt",
    "timeout_ms",
    "user",
    "priority",
    "request_id",
    "max_chunks_per_doc",
    "rank_fields",
    "instruction",
    "explain",
    "relevant_spans",
]

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from([*OPTIONAL, "query", "documents", "queries", "items", "text", "embeddings", "content"])


def body_of(**changes: Any) -> bytes:
    return json.dumps({**MINIMAL, **changes}).encode()


def refused(body: bytes) -> RequestFailed:
    with pytest.raises(RequestFailed) as caught:
        decode_rerank(body)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    return caught.value


def test_every_optional_field_may_be_null() -> None:
    decoded = decode_rerank(body_of(**dict.fromkeys(OPTIONAL)))
    assert decoded == RerankBody(query="q", documents=["d"])


def test_unknown_and_ignored_fields_of_any_type_are_ignored() -> None:
    decoded = decode_rerank(body_of(user=3, priority="x", max_chunks_per_doc=[{}], zz=None))
    assert decoded == RerankBody(query="q", documents=["d"])


def test_all_fields_are_read() -> None:
    given_fields = {
        "model": "m",
        "top_n": 2,
        "return_documents": False,
        "max_tokens_per_doc": 100,
        "max_tokens_per_query": 0,
        "truncate_prompt_tokens": -1,
        "truncation": False,
        "score_mode": "unit",
        "cache_salt": "s" * 1024,
        "timeout_ms": 1,
    }
    decoded = decode_rerank(body_of(**given_fields))
    assert {name: getattr(decoded, name) for name in given_fields} == given_fields


@pytest.mark.parametrize(
    ("changes", "field", "rule"),
    [
        pytest.param({"top_n": -1}, "top_n", ">= 0", id="top_n-negative"),
        pytest.param({"top_n": 1.5}, "top_n", "int", id="top_n-fraction"),
        pytest.param({"top_n": True}, "top_n", "int", id="top_n-boolean"),
        pytest.param({"top_n": "3"}, "top_n", "int", id="top_n-string"),
        pytest.param({"max_tokens_per_doc": -1}, "max_tokens_per_doc", ">= 0", id="tokens-negative"),
        pytest.param({"max_tokens_per_query": 2**31}, "max_tokens_per_query", "<=", id="tokens-huge"),
        pytest.param({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", ">= -1", id="truncate-below-minus-one"),
        pytest.param({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1", id="truncate-zero"),
        pytest.param({"timeout_ms": 0}, "timeout_ms", ">= 1", id="timeout-zero"),
        pytest.param({"timeout_ms": 10**400}, "timeout_ms", "<=", id="timeout-beyond-a-float"),
        pytest.param({"cache_salt": ""}, "cache_salt", ">= 1", id="salt-empty"),
        pytest.param({"cache_salt": "s" * 1025}, "cache_salt", "<= 1024", id="salt-too-long"),
        pytest.param({"score_mode": "max"}, "score_mode", "raw, mean or unit", id="score_mode-unknown"),
        pytest.param({"truncation": "no"}, "truncation", "bool", id="truncation-string"),
        pytest.param({"query": ["q"]}, "query[0]", "array", id="query-list"),
        pytest.param({"query": None}, "query", "required", id="query-null"),
        pytest.param({"documents": 3}, "documents", "array", id="documents-number"),
        pytest.param({"documents": ["a", 3]}, "documents[1]", "str | object", id="one-document-number"),
        pytest.param({"documents": ["a", "b", None]}, "documents[2]", "str | object", id="one-document-null"),
        pytest.param({"documents": [{"text": 3}]}, "documents[0].text", "str", id="text-number"),
        pytest.param({"documents": [{"content": "a"}]}, "documents[0].content", "array", id="content-string"),
        pytest.param(
            {"documents": [{"content": [{"text": "a"}]}]}, "documents[0].content[0].type", "required", id="part"
        ),
    ],
)
def test_a_wrong_field_is_named_with_its_rule(changes: dict[str, Any], field: str, rule: str) -> None:
    error = refused(body_of(**changes))
    assert error.param == field
    assert error.message.startswith(f"{field}: ")
    assert rule in error.message


def test_a_missing_query_is_named() -> None:
    error = refused(json.dumps({name: value for name, value in MINIMAL.items() if name != "query"}).encode())
    assert (error.param, error.message) == ("query", "query: required")


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut-off"),
        pytest.param(b"[1]", id="not-an-object"),
        pytest.param(b"null", id="null"),
        pytest.param(body_of() + b"x", id="more-behind-it"),
        pytest.param(b"\xef\xbb\xbf" + body_of(), id="byte-order-mark"),
        pytest.param(json.dumps(MINIMAL).encode("utf-16"), id="utf-16"),
        pytest.param(b'{"query":"q","documents":["\xff"]}', id="not-utf-8"),
        pytest.param(b'{"query":"\xed\xa0\x80","documents":["d"]}', id="surrogate-in-utf-8"),
        pytest.param(b'{"query":"\\ud800","documents":["d"]}', id="high-surrogate-alone"),
        pytest.param(b'{"query":"q","documents":["a\\udc00b"]}', id="low-surrogate-alone"),
        pytest.param(b'{"query":"a\x00b","documents":["d"]}', id="raw-nul"),
        pytest.param(b'{"query":"q","documents":["d"],"top_n":NaN}', id="nan"),
        pytest.param(
            b'{"query":"q","documents":["d"],"z":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deep-nesting"
        ),
    ],
)
def test_what_is_not_a_json_object_is_refused_as_the_body(body: bytes) -> None:
    error = refused(body)
    assert error.message.startswith("body: ")
    assert error.param is None


def test_an_escaped_nul_and_a_surrogate_pair_are_characters_like_others() -> None:
    decoded = decode_rerank(b'{"query":"a\\u0000b","documents":["\\ud83d\\ude00"]}')
    assert (decoded.query, decoded.documents) == ("a\0b", ["\U0001f600"])


def test_an_error_echoes_little_and_cannot_forge_the_field() -> None:
    error = refused(body_of(score_mode="x" * 100_000 + " - at `$.query`"))
    assert error.param == "score_mode"
    assert error.message.count("x") <= MAX_ECHO


@given(st.dictionaries(fields, json_values, max_size=5))
def test_any_json_object_is_a_request_or_a_400(body: dict[str, Any]) -> None:
    for decode in (decode_rerank, decode_score):
        try:
            decode(json.dumps(body).encode("utf-8", "surrogatepass"))
        except RequestFailed as error:
            assert error.code is ErrorCode.INVALID_REQUEST
            assert ": " in error.message


@given(st.binary(max_size=60) | st.binary(max_size=20).map(lambda some: body_of()[:-2] + some))
def test_any_bytes_are_a_request_or_a_400(body: bytes) -> None:
    try:
        decode_rerank(body)
    except RequestFailed as error:
        assert error.code is ErrorCode.INVALID_REQUEST


@given(st.text(), st.lists(st.text(), max_size=5), st.booleans())
def test_texts_arrive_as_they_were_sent(query: str, documents: list[str], is_ascii: bool) -> None:
    body = json.dumps({"query": query, "documents": documents}, ensure_ascii=is_ascii).encode()
    decoded = decode_rerank(body)
    assert (decoded.query, decoded.documents) == (query, documents)


# --- one query or document ----------------------------------------------------------------------------------------


def input_of(value: object) -> InputObject:
    decoded = decode_rerank(body_of(query=value)).query
    assert isinstance(decoded, InputObject)
    return decoded


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param({"text": "a"}, "a", id="object"),
        pytest.param({"text": "a", "title": "b", "embeddings": None}, "a", id="object-with-more"),
        pytest.param({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb", id="parts"),
        pytest.param({"content": []}, "", id="no-parts"),
        pytest.param({"embeddings": {"data": "", "shape": [1, 2]}}, None, id="embeddings-have-none"),
    ],
)
def test_the_text_of_an_object(value: object, text: str | None) -> None:
    assert text_of(input_of(value), "query") == text


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        pytest.param({}, "exactly one of text, embeddings and content, got none", id="none"),
        pytest.param({"image": "http://x/y.png"}, "got none", id="jina-image"),
        pytest.param({"text": "a", "content": []}, "got text and content", id="two"),
        pytest.param(
            {"content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "http://x/y.png"}}]},
            "'image_url', only text",
            id="vllm-image",
        ),
        pytest.param({"content": [{"type": "text"}]}, "only text", id="text-part-without-text"),
    ],
)
def test_an_object_that_is_not_one_text_is_refused_by_name(value: object, rule: str) -> None:
    with pytest.raises(RequestFailed) as caught:
        text_of(input_of(value), "documents[7]")
    assert caught.value.param == "documents[7]"
    assert caught.value.message.startswith("documents[7]") and rule in caught.value.message


def test_one_input_is_a_list_of_one() -> None:
    assert as_list(decode_rerank(body_of(documents="d")).documents or []) == ["d"]
    assert as_list(decode_rerank(body_of(documents=["d", "e"])).documents or []) == ["d", "e"]
