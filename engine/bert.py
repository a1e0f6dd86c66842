"""BERT as a packed encoder: the rows of all texts in one matrix, without padding.

The order of operations is that of transformers' BertModel without its pooler. Query, key and value are one matrix
product. token_type is always 0, so its embedding is part of the positions'.

Source: Devlin et al. 2019 (BERT). Ground truth: transformers' BertModel, through tests/engine/test_parity.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from engine.attention import Attention
from engine.bert_config import BertConfig
from engine.linear import Linear
from engine.packing import PackedBatch


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """Over the last dimension."""

    weight: torch.Tensor  # [hidden]
    bias: torch.Tensor  # [hidden]
    epsilon: float

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True, slots=True)
class BertLayer:
    """Attention, then a feed-forward net, each added to its input and normalised after (post-norm)."""

    qkv: Linear  # hidden -> 3 * hidden
    out: Linear
    attention_norm: LayerNorm
    up: Linear  # hidden -> intermediate, with GELU (the exact one, with erf)
    down: Linear
    output_norm: LayerNorm

    def __call__(
        self, hidden: torch.Tensor, num_heads: int, attend: Attention, batch: PackedBatch
    ) -> torch.Tensor:  # [total_tokens, hidden] -> the same
        qkv = self.qkv(hidden).view(len(hidden), 3, num_heads, -1)  # [total_tokens, 3, num_heads, head_dim]
        hidden = self.attention_norm(hidden + self.out(attend(qkv, batch)))
        return self.output_norm(hidden + self.down(self.up(hidden)))


class Bert:
    """A BERT encoder.

    Args:
        config: of the checkpoint.
        weights: by BertModel's own names, in the dtype to compute in; `engine.checkpoint` has checked their shapes.
        attend: how attention is computed.
    """

    def __init__(self, config: BertConfig, weights: Mapping[str, torch.Tensor], attend: Attention) -> None:
        self._num_heads = config.num_attention_heads
        self._attend = attend
        self._words = weights["embeddings.word_embeddings.weight"]
        positions, token_types = (
            weights[f"embeddings.{name}_embeddings.weight"] for name in ("position", "token_type")
        )
        self._positions = positions + token_types[0]
        self._norm = _layer_norm(weights, "embeddings.LayerNorm", config)
        self._layers = [_bert_layer(weights, number, config) for number in range(config.num_hidden_layers)]

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """The last hidden states, [total_tokens, hidden]."""
        hidden = self._words[batch.token_ids] + self._positions[batch.position_ids]
        hidden = self._norm(hidden)
        for layer in self._layers:
            hidden = layer(hidden, self._num_heads, self._attend, batch)
        return hidden


def _bert_layer(weights: Mapping[str, torch.Tensor], number: int, config: BertConfig) -> BertLayer:
    prefix = f"encoder.layer.{number}."
    qkv = [f"{prefix}attention.self.{name}" for name in ("query", "key", "value")]
    return BertLayer(
        qkv=Linear(
            torch.cat([weights[f"{name}.weight"] for name in qkv]), torch.cat([weights[f"{name}.bias"] for name in qkv])
        ),
        out=_linear(weights, f"{prefix}attention.output.dense"),
        attention_norm=_layer_norm(weights, f"{prefix}attention.output.LayerNorm", config),
        up=_linear(weights, f"{prefix}intermediate.dense", "gelu"),
        down=_linear(weights, f"{prefix}output.dense"),
        output_norm=_layer_norm(weights, f"{prefix}output.LayerNorm", config),
    )


def _linear(weights: Mapping[str, torch.Tensor], name: str, activation: Literal["none", "gelu"] = "none") -> Linear:
    return Linear(weights[f"{name}.weight"], weights[f"{name}.bias"], activation)


def _layer_norm(weights: Mapping[str, torch.Tensor], name: str, config: BertConfig) -> LayerNorm:
    return LayerNorm(weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_eps)
