"""Lists of texts that are known by their bytes: the same is decoded, the same is refused, and nobody else is timed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend import body_values, known_lists
from frontend.auth import digest_of
from frontend.body_values import check_values
from frontend.call import Call
from frontend.errors import RequestFailed
from frontend.known_lists import BEGINNING, MOST_BESIDE, MOST_RAW, KnownLists, ShortBody
from frontend.large_body import LARGE_LIST
from frontend.ranking import RankingTask
from frontend.repeated_documents import MOST_LISTS
from frontend.schemas import RerankBody, decode_rerank
from tests.frontend.surface import Surface

LIMIT = 4  # of documents
TEXTS = ["known, text \\ [", '"],"documents":["é', ""]
RAW = '["known, text \\\\ [" ,"\\"],\\"documents\\":[\\"é", "" ]'.encode()
BESIDE = b'{"query":"q","documents":%s,"top_n":2}'


def known(raw: bytes = RAW, texts: Sequence[str] = TEXTS, owner: str = "", field: str = "documents") -> KnownLists:
    """A list that came for a third time."""
    lists = KnownLists()
    learn(lists, raw, texts, owner, field)
    return lists


def learn(
    lists: KnownLists, raw: bytes, texts: Sequence[str], owner: str = "", field: str = "documents", beside: bytes = b""
) -> None:
    lists.want(owner, texts)
    body = beside + BESIDE.replace(b"documents", field.encode()) % raw
    asyncio.run(lists.learn(owner, body, {"texts": None, field: json.loads(raw)}))


Outcome = RerankBody | tuple[str, str | None]


def at_once(body: bytes) -> Outcome:
    """What the whole body is."""
    try:
        asyncio.run(check_values(body, LIMIT))
        return decode_rerank(body)
    except RequestFailed as failure:
        return failure.message, failure.param


def through(lists: KnownLists, body: bytes) -> Outcome:
    """As `Call` goes about it."""
    short = lists.shorten("", body)
    if short is not None:
        try:
            asyncio.run(check_values(short.body, LIMIT, short.commas))
        except RequestFailed:
            return at_once(body)
        decoded = short.decode(decode_rerank)
        if decoded is not None:
            return decoded
    return at_once(body)


@pytest.fixture(autouse=True, scope="module")
def few_bytes_and_commas_are_many() -> Iterator[None]:
    with (
        mock.patch.object(known_lists, "LARGE_LIST", 2),
        mock.patch.multiple(body_values, FEW_COMMAS=9, MAX_OTHERS=14, MAX_PARTS=6, MAX_NUMBERS=12),
    ):
        yield


SPACE = st.sampled_from(["", "", " ", "\n\t"])
TEXT = RAW.decode()
VALUES = st.one_of(
    st.just(TEXT),
    st.just(TEXT),
    st.just(TEXT.replace(" ", "")),
    st.sampled_from(
        ['"q"', "null", "[]", "1", '["a","b"]', "[1,2]", '"a\\ud800"', '"\x00"', "tru", '"', "[", '{"n":1}']
    ),
    st.sampled_from([f"[{TEXT}]", f'{{"documents":{TEXT}}}', f'{{"text":{TEXT}}}', f'"{TEXT}"', json.dumps(TEXT)]),
    st.sampled_from([TEXT[:-1], TEXT[1:], TEXT + TEXT, f"{TEXT},", TEXT[:-1] + ',"d"]', '["d",' + TEXT[1:]]),
    st.integers(1, 9).map(lambda n: json.dumps([{"content": [{"type": "text", "text": "a"}] * n}, "b"])),
    st.integers(1, 9).map(lambda n: json.dumps({"embeddings": [[0.5] * n] * 3, "more": [1] * n})),
    st.integers(1, 20).map(lambda n: json.dumps([""] * n)),
)
NAMES = st.sampled_from(
    ["documents", "documents", "documents", "docum\\u0065nts", "texts", "query", "top_n", "model", "unknown"]
)


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """Fields in any order and dress, some twice, some wrong; some cut off, some with more behind them."""
    space = draw(SPACE)
    fields = draw(st.lists(st.tuples(NAMES, VALUES), max_size=4))
    if draw(st.booleans()):
        fields.insert(draw(st.integers(0, len(fields))), ("query", '"q"'))
        fields.insert(draw(st.integers(0, len(fields))), ("documents", TEXT))
    inner = f"{space},".join(f'{space}"{name}"{space}:{space}{value}' for name, value in fields)
    behind = draw(st.sampled_from(["", "", "", "", "}", ",", TEXT, ' "x"']))
    content = f"{space}{{{inner}{space}}}{space}{behind}".encode("utf-8", "surrogatepass")
    return content[: len(content) - draw(st.sampled_from([0, 0, 0, 0, 1, 3]))]


FRAGMENTS = (b'{"documents":', b'"query":"q"', b'"query":', b'"texts":', b'{"query":"q","documents":', b'["', b'"]')
LETTERS = (*(bytes([letter]) for letter in b'{}[],:"\\ 1'), b"\xc3", b"\xff", b"\xef\xbb\xbf")
PIECES = st.sampled_from([RAW, RAW, RAW[:-1], *FRAGMENTS, *LETTERS])


@settings(max_examples=600)
@given(objects() | st.lists(PIECES, max_size=9).map(b"".join))
def test_any_body_becomes_the_same_or_is_refused_in_the_same_words(body: bytes) -> None:
    assert through(known(), body) == at_once(body)


@given(st.lists(st.text(max_size=9), min_size=1, max_size=LIMIT), st.booleans(), st.sampled_from([",", ", ", " ,\n"]))
def test_any_list_of_texts_can_be_known(texts: list[str], is_ascii: bool, comma: str) -> None:
    raw = json.dumps(texts, ensure_ascii=is_ascii, separators=(comma, ":")).encode("utf-8", "surrogatepass")
    short = known(raw, texts).shorten("", BESIDE % raw)
    assert short is not None and short.decode(decode_rerank) == RerankBody(query="q", documents=[*texts], top_n=2)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(BESIDE % RAW, id="as-it-was"),
        pytest.param(b'{"documents":%s,"query":"another one"}' % RAW, id="before-the-query"),
        pytest.param(
            b'{"model":null,"query":"%s","documents": %s }\n' % (b"long " * 99, RAW), id="behind-a-long-query"
        ),
        pytest.param(b'{"query":"q","documents":["a"],"documents":%s}' % RAW, id="the-last-of-two"),
        pytest.param(b'{"query":"q","texts":["a"],"documents":%s}' % RAW, id="beside-another-list"),
    ],
)
def test_a_known_list_is_decoded_as_one_string_wherever_it_stands(body: bytes) -> None:
    lists = known()
    short = lists.shorten("", body)
    assert short is not None and RAW not in short.body and len(short.body) < len(body)
    decoded = short.decode(decode_rerank)
    assert decoded == decode_rerank(body) and decoded is not None and decoded.documents is TEXTS


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"query":"q","texts":%s}' % RAW, id="another-field"),
        pytest.param(b'{"query":"q","unknown":%s,"documents":["a"]}' % RAW, id="an-unknown-field"),
        pytest.param(b'{"query":"q","documents":%s,"documents":["a"]}' % RAW, id="not-the-last"),
        pytest.param(b'{"query":"q","documents":[%s]}' % RAW, id="within-a-list"),
        pytest.param(b'{"query":"%s","documents":%s}' % (RAW, RAW), id="within-a-string"),
        pytest.param(b'{"query":%s,"documents":%s}' % (json.dumps(TEXT).encode(), RAW[:-1]), id="cut-off"),
        pytest.param(BESIDE % RAW.replace(b"known", b"other"), id="another-list"),
        pytest.param(BESIDE % RAW.replace(b" ,", b","), id="another-dress"),
        pytest.param(b'{"query":"q","documents":%s} x' % RAW, id="not-json"),
        pytest.param(b'{"query":"%s","documents":%s}' % (b"q" * MOST_BESIDE, RAW), id="beside-much"),
    ],
)
def test_a_list_elsewhere_is_not_taken_for_it(body: bytes) -> None:
    assert known().shorten("", body) is None


def test_lists_that_begin_alike_are_told_apart() -> None:
    raws = [b'["%s", "%d"]' % (b"a" * BEGINNING, number) for number in range(3)]
    lists = known(raws[0], json.loads(raws[0]))
    learn(lists, raws[1], json.loads(raws[1]))
    for raw, is_known in zip(raws, [True, True, False], strict=True):
        body = BESIDE % raw
        assert (lists.shorten("", body) is not None) is is_known and through(lists, body) == at_once(body)


def test_who_guesses_wrong_what_stands_for_a_list_finds_nothing() -> None:
    tokens = {short.body for short in (known().shorten("", BESIDE % RAW) for _ in range(2)) if short is not None}
    assert len(tokens) == 2, "each process has its own"
    lists = known()
    assert lists.shorten("", BESIDE % b'["token"]') is None
    found = lists.shorten("", BESIDE % RAW)
    assert found is not None
    short = ShortBody(BESIDE % b'["other"]', found.known, "token")
    assert short.decode(decode_rerank) is None


def test_the_commas_of_a_list_count_when_it_is_not_there() -> None:
    """A query of as many parts as documents may be is looked at only where there is much beside."""
    parts = json.dumps({"content": [{"type": "text"}] * (LIMIT + 1)}).encode()
    body = b'{"query":%s,"documents":%s}' % (parts, b'["%s"]' % (b"," * 9))
    lists = known(b'["%s"]' % (b"," * 9), ["," * 9])
    short = lists.shorten("", body)
    assert short is not None and short.commas == 9
    message = "query.content: more than 4, at most 4 (--max-documents-per-request)"
    assert through(lists, body) == at_once(body) == (message, "query.content")


def test_a_list_is_known_only_once_it_was_wanted_and_came_again() -> None:
    lists = KnownLists()
    asyncio.run(lists.learn("", BESIDE % RAW, {"documents": TEXTS}))
    assert lists.shorten("", BESIDE % RAW) is None
    lists.want("", TEXTS)
    assert lists.shorten("", BESIDE % RAW) is None
    asyncio.run(lists.learn("", BESIDE % b'["other"]', {"documents": ["other"]}))
    assert lists.shorten("", BESIDE % RAW) is None
    asyncio.run(lists.learn("", BESIDE % RAW, {"documents": list(TEXTS)}))
    assert lists.shorten("", BESIDE % RAW) is not None


def test_a_list_is_known_to_its_owner_alone() -> None:
    lists = known(owner="a")
    assert lists.shorten("a", BESIDE % RAW) is not None
    assert lists.shorten("b", BESIDE % RAW) is None and lists.shorten("", BESIDE % RAW) is None
    lists.want("b", TEXTS)
    asyncio.run(lists.learn("a", BESIDE % RAW, {"documents": TEXTS}))
    assert lists.shorten("b", BESIDE % RAW) is None
    learn(lists, RAW, TEXTS, "b")
    assert all(lists.shorten(owner, BESIDE % RAW) is not None for owner in "ab")


def test_the_last_few_are_known_of_those_that_come() -> None:
    lists = KnownLists()
    raws = [b'["text %d"]' % number for number in range(MOST_LISTS + 1)]
    for raw in raws[:-1]:
        learn(lists, raw, json.loads(raw))
    for raw in (*raws[1:-1], raws[0]):
        short = lists.shorten("", BESIDE % raw)
        assert short is not None
        lists.use(short)
    learn(lists, raws[-1], json.loads(raws[-1]))
    assert [lists.shorten("", BESIDE % raw) is not None for raw in raws] == [True, False, *[True] * (MOST_LISTS - 1)]


def test_what_is_wanted_twice_is_kept_once() -> None:
    lists = known()
    for texts in [TEXTS, list(TEXTS)] * MOST_LISTS:
        lists.want("", texts)
    assert lists.shorten("", BESIDE % RAW) is not None


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        pytest.param(b'["%s"]' % (b"a" * MOST_RAW), BESIDE, id="large"),
        pytest.param(RAW, b'{"query":"%s","documents":%%s}' % (b"q" * (MOST_BESIDE + 1)), id="beside-much"),
        pytest.param(RAW, b'{"query":"q","documents":%s,"documents":["other"]}', id="what-was-decoded-is-another"),
    ],
)
def test_a_list_that_cannot_be_known_is_tried_once_at_most(raw: bytes, body: bytes) -> None:
    lists = KnownLists()
    texts = json.loads(raw)
    lists.want("", texts)
    asyncio.run(lists.learn("", body % raw, {"documents": texts}))
    for other in (raw, b'["other"]'):
        assert lists.shorten("", BESIDE % other) is None
        asyncio.run(lists.learn("", BESIDE % other, {"documents": texts}))
        assert lists.shorten("", BESIDE % other) is None


def test_lists_of_objects_are_not_known() -> None:
    lists = KnownLists()
    lists.want("", [*TEXTS, {"text": "a"}])
    raw = b'["a"]'
    learn(lists, raw, ["a"])
    assert [each.texts for each in lists._lists] == [["a"]]


# --- whole requests ---------------------------------------------------------------------------------------------------

DOCUMENTS = [f"heart {number} " + "three, " * 700 for number in range(16)]
assert len(json.dumps(DOCUMENTS)) > LARGE_LIST + BEGINNING


class Watched:
    """A surface, and how many bytes were decoded of each request's body."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **config: Any) -> None:
        self.surface = Surface(**config)
        self.decoded: list[int] = []

        def decode(body: bytes) -> RerankBody:
            self.decoded.append(len(body))
            return decode_rerank(body)

        monkeypatch.setattr("frontend.routes.rerank.decode_rerank", decode)

    def is_known(self, key: str = "", path: str = "/rerank", **fields: Any) -> bool:
        """Ask; whether the list of documents was decoded as one string. The answer is the one of who asks first."""
        self.decoded.clear()
        body = {"query": "three hearts", "documents": DOCUMENTS, "return_documents": False, **fields}
        headers = {"authorization": f"Bearer {key}"} if key else {}
        answer = self.surface.request("POST", path, json=body, headers=headers)
        first = Surface().request("POST", path, json=body)
        assert answer.status_code == first.status_code == 200, answer.text
        results = "results" if isinstance(answer.json(), dict) else slice(None)
        assert answer.json()[results] == first.json()[results]
        return self.decoded[0] < 1000


