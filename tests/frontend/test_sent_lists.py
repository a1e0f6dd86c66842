"""A body with a list that came before becomes the same as any other body, and so do its faults."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontend import call, sent_lists
from frontend.errors import RequestFailed
from frontend.large_body import decode_in_turns
from frontend.schemas import RerankBody, decode_rerank
from frontend.sent_lists import BEGINNING, LEAST_BODY, MOST_BYTES, MOST_LISTS, WITHIN, CutBody, SentLists
from tests.frontend.surface import RERANK_PATHS, Surface

FIELDS = ("documents", "texts")
TEXTS = ["", "a", 'b"c', "d\\", "é[]", ",", "x" * BEGINNING]
SENT = json.dumps(TEXTS)
# what bodies are made of here: the list in all dress, and what may stand around it
PIECES = [SENT, SENT[:-1], SENT[1:], '"', "\\", "{", "}", "[", "]", ",", " "]
PIECES += ['"query":"q"', '"documents":', '"texts":', '"x":']
PIECES += ['"documents":["z"]', '"documents":null', '"query":"', "null", '{"query":"q","documents":']
VALUES = st.sampled_from(
    [SENT, SENT, f"[{SENT}]", f'{{"documents":{SENT}}}', '"q"', '["z"]', "null", "3", f'"q{SENT}"']
)
NAMES = st.sampled_from(["query", "documents", "texts", "x", "top_n"])

Outcome = RerankBody | tuple[str, str | None]


@st.composite
def written(draw: st.DrawFn) -> str:
    """An object of a few fields, some twice, with anything as their values."""
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=5))
    space = draw(st.sampled_from(["", " ", "\n"]))
    joined = f",{space}".join(f'"{name}":{space}{value}' for name, value in fields)
    return f"{space}{{{joined}}}{space}"


BODIES = written() | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


def at_once(body: bytes) -> Outcome:
    try:
        return decode_rerank(body)
    except RequestFailed as failure:
        return failure.message, failure.param


def knowing() -> SentLists:
    """Knows SENT."""
    known = SentLists()
    known.add(f'{{"query":"q","documents":{SENT}}}'.encode(), "documents", TEXTS)
    return known


def cut(known: SentLists, body: bytes) -> CutBody | None:
    with mock.patch.object(sent_lists, "LEAST_BODY", 0):
        return known.cut(body)


@given(BODIES)
def test_what_is_decoded_without_the_list_is_what_the_whole_body_says(written: str) -> None:
    body = written.encode()
    found = cut(knowing(), body)
    assert (found is not None) == (SENT.encode() in body)
    decoded = asyncio.run(found.decode(decode_rerank, RerankBody, FIELDS)) if found is not None else None
    assert decoded is None or decoded == at_once(body)


@pytest.mark.parametrize(
    ("body", "is_taken"),
    [
        (f'{{"query":"q","documents":{SENT}}}', True),
        (f' {{"documents" : {SENT} , "query":"other", "top_n": 2}} ', True),
        (f'{{"texts":{SENT},"query":"q"}}', True),
        (f'{{"documents":["z"],"query":"q","documents":{SENT}}}', True),
        (f'{{"query":"q","documents":{SENT},"documents":["z"]}}', False),
        (f'{{"query":"q","documents":["z"],"x":{SENT}}}', False),
        (f'{{"query":"q{SENT}"}}', False),
        (f'{{"query":"q","documents":[{SENT}]}}', False),
        (f'{{"query":"q","documents":[{{"embeddings":{SENT}}}]}}', False),
        (f'{{"query":"q","documents":{SENT}', False),
        (f'{{"query":"q","documents":{SENT}{SENT}}}', False),
        (f'{{"query":"q","texts":{SENT},"documents":{SENT}}}', True),
    ],
)
def test_the_list_is_taken_where_it_is_the_value_of_a_field(body: str, is_taken: bool) -> None:
    found = cut(knowing(), body.encode())
    assert found is not None
    decoded = asyncio.run(found.decode(decode_rerank, RerankBody, FIELDS))
    assert decoded == (at_once(body.encode()) if is_taken else None)


def test_a_body_that_has_the_word_itself_is_decoded_as_a_whole() -> None:
    """Nobody can guess it; who could, would only be decoded once more."""
    found = cut(knowing(), f'{{"query":"q","documents":{SENT}}}'.encode())
    assert found is not None
    same = CutBody(found.short.replace(b'"q"', b'"%s"' % found.word.encode()), found.word, found.texts)
    decoded = asyncio.run(same.decode(decode_rerank, RerankBody, FIELDS))
    assert decoded is not None and decoded.query == found.word and decoded.documents == TEXTS


def test_only_the_last_lists_are_known_and_one_that_is_used_stays() -> None:
    known = SentLists()
    bodies = [json.dumps({"documents": [f"{number} {'x' * LEAST_BODY}"]}).encode() for number in range(MOST_LISTS + 1)]
    for body in bodies[:MOST_LISTS]:
        known.add(body, "documents", ["x"])
    assert known.cut(bodies[0]) is not None
    known.add(bodies[MOST_LISTS], "documents", ["x"])
    assert [known.cut(body) is not None for body in bodies] == [True, False, *[True] * (MOST_LISTS - 1)]


def test_a_list_is_looked_for_near_a_bodys_beginning_only_and_in_no_small_body() -> None:
    known = SentLists()
    texts = ["x" * LEAST_BODY]
    body = json.dumps({"documents": texts})
    known.add(body.encode(), "documents", texts)
    assert known.cut(body.encode()) is not None
    assert known.cut((" " * (WITHIN // 2) + body).encode()) is not None
    assert known.cut((" " * WITHIN + body).encode()) is None
    small = json.dumps({"documents": texts[0][:100]}).encode()
    assert not known.takes(small) and known.takes(body.encode()) and not known.takes(b" " * (MOST_BYTES + 1))
    known.add(small, "documents", [])
    assert known.cut(small) is None


LARGE = [f"{number} one heart " * 100 for number in range(60)]
CASES: list[tuple[str, str, str, dict[str, Any]]] = [(path, "query", "documents", {}) for path in RERANK_PATHS]
CASES += [("/rerank", "query", "texts", {"return_text": True}), ("/v1/reranking", "query", "input", {"model": "m"})]
CASES += [("/score", "text_1", "text_2", {}), ("/score", "queries", "documents", {})]


def content_of(surface: Surface, path: str, body: dict[str, Any]) -> Any:
    """An answer without what is another in each."""
    response = surface.post(path, body)
    content = response.json()
    if isinstance(content, dict):
        for name in ("id", "created"):
            content.pop(name, None)
    return response.status_code, content


@pytest.mark.parametrize(("path", "query", "documents", "fields"), CASES)
def test_who_asks_about_the_same_list_again_gets_the_same_answers(
    path: str, query: str, documents: str, fields: dict[str, Any]
) -> None:
    surface = Surface()
    whole, short = (mock.Mock(wraps=decode_in_turns) for _ in range(2))
    for text in ["one", "heart", "three", "hearts 7", "9"]:
        body = {query: text, documents: LARGE, **fields}
        with mock.patch.object(call, "decode_in_turns", whole), mock.patch.object(sent_lists, "decode_in_turns", short):
            answer = content_of(surface, path, body)
        assert answer == content_of(Surface(), path, body) and answer[0] == 200
    assert (whole.call_count, short.call_count) == (2, 3)  # it is known once it has come twice
    assert all(len(each.args[2]) < LEAST_BODY for each in short.call_args_list)


@pytest.mark.parametrize(
    "fields",
    [
        *({"top_n": "x"}, {"query": ""}, {"query": None}, {"documents": [*LARGE[1:], 7]}),
        *({"truncate_prompt_tokens": 0}, {"texts": 3}, {"query": [["x"]]}, {"max_tokens_per_doc": -1}),
    ],
)
def test_what_is_wrong_beside_a_known_list_is_told_as_ever(fields: dict[str, Any]) -> None:
    surface = Surface()
    for _ in range(3):
        surface.post("/rerank", {"query": "one", "documents": LARGE})
    body = {"query": "one", "documents": LARGE, **fields}
    answer = content_of(surface, "/rerank", body)
    assert answer == content_of(Surface(), "/rerank", body) and answer[0] == 400


def test_under_other_rules_a_known_list_has_other_names() -> None:
    surface = Surface()
    for salt in (None, None, None, "s", "s"):
        surface.post("/rerank", {"query": "one", "documents": LARGE, "cache_salt": salt})
    first, *_, other, last = (task.documents for task in surface.ranker.tasks)
    assert other is last and [text.text for text in first] == [text.text for text in last]  # type: ignore[union-attr]
    assert not {text.key for text in first} & {text.key for text in last}  # type: ignore[union-attr]
