"""Explanations: what each query token matched, where it stands, and what of a document is relevant."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from frontend.explanation import RelevantSpan, RelevantSpansOptions, TokenMatch, relevant_spans
from ipc.messages import MAX_ALIGNED_ROWS, ModelSpec, TextSpec
from tests.frontend.surface import DOCUMENTS, QUERY, Surface, WordRanker, embeddings, indices, message_of

ENABLED = {"mode": "enabled"}


def explanations(response: httpx.Response) -> dict[int, list[dict[str, Any]]]:
    assert response.status_code == 200, response.text
    return {result["index"]: result["explanation"] for result in response.json()["results"]}


def spans_of(response: httpx.Response) -> dict[int, Any]:
    assert response.status_code == 200, response.text
    return {result["index"]: result.get("relevant_spans") for result in response.json()["results"]}


# --- explain -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_each_query_token_says_what_it_matched_and_where(path: str) -> None:
    response = Surface().rerank(path, documents=["one  heart", "hearts,three"], explain=True)
    assert indices(response) == [0, 1]
    assert explanations(response)[1] == [
        {"query_token": "[CLS]", "document_token": "[CLS]", "similarity": 1.0, "query_row": 0, "document_row": 0},
        word("three", [0, 5], [7, 12], 1, 3),
        word("hearts", [6, 12], [0, 6], 2, 1),
        {"query_token": "[SEP]", "document_token": "[SEP]", "similarity": 1.0, "query_row": 3, "document_row": 4},
    ]
    assert [match["similarity"] for match in explanations(response)[0]] == [1.0, 0.25, 0.25, 1.0]


def word(token: str, query_span: list[int], document_span: list[int], *rows: int) -> dict[str, Any]:
    """A match of equal words."""
    tokens = {"query_token": token, "query_span": query_span, "document_token": token, "document_span": document_span}
    return {**tokens, "similarity": 1.0, "query_row": rows[0], "document_row": rows[1]}


@pytest.mark.parametrize("asked", [None, False])
def test_nothing_is_aligned_or_shown_for_those_who_do_not_ask(asked: bool | None) -> None:
    surface = Surface()
    response = surface.rerank(explain=asked, relevant_spans={"mode": "disabled"} if asked is False else None)
    assert "explanation" not in response.text and "relevant_spans" not in response.text
    assert surface.ranker.tasks[0].choose_aligned is None
    answer = surface.post("/score", {"queries": QUERY, "documents": DOCUMENTS, "explain": asked})
    assert "explanation" not in answer.text and surface.ranker.tasks[1].choose_aligned is None


def test_only_the_results_that_are_shown_are_explained() -> None:
    surface = Surface()
    response = surface.rerank(top_n=2, explain=True)
    assert set(explanations(response)) == {3, 1}
    assert surface.ranker.aligned == [3, 1]


def test_rows_of_embeddings_have_neither_token_nor_span() -> None:
    response = Surface().rerank(documents=[embeddings(3), "three"], explain=True)
    by_value, text = (explanations(response)[index] for index in range(2))
    assert all(
        set(match) - {"query_span"} == {"query_token", "similarity", "query_row", "document_row"} for match in by_value
    )
    assert all("document_token" in match for match in text)
    both = Surface(WordRanker(spec=None)).rerank(query=embeddings(4), documents=[embeddings(2)], explain=True)
    assert [set(match) for match in explanations(both)[0]] == [{"similarity", "query_row", "document_row"}] * 4


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_pairs_are_explained_each_with_its_own_query(path: str) -> None:
    body = {"queries": ["three", "hearts"], "documents": ["hearts three", "hearts three"], "explain": True}
    data = Surface(WordRanker(rows=3)).post(path, body).json()["data"]
    assert [[match["query_token"] for match in pair["explanation"]] for pair in data] == [
        ["[CLS]", "three", "[SEP]"],
        ["[CLS]", "hearts", "[SEP]"],
    ]
    assert [pair["explanation"][1]["document_span"] for pair in data] == [[7, 12], [0, 6]]


def test_teis_and_infinitys_results_are_explained_too() -> None:
    tei = Surface().post("/rerank", {"query": QUERY, "texts": DOCUMENTS[:2], "explain": True}).json()
    infinity = Surface(dialect="infinity").rerank(documents=DOCUMENTS[:2], explain=True)
    assert {each["index"]: each["explanation"] for each in tei} == explanations(infinity)
    assert len(explanations(infinity)[0]) == 4


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        pytest.param(
            "/rerank", {"query": [[1.0] * 4], "documents": [embeddings(1)], "explain": True}, "explain", id="next-plaid"
        ),
        pytest.param("/rerank", {"query": "q", "documents": ["d"], "explain": "yes"}, "explain", id="no-bool"),
        pytest.param(
            *(
                "/v2/rerank",
                {"query": "q", "documents": ["d"], "relevant_spans": {"mode": "on"}},
                "enabled or disabled",
            ),
            id="no-mode",
        ),
        pytest.param(
            *(
                "/v2/rerank",
                {"query": "q", "documents": ["d"], "relevant_spans": {"threshold": 2}},
                "relevant_spans.threshold",
            ),
            id="threshold-above-1",
        ),
        pytest.param(
            *(
                "/v2/rerank",
                {"query": "q", "documents": ["d"], "relevant_spans": {"max_spans": 0}},
                "relevant_spans.max_spans",
            ),
            id="no-spans",
        ),
    ],
)
def test_what_cannot_be_explained_is_a_400_that_names_the_field(path: str, body: object, param: str) -> None:
    assert param in message_of(Surface().post(path, body))


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"explain": True}, "explain"), ({"relevant_spans": ENABLED}, "relevant_spans")],
)
def test_more_query_tokens_than_an_answer_explains_are_refused_with_the_rule(fields: dict[str, Any], name: str) -> None:
    surface = Surface(WordRanker(rows=MAX_ALIGNED_ROWS // 2))
    message = message_of(surface.rerank(documents=["d"] * 3, **fields))
    assert message.startswith(f"{name}: {3 * (MAX_ALIGNED_ROWS // 2)} query tokens over 3 results, at most")
    assert "three" in surface.rerank(documents=["three"] * 3, top_n=0).text  # without it nothing is too much
    many = {"queries": "q", "documents": ["d"] * 3, "explain": True}
    assert message_of(surface.post("/score", many)).startswith("explain: ")


def test_rows_that_are_not_those_of_the_tokens_are_a_failure_not_a_wrong_answer() -> None:
    """Were the tokenizer another one than the encoder's."""
    assert "number of tokens" in message_of(Surface(WordRanker(rows=5)).rerank(explain=True), 500)