def test_the_fourth_request_for_the_same_documents_is_decoded_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    asked = [watched.is_known(query=f"{number} hearts") for number in range(6)]
    assert asked == [False, False, False, True, True, True]
    first, *_, last = watched.surface.ranker.tasks
    assert last.documents == first.documents and last.queries != first.queries
    assert not watched.is_known(documents=[*DOCUMENTS[1:], "other"])
    assert watched.is_known(return_documents=True, top_n=3)
    assert watched.is_known(path="/v2/rerank")


def test_small_lists_that_repeat_do_not_take_the_place_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_lists, "LARGE_LIST", LARGE_LIST)
    watched = Watched(monkeypatch)
    assert [watched.is_known() for _ in range(4)][-1]
    for number in range(MOST_LISTS + 1):
        for _ in range(2):
            watched.surface.post("/rerank", {"query": "q", "documents": [f"{number} {place}" for place in range(20)]})
    assert watched.is_known()


def test_tei_s_too(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    fields: dict[str, Any] = {"documents": None, "texts": DOCUMENTS, "return_text": True}
    assert [watched.is_known(**fields) for _ in range(5)] == [False, False, False, True, True]


@pytest.mark.parametrize(("is_cache_per_key", "is_shared"), [(True, False), (False, True)])
def test_keys_know_of_each_other_s_lists_only_where_the_cache_is_shared(
    is_cache_per_key: bool, is_shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = (digest_of("a"), digest_of("b"))
    watched = Watched(monkeypatch, api_key_digests=digests, is_cache_per_key=is_cache_per_key)
    assert [watched.is_known("a") for _ in range(4)] == [False, False, False, True]
    assert watched.is_known("b") is is_shared
    assert watched.is_known("a")


def test_what_is_sent_with_a_salt_is_not_known_to_anybody(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    assert not any(watched.is_known(cache_salt="s") for _ in range(5))
    assert [watched.is_known() for _ in range(4)] == [False, False, False, True]


def test_who_sends_a_salt_changes_nothing_that_others_could_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """K2: neither when a list is known, nor which one goes for a new one."""
    watched = Watched(monkeypatch)
    assert [watched.is_known() for _ in range(2)] == [False, False]
    assert not watched.is_known(cache_salt="victim")
    assert [watched.is_known() for _ in range(2)] == [False, True]
    others = [[f"{number} {text}" for text in DOCUMENTS] for number in range(MOST_LISTS)]
    for documents in others[:-1]:
        assert [watched.is_known(documents=documents) for _ in range(4)][-1]
    assert watched.is_known(cache_salt="victim")
    assert [watched.is_known(documents=others[-1]) for _ in range(4)][-1]
    assert not watched.is_known()


def test_a_body_with_a_known_list_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    kept: list[int] = []
    make_task = Call.make_task

    async def make(call: Call, *arguments: Any) -> RankingTask:
        kept.append(len(call.take_body()))
        return await make_task(call, *arguments)

    monkeypatch.setattr(Call, "make_task", make)
    assert [watched.is_known() for _ in range(4)][-1]
    assert set(kept) == {0}


def test_names_are_those_of_the_request_s_own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    assert [watched.is_known() for _ in range(4)][-1]
    assert watched.is_known(max_tokens_per_doc=9) and watched.is_known(cache_salt="s")
    *_, plain, short, salted = watched.surface.ranker.tasks
    first = [task.documents[0] for task in (plain, short, salted)]
    assert len(set(first)) == 3, "another limit, another salt: other names"


@pytest.mark.parametrize(("field", "value"), [("query", None), ("top_n", -1), ("truncate_prompt_tokens", 0)])
def test_what_is_wrong_beside_a_known_list_is_said_in_the_same_words(
    field: str, value: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch)
    assert [watched.is_known() for _ in range(4)][-1]
    body = {"query": "q", "documents": DOCUMENTS, "top_n": 1} | {field: value}
    answers = [surface.post("/rerank", body).json() for surface in (watched.surface, Surface())]
    assert answers[0]["error"] == answers[1]["error"] and answers[0]["error"]["param"] == field
    content = json.dumps(body).encode().replace(b"{", b"[", 1)
    answers = [s.request("POST", "/rerank", content=content).json() for s in (watched.surface, Surface())]
    assert answers[0]["error"] == answers[1]["error"]
