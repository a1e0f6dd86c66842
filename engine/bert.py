"""BERT as a packed encoder: rows of all texts in one matrix, no padding anywhere but in attention's own masks.

Plain functions over a dict of weights; the order of operations is transformers' BertModel. Attention runs per text on a CPU
(measured: fastest for ragged lengths on two cores), so the longest text does not stretch the others.

Source: Devlin et al. 2019 (BERT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from engine.model_spec import BertConfig


@dataclass(frozen=True, slots=True)
class BertLayer:
    """One layer's weights. Projections are [out, in]."""

    qkv_weight: torch.Tensor  # [3 * hidden, hidden]: query, key and value in one matmul
    qkv_bias: torch.Tensor
    out_weight: torch.Tensor
    out_bias: torch.Tensor
    attention_norm: tuple[torch.Tensor, torch.Tensor]
    up_weight: torch.Tensor  # [intermediate, hidden]
    up_bias: torch.Tensor
    down_weight: torch.Tensor
    down_bias: torch.Tensor
    output_norm: tuple[torch.Tensor, torch.Tensor]


class Bert:
    """The encoder of a BERT checkpoint.

    Args:
        config: of the checkpoint.
        weights: by BertModel's own names, without a prefix; shapes have been checked.
    """

    def __init__(self, config: BertConfig, weights: dict[str, torch.Tensor]) -> None:
        self._num_heads = config.num_attention_heads
        self._epsilon = config.layer_norm_eps
        self._words = weights["embeddings.word_embeddings.weight"]
        # token_type 0 is the only one these models use: added to the positions once
        self._positions = (
            weights["embeddings.position_embeddings.weight"] + weights["embeddings.token_type_embeddings.weight"][0]
        )
        self._norm = weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"]
        self._layers = [_read_layer(weights, number) for number in range(config.num_hidden_layers)]

    def __call__(
        self, token_ids: torch.Tensor, position_ids: torch.Tensor, lengths: Sequence[int], attended: Sequence[int]
    ) -> torch.Tensor:
        """The last hidden states.

        Args:
            token_ids, position_ids: [total_tokens] int64.
            lengths: rows of each text.
            attended: leading rows of each text that others attend to; the rest (expansion) only attends.

        Returns:
            [total_tokens, hidden].
        """
        hidden = F.embedding(token_ids, self._words) + self._positions[position_ids]  # [total_tokens, hidden]
        hidden = self._normalise(hidden, self._norm)
        for layer in self._layers:
            hidden = self._run_layer(layer, hidden, lengths, attended)
        return hidden

    def _run_layer(
        self, layer: BertLayer, hidden: torch.Tensor, lengths: Sequence[int], attended: Sequence[int]
    ) -> torch.Tensor:
        qkv = F.linear(hidden, layer.qkv_weight, layer.qkv_bias)  # [total_tokens, 3 * hidden]
        context = attend(qkv, self._num_heads, lengths, attended)
        hidden = self._normalise(hidden + F.linear(context, layer.out_weight, layer.out_bias), layer.attention_norm)
        inner = F.gelu(F.linear(hidden, layer.up_weight, layer.up_bias))
        return self._normalise(hidden + F.linear(inner, layer.down_weight, layer.down_bias), layer.output_norm)

    def _normalise(self, hidden: torch.Tensor, norm: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], *norm, self._epsilon)


def attend(qkv: torch.Tensor, num_heads: int, lengths: Sequence[int], attended: Sequence[int]) -> torch.Tensor:
    """Bidirectional attention inside each text.

    Args:
        qkv: [total_tokens, 3 * hidden], packed.
        lengths, attended: as in `Bert.__call__`. Rows that are not attended are left out of keys and values, which is
            exactly what a mask of 0 does in the reference.

    Returns:
        [total_tokens, hidden].
    """
    total, width = qkv.shape
    head_dim = width // 3 // num_heads
    context = qkv.new_empty(total, num_heads, head_dim)
    start = 0
    for length, keys in zip(lengths, attended, strict=True):
        text = qkv[start : start + length].view(1, length, 3, num_heads, head_dim).transpose(1, 3)
        q, k, v = text[:, :, 0], text[:, :, 1, :keys], text[:, :, 2, :keys]  # [1, heads, rows, head_dim]
        context[start : start + length] = F.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1)
        start += length
    return context.view(total, num_heads * head_dim)


def _read_layer(weights: dict[str, torch.Tensor], number: int) -> BertLayer:
    prefix = f"encoder.layer.{number}."

    def pair(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

    projections = [pair(f"attention.self.{name}") for name in ("query", "key", "value")]
    return BertLayer(
        torch.cat([weight for weight, _ in projections]),
        torch.cat([bias for _, bias in projections]),
        *pair("attention.output.dense"),
        pair("attention.output.LayerNorm"),
        *pair("intermediate.dense"),
        *pair("output.dense"),
        pair("output.LayerNorm"),
    )