# --- relevant spans ------------------------------------------------------------------------------------------------


def test_relevant_spans_are_what_the_querys_words_matched() -> None:
    response = Surface().rerank("/v2/rerank", documents=["one heart", "hearts,three three", ""], relevant_spans=ENABLED)
    found = spans_of(response)
    assert found[1] == [{"start": 0, "end": 6, "score": 1.0}, {"start": 7, "end": 12, "score": 1.0}]
    assert found[2] == []
    assert found[0] == []  # [CLS] is what the words match best here, and no part of the text
    assert "explanation" not in response.text


def test_relevant_spans_are_left_out_where_there_is_no_text() -> None:
    assert spans_of(Surface().rerank(documents=[embeddings(2), "three"], relevant_spans={})) == {
        0: None,
        1: [{"start": 0, "end": 5, "score": 1.0}],
    }


TEXT = "The octopus has three hearts, and blue blood."


def match(start: int, end: int, similarity: float, is_word: bool = True) -> TokenMatch:
    return TokenMatch(
        query_span=(0, 1) if is_word else UNSET,
        document_span=(start, end) if end else UNSET,
        similarity=similarity,
        query_row=0,
        document_row=0,
    )


@pytest.mark.parametrize(
    ("matches", "options", "expected"),
    [
        pytest.param([match(4, 11, 0.5)], {}, [(4, 11, 0.5)], id="one"),
        pytest.param([match(22, 28, 0.9), match(16, 21, 0.5)], {}, [(16, 28, 0.9)], id="blanks-between-join"),
        pytest.param(
            [match(22, 28, 0.9), match(30, 33, 0.5)], {}, [(22, 28, 0.9), (30, 33, 0.5)], id="a-comma-divides"
        ),
        pytest.param([match(4, 8, 0.4), match(8, 11, 0.3)], {}, [(4, 11, 0.4)], id="pieces-of-a-word"),
        pytest.param([match(4, 11, 0.3), match(4, 11, 0.6)], {}, [(4, 11, 0.6)], id="matched-twice"),
        pytest.param([match(4, 11, 0.0999)], {}, [], id="below-the-default-threshold"),
        pytest.param([match(4, 11, 0.5)], {"threshold": 0.5}, [(4, 11, 0.5)], id="at-the-threshold"),
        pytest.param([match(4, 11, -0.1), match(4, 11, 0.0)], {"threshold": 0.0}, [(4, 11, 0.0)], id="never-below-0"),
        pytest.param([match(4, 11, 1.0000002)], {}, [(4, 11, 1.0)], id="never-above-1"),
        pytest.param([match(4, 11, 0.9, is_word=False)], {}, [], id="markers-match-nothing"),
        pytest.param([match(0, 0, 0.9)], {}, [], id="matched-a-marker"),
        pytest.param(
            [match(0, 3, 0.2), match(16, 21, 0.9), match(30, 33, 0.8)],
            {"max_spans": 2},
            [(16, 21, 0.9), (30, 33, 0.8)],
            id="the-best-in-the-order-of-the-text",
        ),
        pytest.param(
            [match(4, 11, 0.5), match(30, 33, 0.5)], {"max_spans": 1}, [(4, 11, 0.5)], id="equal-ones-the-first"
        ),
    ],
)
def test_relevant_spans(
    matches: list[TokenMatch], options: dict[str, Any], expected: list[tuple[int, int, float]]
) -> None:
    found = relevant_spans(matches, True, TEXT, RelevantSpansOptions(**options))
    assert found == [RelevantSpan(*span) for span in expected]


