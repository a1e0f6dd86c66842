"""The encoder's own kernels on CUDA: the cases that Triton's interpreter cannot run, or would take too long for."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest
import torch

from engine.attention import attend_in_window, attend_per_text
from engine.packing import DeviceLengths, PackedBatch, PackedTexts, pack
from tests.engine.random_bert import random_weights

pytestmark = pytest.mark.gpu

MIXES = {
    "queries": [32] * 70,
    "short": [1, 2, 31, 32, 33, 17],
    "medium": [64, 65, 100, 127, 1, 128],
    "documents": [300] * 9 + [1],
    "long": [1380, 673, 5, 1024, 129, 191, 192, 193],
    "many": [1380, 673] * 3 + [33],  # rows enough for the own products
}
DTYPES = [torch.float16, torch.bfloat16]
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}  # of values of about 1: a few of the last bits


def packed(lengths: Sequence[int], expansion: int = 0) -> PackedBatch:
    extras = [min(expansion, length - 1) for length in lengths]
    ids = array("i", [place % 50 for place in range(sum(lengths))])
    texts = PackedTexts(["document"] * len(lengths), ids, lengths, extras)
    return pack(texts, [False] * len(lengths), torch.device("cuda"))


def random_qkv(total: int, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(total)
    return torch.randn(total, 3, 4, head_dim, generator=generator, device="cuda").to(dtype)


@pytest.mark.parametrize("expansion", [0, 8])
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_attention_is_torchs(mix: str, dtype: torch.dtype, head_dim: int, expansion: int) -> None:
    from engine.attention_triton import attend_triton

    batch = packed(MIXES[mix], expansion)
    qkv = random_qkv(len(batch.token_ids), head_dim, dtype)
    ours = attend_triton(qkv, batch)
    assert torch.equal(ours, attend_triton(qkv, batch))  # the same bits, always
    close(ours, attend_per_text(qkv.float(), batch))


@pytest.mark.parametrize("reach", [1, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_a_window_is_torchs(mix: str, dtype: torch.dtype, reach: int) -> None:
    from engine.attention_triton import attend_triton

    batch = packed(MIXES[mix], 80)
    qkv = random_qkv(len(batch.token_ids), 64, dtype)
    close(attend_triton(qkv, batch, reach), attend_in_window(qkv.float(), batch, reach))


@pytest.mark.parametrize("positions", ["absolute", "after_padding", "rotary"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mix", MIXES)
def test_the_fused_encoder_is_the_plain_one(mix: str, dtype: torch.dtype, positions: str) -> None:
    from engine.bert import Bert
    from engine.bert_config import BertConfig, BertEncoderConfig
    from engine.fused_bert import FusedBert

    bert = BertConfig(50, 256, 3, 4, 512, 1400, layer_norm_eps=1e-5, pad_token_id=1)
    config = BertEncoderConfig("XLM-R", bert, positions)  # type: ignore[arg-type]
    plain = {name: tensor.cuda() for name, tensor in random_weights(bert, positions != "rotary").items()}
    weights = {name: tensor.to(dtype) for name, tensor in plain.items()}
    batch = packed(MIXES[mix])
    rounded = {name: tensor.float() for name, tensor in weights.items()}
    expected = Bert(config, rounded, attend_per_text)(batch)
    ours = FusedBert(config, weights)(batch).float()
    assert float(torch.nn.functional.cosine_similarity(ours, expected).min()) > 0.999


@pytest.mark.parametrize("rows", [1, 127, 128, 5000])
@pytest.mark.parametrize(("inner", "heads", "head_dim"), [(32, 1, 32), (384, 12, 32), (1024, 16, 64), (200, 3, 128)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_own_products_are_torchs(dtype: torch.dtype, inner: int, heads: int, head_dim: int, rows: int) -> None:
    """Same bits as in a smaller batch, too."""
    from engine.linear_triton import GeluLinear, RotaryLinear
    from engine.row_steps import Angles

    generator = torch.Generator("cuda").manual_seed(rows)

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, device="cuda")

    width = 3 * heads * head_dim
    values, weight, bias = (
        draw(rows, inner).to(dtype),
        (draw(width, inner) / inner**0.5).to(dtype),
        draw(width).to(dtype),
    )
    product = values.float() @ weight.float().T + bias.float()
    ours = GeluLinear(weight, bias).fused(values)
    close(ours, torch.nn.functional.gelu(product))
    assert torch.equal(ours[-1:], GeluLinear(weight, bias).fused(values[-1:].contiguous()))
    turns = draw(50, head_dim // 2)
    angles = Angles(torch.arange(rows, device="cuda") % 50, turns.cos(), turns.sin())
    pairs = product.view(rows, 3, heads, -1, 2)
    turned = (
        torch.view_as_complex(pairs[:, :2].contiguous())
        * torch.polar(torch.ones_like(turns), turns)[angles.position_ids, None, None]
    )
    expected = torch.cat([torch.view_as_real(turned), pairs[:, 2:]], 1).view(rows, width)
    ours = RotaryLinear(weight, bias, head_dim).fused(values, angles)
    close(ours, expected)
    last = Angles(angles.position_ids[-1:].clone(), angles.cos, angles.sin)
    assert torch.equal(ours[-1:], RotaryLinear(weight, bias, head_dim).fused(values[-1:].contiguous(), last))


def test_nothing_is_compiled_for_other_sizes() -> None:
    from engine.attention_kernel import attend_block, list_blocks
    from engine.bert_config import BertConfig, BertEncoderConfig
    from engine.fused_bert import FusedBert
    from engine.linear_kernel import linear_gelu, linear_rotate
    from engine.row_kernels import add_norm, gelu, rotate

    kernels = [attend_block, list_blocks, add_norm, gelu, rotate, linear_gelu, linear_rotate]
    bert = BertConfig(50, 256, 1, 4, 512, 1400, pad_token_id=1)
    weights = {name: tensor.cuda().half() for name, tensor in random_weights(bert, False).items()}
    network = FusedBert(BertEncoderConfig("XLM-R, rotary", bert, "rotary"), weights)
    before = [sum(map(len, caches(kernel))) for kernel in kernels]
    assert all(before)
    for lengths in ([1], [16], [16] * 16, [7] * 33, [100, 57], [1024], [1380, 673, 3], [1380] * 3):
        network(packed(lengths))
    assert [sum(map(len, caches(kernel))) for kernel in kernels] == before


def test_a_graph_serves_other_lengths() -> None:
    from engine.attention_triton import attend_triton

    qkv = random_qkv(512, 64, torch.float16)
    ends = torch.tensor([[0, 512] + [512] * 8] * 2, dtype=torch.int32, device="cuda")
    where = DeviceLengths(ends[0], ends[1], None, 512, 512)
    empty = torch.zeros(512, dtype=torch.int64, device="cuda")
    full = PackedBatch(empty, empty, [512], [0, 512], [512], where)
    attend_triton(qkv, full)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = attend_triton(qkv, full)
    for lengths in ([512], [1, 511], [100, 200, 212], [64] * 8):
        batch = packed(lengths, 5)
        assert batch.on_device is not None
        for row, values in enumerate((batch.on_device.cu_seqlens, batch.on_device.cu_keys)):
            ends[row, : len(values)] = values
            ends[row, len(values) :] = values[-1]
        graph.replay()
        close(out, attend_per_text(qkv.float(), batch))


def caches(kernel: object) -> list[dict[object, object]]:
    """Of every device: what was compiled."""
    return [entry[0] for entry in kernel.device_caches.values()]  # type: ignore[attr-defined]


def close(ours: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = TOLERANCE[ours.dtype]
    torch.testing.assert_close(ours.float(), expected, atol=tolerance, rtol=tolerance)
