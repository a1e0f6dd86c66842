"""Cases of the encoder's Triton kernels on a CPU; `test_attention_triton.py` runs them, with TRITON_INTERPRET=1.

bfloat16 is not here: the interpreter multiplies its bits as if they were integers. `test_attention_cuda.py` has it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from engine import linear_triton
from engine.attention import attend_in_window, attend_per_text
from engine.attention_triton import (
    LONG,
    SHORT,
    Config,
    attend_blocks,
    attend_triton,
    choose_config,
    make_blocks,
)
from engine.bert import Bert
from engine.bert_config import BertConfig, BertEncoderConfig, Positions
from engine.fused_bert import FusedBert
from engine.layer_norm import LayerNorm
from engine.linear_triton import GeluLinear, RotaryLinear, in_pairs
from engine.packing import DeviceLengths, PackedBatch
from engine.rotary import RotaryTable, Rotation
from engine.row_steps import Angles, add_and_norm, gelu_in_place, rotate_in_place
from engine.self_check import MANY_ROWS
from tests.engine.random_bert import random_weights

# What the interpreter, in numpy, says of numbers that are not finite.
pytestmark = pytest.mark.filterwarnings("ignore:(All-NaN|invalid value|overflow)")

Text = tuple[int, int]  # rows, and how many of the last are not attended to

texts_of_a_batch = st.lists(st.tuples(st.integers(1, 150), st.integers(0, 40)), min_size=1, max_size=5)


def packed(texts: Sequence[Text], free_rows: int = 0, free_texts: int = 0) -> PackedBatch:
    """A batch of texts, with its lengths "on the device".

    Args:
        free_rows: of a text after them, which has no keys, as in a graph that is not full.
        free_texts: without rows, after that.
    """
    lengths = [length for length, _ in texts] + [free_rows] * (free_rows > 0)
    attended = [length - extra for length, extra in texts] + [0] * (free_rows > 0)
    cu_seqlens = list(itertools.accumulate(lengths, initial=0))
    cu_keys = list(itertools.accumulate(attended, initial=0))
    ends = [torch.tensor(cu + cu[-1:] * free_texts, dtype=torch.int32) for cu in (cu_seqlens, cu_keys)]
    where = DeviceLengths(ends[0], ends[1], None, max(lengths), max(attended))
    position_ids = torch.cat([torch.arange(length) for length in lengths])
    token_ids = torch.randint(0, 50, (cu_seqlens[-1],), generator=torch.Generator().manual_seed(len(texts)))
    return PackedBatch(token_ids, position_ids, lengths, cu_seqlens, attended, where)


def random_qkv(total: int, heads: int = 2, head_dim: int = 32, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(total, 3, heads, head_dim, generator=torch.Generator().manual_seed(total)).to(dtype)


def capped(texts: Sequence[Text]) -> list[Text]:
    return [(length, min(extra, length - 1)) for length, extra in texts]


@settings(max_examples=15)
@given(texts=texts_of_a_batch.map(capped), config=st.sampled_from([SHORT, LONG]))
def test_attention_is_torchs(texts: list[Text], config: Config) -> None:
    batch = packed(texts)
    qkv = random_qkv(batch.cu_seqlens[-1])
    ours = attend_blocks(qkv, make_blocks(batch, config))
    torch.testing.assert_close(ours, attend_per_text(qkv, batch))


@settings(max_examples=15)
@given(texts=texts_of_a_batch.map(capped), reach=st.integers(1, 70), config=st.sampled_from([SHORT, LONG]))
def test_a_window_is_torchs(texts: list[Text], reach: int, config: Config) -> None:
    batch = packed(texts)
    qkv = random_qkv(batch.cu_seqlens[-1])
    ours = attend_blocks(qkv, make_blocks(batch, config), reach=reach)
    torch.testing.assert_close(ours, attend_in_window(qkv, batch, reach))


@pytest.mark.parametrize("head_dim", [32, 64, 128])
def test_attention_in_float16(head_dim: int) -> None:
    batch = packed([(130, 0), (7, 3), (64, 0), (65, 1)])
    qkv = random_qkv(batch.cu_seqlens[-1], 3, head_dim, torch.float16)
    ours = attend_triton(qkv, batch)
    torch.testing.assert_close(ours.float(), attend_per_text(qkv.float(), batch), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("config", [SHORT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("count", [1, 2, 3, 64, 65, 200])
def test_every_row_of_many_texts_is_in_one_block(config: Config, count: int) -> None:
    lengths = [1 + (37 * place) % 300 for place in range(count)]
    batch = packed([(length, place % 2 if length > 1 else 0) for place, length in enumerate(lengths)], 90, 3)
    fields = make_blocks(batch, config).fields
    used = fields[fields[:, 1] < fields[:, 2]].tolist()
    expected = [
        [start, offset, length, keys]
        for start, length, keys in zip(batch.cu_seqlens, batch.lengths, batch.attended, strict=False)
        for offset in range(0, length, config.rows)
    ]
    assert used == expected


def test_a_text_that_is_not_finite_stays_by_itself() -> None:
    batch = packed([(40, 0), (70, 5), (33, 0)])
    qkv = random_qkv(143)
    expected = attend_per_text(qkv, batch)
    qkv[40:110] = float("inf")
    ours = attend_triton(qkv, batch)
    torch.testing.assert_close(ours[:40], expected[:40])
    torch.testing.assert_close(ours[110:], expected[110:])
    assert ours[40:110].isnan().all()


def test_rows_that_are_no_key_do_not_count_even_if_not_finite() -> None:
    batch = packed([(40, 8)])
    qkv = random_qkv(40)
    expected = attend_per_text(qkv, batch)
    qkv[32:, 1:] = float("nan")
    torch.testing.assert_close(attend_triton(qkv, batch), expected)


def test_the_rest_of_a_graph_gets_zeros() -> None:
    batch = packed([(40, 8), (3, 0)], free_rows=80, free_texts=4)
    ours = attend_triton(random_qkv(123), batch)
    assert not ours[43:].any()


@pytest.mark.parametrize(("mean", "config"), [(1, SHORT), (32, SHORT), (32.5, LONG), (8192, LONG)])
def test_configuration_is_chosen_by_mean_length(mean: float, config: Config) -> None:
    assert choose_config(mean) == config


def angles_of(position_ids: torch.Tensor, head_dim: int) -> tuple[Angles, Rotation]:
    table = RotaryTable(150, head_dim, 10_000.0, torch.empty(0))
    every = table.at(torch.arange(150))
    return Angles(position_ids, every.cos.view(150, -1), every.sin.view(150, -1)), table.at(position_ids)


@settings(max_examples=10)
@given(texts=texts_of_a_batch.map(capped), heads=st.integers(1, 3), head_dim=st.sampled_from([32, 64]))
def test_rotary_attention_is_torchs(texts: list[Text], heads: int, head_dim: int) -> None:
    batch = packed(texts)
    qkv = random_qkv(batch.cu_seqlens[-1], heads, head_dim)
    angles, rotation = angles_of(batch.position_ids, head_dim)
    expected = attend_per_text(rotation(qkv), batch)
    pairs = torch.cat([in_pairs_of_rows(qkv[:, :2]), qkv[:, 2:]], 1)
    rotate_in_place(pairs, angles)
    torch.testing.assert_close(attend_blocks(pairs, make_blocks(batch)), expected)


def in_pairs_of_rows(heads: torch.Tensor) -> torch.Tensor:
    """[..., head_dim], ordered as `in_pairs` orders weights."""
    return in_pairs(heads.reshape(-1, heads.shape[-1]).T.contiguous(), heads.shape[-1]).T.reshape(heads.shape)


@settings(max_examples=15)
@given(rows=st.integers(1, 300), inner=st.integers(1, 20), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_product_with_gelu_is_torchs(rows: int, inner: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    values, weight, bias = torch.randn(rows, 8 * inner), torch.randn(8 * width, 8 * inner), torch.randn(8 * width)
    expected = functional.gelu(functional.linear(values, weight, bias))
    layer = GeluLinear(weight, bias)
    torch.testing.assert_close(layer(values), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.fused(values), expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=15)
@given(
    rows=st.integers(1, 300),
    inner=st.integers(1, 20),
    heads=st.integers(1, 6),
    head_dim=st.sampled_from([32, 64, 128]),
    seed=st.integers(0, 99),
)
def test_a_rotary_product_is_torchs(rows: int, inner: int, heads: int, head_dim: int, seed: int) -> None:
    """Also where one tile has heads that are turned and heads that are not."""
    torch.manual_seed(seed)
    hidden = heads * head_dim
    values, weight, bias = torch.randn(rows, 8 * inner), torch.randn(3 * hidden, 8 * inner), torch.randn(3 * hidden)
    angles, rotation = angles_of(torch.randint(0, 150, (rows,)), head_dim)
    qkv = rotation(functional.linear(values, weight, bias).view(rows, 3, heads, head_dim))
    expected = torch.cat([in_pairs_of_rows(qkv[:, :2]), qkv[:, 2:]], 1).view(rows, 3 * hidden)

    def ordered(parameter: torch.Tensor) -> torch.Tensor:
        query, key, value = parameter.chunk(3)
        return torch.cat([in_pairs(query, head_dim), in_pairs(key, head_dim), value])

    layer = RotaryLinear(ordered(weight), ordered(bias), head_dim)
    torch.testing.assert_close(layer(values, angles), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(layer.fused(values, angles), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("hidden", [8, 32, 96, 1024, 1536])
@pytest.mark.parametrize("rows", [1, 3])
def test_sum_and_norm_is_torchs(hidden: int, rows: int) -> None:
    left, right = torch.randn(2, rows, hidden, generator=torch.Generator().manual_seed(hidden)) + 3
    norm = LayerNorm(torch.linspace(-1, 2, hidden), torch.linspace(1, 3, hidden), 1e-5)
    expected = norm(left + right)
    torch.testing.assert_close(add_and_norm(left.clone(), right, norm), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("width", [4, 96, 4096])
def test_gelu_is_the_exact_one(width: int) -> None:
    values = torch.linspace(-12, 12, 6 * width).view(6, width)
    expected = functional.gelu(values.double())
    off = (gelu_in_place(values.clone()).double() - expected).abs()
    assert off.max() < 1e-6
    assert (off / expected.abs())[values > -5].max() < 2e-3  # bfloat16's own rounding is larger


def test_the_self_checks_large_batch_takes_every_own_product() -> None:
    assert max(linear_triton.rows_of_each_way()) <= MANY_ROWS


@pytest.mark.parametrize("is_fused", [False, True], ids=["cublas-and-a-pass", "own-products"])
@pytest.mark.parametrize("positions", ["absolute", "after_padding", "rotary"])
def test_the_fused_encoder_is_the_plain_one(
    positions: Positions, is_fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bert = BertConfig(50, 64, 2, 2, 96, 150, layer_norm_eps=1e-5, pad_token_id=1)
    config = BertEncoderConfig("XLM-R", bert, positions)
    weights = random_weights(bert, with_positions=positions != "rotary")
    batch = packed([(9, 0), (70, 5), (130, 0), (1, 0)])
    expected = Bert(config, weights, attend_per_text)(batch)
    rows = 2 if is_fused else 1000
    monkeypatch.setattr(linear_triton, "MANY_ROWS_GELU", rows)
    monkeypatch.setattr(linear_triton, "MANY_ROWS_ROTATE", rows)
    torch.testing.assert_close(FusedBert(config, weights)(batch), expected, atol=1e-4, rtol=1e-4)
