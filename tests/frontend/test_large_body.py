"""A large body becomes the same in turns as at once, and so do its faults."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend import large_body
from frontend.errors import RequestFailed
from frontend.large_body import LARGE_LIST, decode_in_turns
from frontend.schemas import RerankBody, decode_rerank

LISTS = ("documents", "texts")
TRICKY = st.text(st.sampled_from('"\\,[]{} aé\u2028\U0001f600'), max_size=12)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "query": TRICKY | st.integers(),
        "documents": st.lists(TRICKY) | TRICKY | st.lists(TRICKY | st.integers()) | st.none(),
        "texts": st.lists(TRICKY) | st.integers(),
        "top_n": st.integers(-1, 3),
        "unknown": st.lists(TRICKY) | st.dictionaries(TRICKY, TRICKY, max_size=2),
    },
)


def at_once(body: bytes) -> RerankBody | str:
    try:
        return decode_rerank(body)
    except RequestFailed as failure:
        return failure.message


def in_turns(body: bytes) -> RerankBody | str:
    try:
        return asyncio.run(decode_in_turns(decode_rerank, RerankBody, body, LISTS))
    except RequestFailed as failure:
        return failure.message


@given(fields=FIELDS, is_ascii=st.booleans(), comma=st.sampled_from([",", ", ", " ,\n "]), cut=st.integers(0, 3))
def test_any_body_becomes_the_same(fields: dict[str, Any], is_ascii: bool, comma: str, cut: int) -> None:
    body = json.dumps(fields, ensure_ascii=is_ascii, separators=(comma, ": ")).encode()
    body = body[: len(body) - cut] if cut else body
    with mock.patch.multiple(large_body, LARGE_LIST=2, PIECE=1):
        assert in_turns(body) == at_once(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"query":"q","documents":["a"],"documents":["b","c"]}',
        b'{"query":"q","documents":[",",",a","b",","]}',
        b'{"query":"q","documents":["a","b",]}',
        b'{"query":"q","documents":["a",,"b"]}',
        b'{"query":"q","documents":["a","\xff"]}',
        b'{"query":"q","documents":["a","\\ud800"]}',
        b'{"query":"q","documents":["a"}',
        b'{"query":"q","documents":[]}',
        b'{"query":"q","documents":[ ]}',
        b'{"query":"q","documents":[["a","b"],"c"]}',
        b'{"query":"q","documents":[{"text":"a"},{"text":"b"}]}',
        b'{"documents":["a","b"]}',
        b'["a","b"]',
    ],
)
def test_odd_ones_too(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_body, "LARGE_LIST", 1)
    monkeypatch.setattr(large_body, "PIECE", 1)
    assert in_turns(body) == at_once(body)


def test_a_large_list_is_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [f'{number} says "x", or [y], and \\' for number in range(10_000)]
    body = json.dumps({"query": "q", "documents": documents, "top_n": 3}).encode()
    sizes: list[int] = []

    def note(sent: bytes) -> RerankBody:
        sizes.append(len(sent))
        return decode_rerank(sent)

    decoded = asyncio.run(decode_in_turns(note, RerankBody, body, LISTS))
    assert decoded == decode_rerank(body)
    assert len(body) > 4 * LARGE_LIST and sizes == [len('{"query":"q","documents":[],"top_n":3}')]
