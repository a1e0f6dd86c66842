"""Texts are tokenised in pieces of bounded size."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from frontend.encoding import TOKENISE_TEXTS, pieces
from frontend.tokenizer import BATCH_CHARACTERS

lengths = st.sampled_from([0, 1, 100, BATCH_CHARACTERS // 2, BATCH_CHARACTERS // 2 + 1, BATCH_CHARACTERS, 10**6])


@given(
    st.lists(st.tuples(lengths, st.sampled_from([1, 2, TOKENISE_TEXTS, TOKENISE_TEXTS + 1])), max_size=8),
    st.sampled_from([1024, BATCH_CHARACTERS // 2 + 1, 10**7]),
)
def test_pieces_are_all_texts_in_order_each_within_its_bounds_or_one_text(
    runs: list[tuple[int, int]], longest: int
) -> None:
    by_length = {length: "x" * length for length, _ in runs}
    strings = [by_length[length] for length, count in runs for _ in range(count)]
    made = list(pieces(range(len(strings)), strings.__getitem__, longest))
    assert [text for piece in made for text in piece] == list(range(len(strings)))
    for piece, following in zip(made, [*made[1:], []], strict=False):
        size = sum(min(len(strings[text]), longest) for text in piece)
        assert len(piece) == 1 or (len(piece) <= TOKENISE_TEXTS and size <= BATCH_CHARACTERS)
        if following:  # nothing is cut without need
            assert len(piece) == TOKENISE_TEXTS or size + min(len(strings[following[0]]), longest) > BATCH_CHARACTERS
