"""A large body becomes the same in turns as at once, and so do its faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend import large_body
from frontend.embedding_schemas import (
    EmbedAllBody,
    EmbeddingsBody,
    EncodeBody,
    PoolingBody,
    RerankWithEncodingBody,
    decode_embed_all,
    decode_embeddings_body,
    decode_encode,
    decode_pooling,
    decode_rerank_with_encoding,
)
from frontend.errors import RequestFailed
from frontend.large_body import LARGE_LIST, QUICK_BODY, decode_in_turns
from frontend.schemas import (
    SIDES,
    RerankBody,
    RerankingBody,
    ScoreBody,
    decode_rerank,
    decode_reranking,
    decode_score,
)

TRICKY = st.text(st.sampled_from('"\\,[]{} aé\u2028\U0001f600'), max_size=12)
VALUES: st.SearchStrategy[object] = st.one_of(
    st.lists(TRICKY),
    TRICKY,
    st.integers(),
    st.none(),
    st.lists(TRICKY | st.integers() | st.lists(TRICKY)),
    st.lists(st.fixed_dictionaries({}, optional={"text": TRICKY, "n": st.lists(TRICKY)})),
)

Decode = Callable[[bytes], msgspec.Struct]
# of each kind of body: what decodes it, its lists, its other fields
KINDS: dict[type[msgspec.Struct], tuple[Decode, Sequence[str], Sequence[str]]] = {
    RerankBody: (decode_rerank, ("documents", "texts"), ("query", "top_n")),
    ScoreBody: (decode_score, SIDES, ("model",)),
    RerankingBody: (decode_reranking, ("input",), ("query", "top_k")),
    RerankWithEncodingBody: (decode_rerank_with_encoding, ("documents",), ("query",)),
    PoolingBody: (decode_pooling, ("input",), ("task",)),
    EmbeddingsBody: (decode_embeddings_body, ("input",), ("is_query",)),
    EmbedAllBody: (decode_embed_all, ("inputs",), ("truncate",)),
    EncodeBody: (decode_encode, ("texts",), ("pool_factor",)),
}


@st.composite
def bodies(draw: st.DrawFn) -> tuple[type[msgspec.Struct], bytes]:
    """Of a kind: fields of any value, most of them right, in any order and dress; some cut off."""
    kind = draw(st.sampled_from(list(KINDS)))
    _, lists, others = KINDS[kind]
    fields = {name: st.lists(TRICKY) | VALUES for name in lists} | {"unknown": VALUES}
    fields |= {name: TRICKY | st.integers(-1, 3) for name in others}
    names = draw(st.permutations(list(fields)))
    sent = {name: draw(fields[name]) for name in names if draw(st.booleans())}
    comma = draw(st.sampled_from([",", ", ", " ,\n "]))
    body = json.dumps(sent, ensure_ascii=draw(st.booleans()), separators=(comma, ": ")).encode()
    return kind, body[: len(body) - draw(st.sampled_from([0, 0, 0, 1, 2, 3]))]


Outcome = msgspec.Struct | tuple[str, str | None]


def at_once(kind: type[msgspec.Struct], body: bytes) -> Outcome:
    try:
        return KINDS[kind][0](body)
    except RequestFailed as failure:
        return failure.message, failure.param


def in_turns(kind: type[msgspec.Struct], body: bytes) -> Outcome:
    decode, lists, _ = KINDS[kind]
    try:
        return asyncio.run(decode_in_turns(decode, kind, body, lists))
    except RequestFailed as failure:
        return failure.message, failure.param


@given(kind_and_body=bodies(), piece=st.sampled_from([1, 5]))
def test_any_body_becomes_the_same(kind_and_body: tuple[type[msgspec.Struct], bytes], piece: int) -> None:
    kind, body = kind_and_body
    with mock.patch.multiple(large_body, LARGE_LIST=2, QUICK_BODY=0, PIECE=piece):
        assert in_turns(kind, body) == at_once(kind, body)


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
        b'{"query":"q","documents":""}',
        b'{"query":"q","documents":"  "}',
        b'{"query":"q","documents":{ }}',
        b'{"query":"q","documents":null}',
        b'{"documents":["a","b"]}',
        b'["a","b"]',
    ],
)
def test_odd_ones_too(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_body, "LARGE_LIST", 1)
    monkeypatch.setattr(large_body, "QUICK_BODY", 0)
    monkeypatch.setattr(large_body, "PIECE", 1)
    assert in_turns(RerankBody, body) == at_once(RerankBody, body)


def decoded_sizes(documents: Sequence[str], is_ascii: bool = False) -> list[int]:
    """The sizes of what is decoded with most of the documents cut out of it."""
    body = json.dumps({"query": "q", "documents": documents, "top_n": 3}, ensure_ascii=is_ascii).encode()
    assert len(body) > 4 * LARGE_LIST
    sizes: list[int] = []

    def note(sent: bytes) -> RerankBody:
        sizes.append(len(sent))
        return decode_rerank(sent)

    assert asyncio.run(decode_in_turns(note, RerankBody, body, ["documents", "texts"])) == decode_rerank(body)
    return [size for size in sizes if size < len(body)]


@pytest.mark.parametrize(
    ("count", "text"),
    [(10_000, 10 * "."), (1000, QUICK_BODY // 1000 * "."), (1000, 1000 * "\u5b57"), (1000, 200 * "\x01")],
)
@pytest.mark.parametrize("is_ascii", [False, True])
def test_what_takes_long_is_decoded_in_pieces(count: int, text: str, is_ascii: bool) -> None:
    documents = [f'{number} says "x", or [y], and \\{text}' for number in range(count)]
    assert decoded_sizes(documents, is_ascii) == [len('{"query":"q","documents":[],"top_n":3}')]


def test_a_few_plain_texts_are_decoded_at_once() -> None:
    assert decoded_sizes(1000 * [2000 * "."]) == []