def test_every_row_of_a_query_of_embeddings_counts() -> None:
    matches = [match(4, 11, 0.9, is_word=False)]
    assert relevant_spans(matches, False, TEXT, RelevantSpansOptions()) == [RelevantSpan(4, 11, 0.9)]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5), st.floats(-1, 1)), max_size=12),
    st.none() | st.floats(0, 1),
    st.none() | st.integers(1, 4),
)
def test_relevant_spans_are_apart_and_hold_every_good_match(
    places: list[tuple[int, int, float]], threshold: float | None, max_spans: int | None
) -> None:
    text = "ab cd,ef gh  ij.kl mn op qr st uv wx yz"
    matches = [match(start, start + length, similarity) for start, length, similarity in places]
    spans = relevant_spans(matches, True, text, RelevantSpansOptions("enabled", threshold, max_spans))
    for before, after in pairwise(spans):
        assert before.end < after.start and text[before.end : after.start].strip()
    good = [m for m in matches if m.similarity >= (0.1 if threshold is None else threshold)]
    if max_spans is None:
        for each in good:
            assert each.document_span is not UNSET
            start, end = each.document_span
            assert any(s.start <= start and end <= s.end and s.score >= each.similarity for s in spans)
    else:
        assert len(spans) <= max_spans
    assert not spans or max(s.score for s in spans) == max(m.similarity for m in good)


# --- markers, prompts, skipped tokens ------------------------------------------------------------------------------


def test_markers_prompts_and_skipped_tokens_shift_nothing() -> None:
    query = TextSpec(32, marker_ids=[3], prefix="one ")
    document = TextSpec(180, marker_ids=[3], prefix="one, ", skip_token_ids=[7])
    ranker = WordRanker(ModelSpec("m", 4, query, document), rows=6)
    found = explanations(Surface(ranker).rerank(documents=["hearts, three"], explain=True))[0]
    places = {
        each["query_token"]: (each.get("query_span"), each.get("document_span"), each["document_row"]) for each in found
    }
    # rows of the document: [CLS] one one hearts three [SEP]; commas are skipped
    assert places == {
        "[CLS]": (None, None, 0),
        "one": (None, None, 1),
        "three": ([0, 5], [8, 13], 4),
        "hearts": ([6, 12], [0, 6], 3),
        "[SEP]": (None, None, 5),
    }
