"""Attention over packed rows is attention with a mask, text by text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.attention import WINDOW_BLOCK, attend_in_window, attend_per_text
from engine.packing import PackedBatch

HEADS, HEAD_DIM = 2, 4

texts = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 39)), min_size=1, max_size=4).map(
    lambda drawn: [(length, min(extra, length - 1)) for length, extra in drawn]
)


def packed(texts: Sequence[tuple[int, int]]) -> PackedBatch:
    """A batch of texts of so many rows, the last ones of which are not attended to."""
    cu_seqlens = [0]
    for length, _ in texts:
        cu_seqlens.append(cu_seqlens[-1] + length)
    position_ids = torch.cat([torch.arange(length) for length, _ in texts])
    attended = [length - extra for length, extra in texts]
    return PackedBatch(torch.zeros_like(position_ids), position_ids, [n for n, _ in texts], cu_seqlens, attended)


def random_qkv(total: int) -> torch.Tensor:
    return torch.randn(total, 3, HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(total))


def attend_with_mask(qkv: torch.Tensor, batch: PackedBatch, reach: int | None) -> torch.Tensor:
    """[total_tokens, HEADS * HEAD_DIM]: one softmax over the whole batch, in float64. Who sees nobody gets zeros."""
    q, k, v = qkv.double().permute(1, 2, 0, 3)  # [HEADS, total_tokens, HEAD_DIM]
    lengths = torch.tensor(batch.lengths)
    owner = torch.arange(len(lengths)).repeat_interleave(lengths)
    is_key = batch.position_ids < torch.tensor(batch.attended).repeat_interleave(lengths)
    may_see = (owner[:, None] == owner) & is_key
    if reach is not None:
        may_see &= (batch.position_ids[:, None] - batch.position_ids).abs() <= reach
    logits = (q @ k.transpose(1, 2) / HEAD_DIM**0.5).masked_fill(~may_see, float("-inf"))
    context: torch.Tensor = logits.softmax(2).nan_to_num(0.0) @ v
    return context.transpose(0, 1).flatten(1).float()


@given(texts=texts)
def test_each_text_attends_to_its_own_attended_rows(texts: list[tuple[int, int]]) -> None:
    batch = packed(texts)
    qkv = random_qkv(batch.cu_seqlens[-1])
    torch.testing.assert_close(attend_per_text(qkv, batch), attend_with_mask(qkv, batch, None))


@given(texts=texts, reach=st.integers(1, 45))
def test_a_window_is_a_mask_by_distance(texts: list[tuple[int, int]], reach: int) -> None:
    batch = packed(texts)
    qkv = random_qkv(batch.cu_seqlens[-1])
    torch.testing.assert_close(attend_in_window(qkv, batch, reach), attend_with_mask(qkv, batch, reach))


@pytest.mark.parametrize(
    "texts",
    [
        pytest.param([(WINDOW_BLOCK, 0)], id="one-block"),
        pytest.param([(WINDOW_BLOCK + 1, 0), (3, 1)], id="one-row-over"),
        pytest.param([(2 * WINDOW_BLOCK + 7, 30)], id="rows-that-see-nobody-at-the-end"),
        pytest.param([(2 * WINDOW_BLOCK + 7, WINDOW_BLOCK)], id="rows-that-see-nobody-inside-a-block"),
        pytest.param([(3 * WINDOW_BLOCK, 2 * WINDOW_BLOCK + 50), (5, 0)], id="blocks-that-see-nobody"),
    ],
)
@pytest.mark.parametrize("reach", [1, 64, WINDOW_BLOCK, 10 * WINDOW_BLOCK])
def test_a_window_goes_on_across_the_blocks_it_is_computed_in(texts: list[tuple[int, int]], reach: int) -> None:
    batch = packed(texts)
    qkv = random_qkv(batch.cu_seqlens[-1])
    torch.testing.assert_close(attend_in_window(qkv, batch, reach), attend_with_mask(qkv, batch, reach))
