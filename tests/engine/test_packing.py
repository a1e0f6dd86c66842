"""A batch on a CPU is filled up to one of few sizes, and nobody sees it."""

from __future__ import annotations

from array import array

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.packing import SMALLEST_STEP, STEPS, PackedTexts, fill_up, filled_size, pack


@given(st.integers(1, 1 << 20))
def test_filled_size_is_at_most_a_step_more(tokens: int) -> None:
    size = filled_size(tokens)
    assert tokens <= size < tokens + max(SMALLEST_STEP, tokens / STEPS)
    assert filled_size(size) == size


@pytest.mark.parametrize(("longest", "most"), [(1024, 64), (16_384, 128)])
def test_sizes_are_few(longest: int, most: int) -> None:
    """Each of them is a compiled matrix product per layer's shape, which is kept."""
    assert len({filled_size(tokens) for tokens in range(1, longest + 1)}) <= most


def test_rows_that_fill_up_belong_to_no_text() -> None:
    texts = PackedTexts(["query", "document"], array("i", range(11)), [4, 7], [1, 0])
    batch = pack(texts, [False, True])
    filled = fill_up(batch)
    assert filled.token_ids.tolist() == [*range(11), 0, 0, 0, 0, 0]
    assert filled.position_ids.tolist() == [*range(4), *range(7), 0, 0, 0, 0, 0]
    assert (filled.lengths, filled.cu_seqlens, filled.attended) == ([4, 7], [0, 4, 11], [3, 7])
    assert torch.equal(filled.token_ids[:11], batch.token_ids)
