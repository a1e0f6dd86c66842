"""The rules of many texts at once are those of each."""

from __future__ import annotations

from array import array
from itertools import accumulate

from hypothesis import example, given
from hypothesis import strategies as st

from engine.text_rules import TextRules

VOCAB, POSITIONS = 20, 6
rules = TextRules(VOCAB, POSITIONS, {"query": [], "document": [3, 7, 19]})
ids = st.sampled_from([0, 3, 7, 8, 19, 20, -1, 2**31 - 1, -(2**31)]) | st.integers(0, VOCAB - 1)
texts = st.lists(st.lists(ids, max_size=POSITIONS + 1), max_size=6)


@given(texts)
@example([])
@example([[]])
def test_all_are_fine_where_each_is(texts: list[list[int]]) -> None:
    flat, lengths = array("i", [i for text in texts for i in text]), array("i", map(len, texts))
    expected = all(rules.check(array("i", text)) is None for text in texts)
    assert rules.are_fine(flat, lengths) == expected
    assert rules.are_fine(memoryview(flat), memoryview(lengths)) == expected
    assert rules.are_fine(flat, list(lengths)) == expected


@given(st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=POSITIONS), max_size=6))
def test_rows_of_all_are_those_of_each(texts: list[list[int]]) -> None:
    flat, lengths = array("i", [i for text in texts for i in text]), array("i", map(len, texts))
    for role in ("query", "document"):
        expected = [rules.num_rows(role, array("i", text)) for text in texts]
        assert rules.rows_of(role, memoryview(flat), memoryview(lengths)) == expected
        skipped = [] if role == "query" else [3, 7, 19]
        assert expected == [len([i for i in text if i not in skipped]) for text in texts]


@given(texts)
def test_rows_are_counted_of_any_ids(texts: list[list[int]]) -> None:
    flat, lengths = array("i", [i for text in texts for i in text]), array("i", map(len, texts))
    rows = rules.rows_of("document", flat, lengths)
    assert all(0 <= count <= length for count, length in zip(rows, lengths, strict=True))
    for start, length, count in zip(accumulate(lengths, initial=0), lengths, rows, strict=False):
        if rules.check(flat[start : start + length]) is None:  # one that is wrong does not change the others
            assert count == rules.num_rows("document", flat[start : start + length])


def test_what_is_wrong_is_named() -> None:
    assert rules.check(array("i", [5] * 7)) == "token_ids: 7 ids, expected 1 to 6"
    assert rules.check(array("i", [5, -1, 99])) == "token_ids: -1, expected 0 to 19, the model's vocabulary"
    assert rules.check(array("i", [5, 6]), 2) == (
        "expansion: 2 rows of a text of 2 ids, expected at least one id before them"
    )
