"""Bodies of many values: refused before objects are made of them, and only those."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from typing import Any

import pytest

from frontend.body_values import FEW_COMMAS, MAX_NUMBERS, check_values
from frontend.errors import RequestFailed
from tests.frontend.surface import Surface

LIMIT = 4096
MANY = 1_000_000


def body(fields: str) -> bytes:
    return b"{" + fields.encode() + b"}"


def listed(element: str, count: int = MANY) -> str:
    return "[" + ",".join([element] * count) + "]"


TOO_MANY = "at most 4096 (--max-documents-per-request)"
FLOODS = {
    "objects": (f'"query":"q","documents":{listed("{}")}', f"documents: more than 4096, {TOO_MANY}"),
    "strings": (f'"query":"q","texts":{listed(chr(34) * 2)}', f"texts: more than 4096, {TOO_MANY}"),
    "pairs": (f'"queries":"q","items":{listed("{}")}', f"items: more than 4096, {TOO_MANY}"),
    "one-among-numbers": (f'"input":["",{listed("[]")[1:]}', f"input: more than 4096, {TOO_MANY}"),
    "parts": (
        f'"query":{{"content":{listed(json.dumps({"type": ""}))}}},"documents":["d"]',
        f"query.content: more than 4096, {TOO_MANY}",
    ),
    "parts-of-many": (
        '"query":"q","documents":' + listed('{"content":' + listed("{}", 100) + "}", 1000),
        "documents[655].content: more than 65536 parts in all",
    ),
    "rows-of-a-query": (f'"query":{listed("[]", MAX_NUMBERS + 2)}', f"query: more than {MAX_NUMBERS} numbers"),
    "token-ids": (f'"input":[{listed("1", MAX_NUMBERS + 2)}]', f"input: more than {MAX_NUMBERS} numbers"),
    "rows-of-a-document": (
        f'"query":"q","documents":[{{"embeddings":{listed("[]", MAX_NUMBERS + 2)}}}]',
        f"documents[0].embeddings: more than {MAX_NUMBERS} numbers",
    ),
    "shape": (
        f'"query":"q","documents":[{{"shape":{listed("1", MAX_NUMBERS + 2)}}}]',
        f"documents[0].shape: more than {MAX_NUMBERS} numbers",
    ),
    "hidden-by-a-second-value": (
        f'"query":"q","documents":{listed("{}")},"documents":["d"]',
        "body: more than 262144 values that are no inputs",
    ),
    "not-json-at-the-end": (f'"query":"q","documents":{listed("{}")}, nonsense', "body: not JSON"),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_refused_before_objects_are_made_of_it(name: str) -> None:
    fields, message = FLOODS[name]
    flood = body(fields)
    with pytest.raises(RequestFailed):
        asyncio.run(
            check_values(body(f'"documents":{listed("{}", FEW_COMMAS + 2)}'), LIMIT)
        )  # what is made once is made
    tracemalloc.start()
    try:
        with pytest.raises(RequestFailed) as caught:
            asyncio.run(check_values(flood, LIMIT))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.message.startswith(message)
    assert peak < 2 * len(flood)


def numbers(rows: int, dim: int) -> list[list[float]]:
    return [[0.5] * dim] * rows


LEGITIMATE: dict[str, Any] = {
    "long-texts": {"query": "q", "documents": ["a, b, c, " * 1000] * 100},
    "texts-with-fields": {"query": "q", "documents": [{"text": "a, " * 99, "title": "b, " * 99, "n": [1, 2]}] * 1000},
    "brackets-in-texts": {"query": "q", "documents": ['[{"a": [1, 2, {}]}, "\\"' * 100] * 400},
    "as-many-as-allowed": {"query": "q, " * FEW_COMMAS, "documents": ["d"] * LIMIT},
    "parts": {"query": "q", "documents": [{"content": [{"type": "text", "text": "a, b"}] * 10}] * 4000},
    "rows": {"query": numbers(32, 128), "documents": [{"embeddings": numbers(180, 128)}] * 100},
    "token-ids": {"input": [[101, 7, 102] * 100] * 1000},
    "one-text-s-ids": {"input": [7] * 100_000},
}


@pytest.mark.parametrize("name", LEGITIMATE)
def test_large_requests_pass(name: str) -> None:
    content = json.dumps(LEGITIMATE[name]).encode()
    assert content.count(b",") > FEW_COMMAS
    asyncio.run(check_values(content, LIMIT))


def test_a_flood_is_a_400_in_the_words_of_the_path() -> None:
    surface = Surface(max_documents_per_request=10)
    flood = body(FLOODS["objects"][0])
    answer = surface.request("POST", "/rerank", content=flood)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "documents"
    answer = surface.request("POST", "/v2/rerank", content=flood)
    assert answer.json()["message"] == "documents: more than 10, at most 10 (--max-documents-per-request)"
    assert set(answer.json()) == {"message", "id"}
