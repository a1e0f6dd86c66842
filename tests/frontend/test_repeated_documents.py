"""Lists of documents that come again are found, and no other list is taken for one of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from frontend.ranking import EmbeddingsInput, TextInput
from frontend.repeated_documents import LEAST_DOCUMENTS, MOST_BYTES, MOST_LISTS, NamedDocuments, RepeatedDocuments


def named(rules: str, texts: list[str], text_bytes: int = 100) -> NamedDocuments:
    return NamedDocuments(rules, texts, [TextInput(text, f"{rules}{text}".encode()) for text in texts], text_bytes)


def many(text: str) -> list[str]:
    return [text] * LEAST_DOCUMENTS


lists = st.sampled_from(["a", "b", "c", "d", "e", "f"])


@given(st.lists(st.tuples(st.sampled_from(["r", "s"]), lists), max_size=30))
def test_what_is_found_has_the_same_rules_and_texts_and_was_among_the_last(asked: list[tuple[str, str]]) -> None:
    repeated = RepeatedDocuments()
    order: list[tuple[str, str]] = []
    for rules, text in asked:
        known = repeated.find(rules, many(text))
        assert (known is not None) == ((rules, text) in order[-MOST_LISTS:])
        if known is None:
            repeated.add(named(rules, many(text)))
        else:
            assert known.inputs == named(rules, many(text)).inputs
        order = [other for other in order if other != (rules, text)] + [(rules, text)]


def test_one_other_text_is_another_list() -> None:
    repeated = RepeatedDocuments()
    texts = [f"text {number}" for number in range(LEAST_DOCUMENTS)]
    repeated.add(named("r", texts))
    assert repeated.find("r", list(texts)) is not None
    assert repeated.find("r", [*texts[:-1], "other"]) is None
    assert repeated.find("r", texts[:-1]) is None
    assert repeated.find("r", [*texts, "more"]) is None


def test_few_large_and_mixed_lists_are_not_kept() -> None:
    repeated = RepeatedDocuments()
    few = named("r", many("a")[1:])
    large = named("r", many("b"), MOST_BYTES + 1)
    rows = EmbeddingsInput(b"\0" * 4, "float32", 1, 1)
    mixed = NamedDocuments("r", many("c"), [*named("r", many("c")).inputs[1:], rows], 100)
    for documents in (few, large, mixed):
        repeated.add(documents)
        assert repeated.find("r", documents.texts) is None
