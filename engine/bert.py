"""BERT and its kind as a packed encoder: the rows of all texts in one matrix, without padding.

The order of operations is that of transformers' BertModel without its pooler. Query, key and value are one matrix
product. token_type is always 0, so its embedding is part of the positions'. What sets XLM-R apart is where positions
begin, and jina-colbert-v2 that it rotates queries and keys instead.

Sources: Devlin et al. 2019 (BERT), Conneau et al. 2020 (XLM-R), Su et al. 2021 (rotary positions). Ground truth:
transformers' models, through tests/engine/test_parity.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from engine.attention import Attention
from engine.bert_config import BertConfig, BertEncoderConfig
from engine.layer_norm import LayerNorm
from engine.linear import Linear
from engine.packing import PackedBatch
from engine.rotary import RotaryTable, Rotation


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
        self,
        hidden: torch.Tensor,
        num_heads: int,
        attend: Attention,
        batch: PackedBatch,
        rotation: Rotation | None,
    ) -> torch.Tensor:  # [total_tokens, hidden] -> the same
        qkv = self.qkv(hidden).view(len(hidden), 3, num_heads, -1)  # [total_tokens, 3, num_heads, head_dim]
        if rotation is not None:
            qkv = rotation(qkv)
        hidden = self.attention_norm(hidden + self.out(attend(qkv, batch)))
        return self.output_norm(hidden + self.down(self.up(hidden)))


class Bert:
    """An encoder of BERT's kind.

    Args:
        config: of the checkpoint.
        weights: by BertModel's own names, in the dtype and on the device to compute in; `engine.checkpoint` has checked
            their shapes.
        attend: how attention is computed.
    """

    def __init__(self, config: BertEncoderConfig, weights: Mapping[str, torch.Tensor], attend: Attention) -> None:
        bert = config.bert
        self._num_heads = bert.num_attention_heads
        self._attend = attend
        self._words = weights["embeddings.word_embeddings.weight"]
        self._padding = bert.pad_token_id if config.positions == "after_padding" else None
        token_type = weights["embeddings.token_type_embeddings.weight"][0]
        self._positions, self._rotary = None, None
        if config.positions == "rotary":
            head_dim = config.head_dim
            self._rotary = RotaryTable(config.max_tokens, head_dim, bert.rotary_emb_base, token_type)
            self._token_type = token_type
        else:
            self._positions = weights["embeddings.position_embeddings.weight"] + token_type
        self._norm = _layer_norm(weights, "embeddings.LayerNorm", bert)
        self._layers = [_bert_layer(weights, number, bert) for number in range(bert.num_hidden_layers)]

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """The last hidden states, [total_tokens, hidden]."""
        hidden = self._norm(self._words[batch.token_ids] + self._place(batch))
        rotation = self._rotary.at(batch.position_ids) if self._rotary is not None else None
        for layer in self._layers:
            hidden = layer(hidden, self._num_heads, self._attend, batch, rotation)
        return hidden

    def _place(self, batch: PackedBatch) -> torch.Tensor:
        """What is added to the words: of their positions, [total_tokens, hidden], and of their type."""
        if self._positions is None:
            return self._token_type
        if self._padding is None:
            return self._positions[batch.position_ids]
        return self._positions[positions_after_padding(batch, self._padding)]


def positions_after_padding(batch: PackedBatch, padding: int) -> torch.Tensor:
    """RoBERTa's positions, [total_tokens]: they count from padding + 1 and leave out padding tokens, which have the
    position `padding` itself (a text may spell one out)."""
    is_padding = batch.token_ids == padding
    before = is_padding.cumsum(0) - is_padding.long()  # padding tokens before each row, of all texts
    first = torch.arange(len(before), device=before.device) - batch.position_ids  # each row's text's first row
    counted = batch.position_ids - (before - before[first])
    return torch.where(is_padding, padding, counted + padding + 1)


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
