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
from frontend.large_body import LARGE_LIST, PIECE, QUICK_BODY, SAMPLE, decode_in_turns
from frontend.schemas import (
    SIDES,
    RerankBody,
    RerankingBody,
    ScoreBody,
    decode_rerank,
    decode_reranking,
    decode_score,
)
from frontend.turns import Turns

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


def told_steps(body: bytes, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done on the way: what others may come between is a "step"."""
    told: list[str] = []
    step, texts = Turns.before_step, large_body._texts

    async def before_step(self: Turns) -> None:
        told.append("step")
        await step(self)

    class Texts:
        def decode(self, piece: bytes) -> list[str]:
            told.append(f"{len(piece)} bytes")
            return texts.decode(piece)

    def note(sent: bytes) -> RerankBody:
        told.append("body" if len(sent) == len(body) else "rest")
        return decode_rerank(sent)

    monkeypatch.setattr(Turns, "before_step", before_step)
    monkeypatch.setattr(large_body, "_texts", Texts())
    assert asyncio.run(decode_in_turns(note, RerankBody, body, ["documents", "texts"])) == decode_rerank(body)
    return told


def body_of(documents: Sequence[str], is_ascii: bool = True) -> bytes:
    return json.dumps({"query": "q", "documents": documents, "top_n": 3}, ensure_ascii=is_ascii).encode()


PLAIN = QUICK_BODY // 2000 * "."
MANY_SHORT = 10_000 * ["0123456789"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(body_of(MANY_SHORT), id="many texts"),
        pytest.param(body_of(["long " * SAMPLE, *MANY_SHORT, "long " * SAMPLE]), id="many in the middle"),
        pytest.param(body_of([*["long " * SAMPLE] * 4, *MANY_SHORT]), id="many at the end"),
        pytest.param(body_of([PLAIN, PLAIN] * 1010), id="too large"),
        pytest.param(body_of([PLAIN] * 1000 + ["\u5b57"], is_ascii=False), id="another script"),
        pytest.param(body_of([200 * "\u5b57"] * 1000), id="escapes"),
        pytest.param(body_of([500 * "a\n"] * 1000), id="short escapes"),
    ],
)
def test_what_takes_long_is_decoded_in_pieces_and_others_come_between(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = told_steps(body, monkeypatch)
    assert told[0] == "step" and told[-1] == "rest" and "body" not in told
    pieces = told[1:-1]
    assert set(pieces[0::2]) == {"step"}, "before each piece"
    sizes = [int(piece.removesuffix(" bytes")) for piece in pieces[1::2]]
    longest = max(map(len, json.loads(body)["documents"]))
    assert len(sizes) >= 6 and max(sizes) <= PIECE + 6 * longest + 10


def test_a_few_plain_texts_are_decoded_at_once_after_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told_steps(body_of([PLAIN] * 1700), monkeypatch) == ["step", "body"]


def test_a_small_body_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    body = body_of(["a"] * 1000)
    assert len(body) < LARGE_LIST
    assert told_steps(body, monkeypatch) == ["body"]


def test_texts_that_end_in_a_backslash_are_cut_between(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = told_steps(body_of(["C:\\folder\\"] * 20_000), monkeypatch)[2:-1:2]
    assert max(int(piece.removesuffix(" bytes")) for piece in pieces) < 1.1 * PIECE


def test_nobody_looks_long_for_the_end_of_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    told = told_steps(body_of(['says "x", ' * 100_000, "\u5b57"]), monkeypatch)
    assert told == ["step", "body"], "it is decoded at once instead"
