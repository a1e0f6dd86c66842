"""An encoder of BERT's kind on CUDA as few launches: the same as `bert`, within rounding, in float16 or bfloat16.

A layer is four matrix products; attention in one own kernel for all texts; and two passes over memory, residual and
LayerNorm. GELU, and with rotary positions the turning of queries and keys, happen where their product is made, if a
batch has many rows (`linear_triton`); the other products are cuBLAS's. Sums of a residual are not rounded before they
are normalised.

Nothing is compiled while serving: all kernels are when an encoder is made, and none depends on the number of rows or of
texts. So batches need not be filled up to some size. Launches do not depend on lengths either, only on the number of
rows, of texts, and on the class of their mean length (`attention_triton`): a CUDA graph captured for some rows and
texts serves all batches filled up to those, as `graphs` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from engine.attention_triton import Blocks, attend_blocks, compile_kernels, make_blocks
from engine.bert import positions_after_padding
from engine.bert_config import BertConfig, BertEncoderConfig
from engine.layer_norm import LayerNorm
from engine.linear import Linear
from engine.linear_triton import GeluLinear, RotaryLinear, in_pairs, rows_of_each_way
from engine.packing import PackedBatch
from engine.rotary import RotaryTable
from engine.row_steps import Angles, add_and_norm


@dataclass(frozen=True, slots=True)
class FusedBertLayer:
    """Attention, then a feed-forward net, each added to its input and normalised after (post-norm)."""

    qkv: Linear | RotaryLinear  # hidden -> 3 * hidden
    out: Linear
    attention_norm: LayerNorm
    up: GeluLinear  # hidden -> intermediate
    down: Linear
    output_norm: LayerNorm

    def __call__(
        self, hidden: torch.Tensor, num_heads: int, blocks: Blocks, angles: Angles | None
    ) -> torch.Tensor:  # [total_tokens, hidden] -> the same; the argument's memory is not kept
        qkv = self.turned_qkv(hidden, angles).view(len(hidden), 3, num_heads, -1)  # [.., .., .., head_dim]
        attended = self.out(attend_blocks(qkv, blocks))
        hidden = add_and_norm(attended, hidden, self.attention_norm)
        return add_and_norm(self.down(self.up(hidden)), hidden, self.output_norm)

    def turned_qkv(self, hidden: torch.Tensor, angles: Angles | None) -> torch.Tensor:
        """[n, hidden] -> [n, 3 * hidden]: queries, keys and values; turned, where positions are rotary."""
        if isinstance(self.qkv, RotaryLinear):
            assert angles is not None
            return self.qkv(hidden, angles)
        return self.qkv(hidden)


class FusedBert:
    """An encoder of BERT's kind whose heads `attention_triton.can_attend` takes.

    Args:
        config: of the checkpoint.
        weights: by BertModel's own names, in the dtype and on the device to compute in; `engine.checkpoint` has checked
            their shapes.
    """

    def __init__(self, config: BertEncoderConfig, weights: Mapping[str, torch.Tensor]) -> None:
        bert = config.bert
        self._num_heads = bert.num_attention_heads
        self._padding = bert.pad_token_id if config.positions == "after_padding" else None
        token_type = weights["embeddings.token_type_embeddings.weight"][0]
        self._words = weights["embeddings.word_embeddings.weight"]
        self._rotary: tuple[torch.Tensor, torch.Tensor] | None = None
        if config.positions == "rotary":
            self._rotary = _rotary(config, self._words.device)
            self._positions = token_type[None]  # one row for all
        else:
            self._positions = weights["embeddings.position_embeddings.weight"] + token_type
        self._norm = _layer_norm(weights, "embeddings.LayerNorm", bert)
        self._layers = [_layer(weights, number, config) for number in range(bert.num_hidden_layers)]
        self._compile()

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """The last hidden states, [total_tokens, hidden].

        Args:
            batch: on the device, its lengths too.
        """
        hidden = self._embed(batch)
        blocks = make_blocks(batch)
        angles = Angles(batch.position_ids, *self._rotary) if self._rotary is not None else None
        for layer in self._layers:
            hidden = layer(hidden, self._num_heads, blocks, angles)
        return hidden

    def _embed(self, batch: PackedBatch) -> torch.Tensor:
        words = functional.embedding(batch.token_ids, self._words)
        if self._rotary is not None:
            places = self._positions.expand_as(words).contiguous()
        elif self._padding is not None:
            places = self._positions[positions_after_padding(batch, self._padding)]
        else:
            places = self._positions[batch.position_ids]
        return add_and_norm(words, places, self._norm)

    def _compile(self) -> None:
        """Compile and load every kernel, by running a row as often as each way of `linear_triton` wants."""
        row = self._words[:1].clone()
        add_and_norm(row, row, self._norm)
        layer = self._layers[0]
        angles = None
        if self._rotary is not None:
            angles = Angles(torch.zeros(1, dtype=torch.int64, device=row.device), *self._rotary)
        for rows in rows_of_each_way():
            many = row.expand(rows, -1).contiguous()
            layer.up(many)
            layer.turned_qkv(many, angles.expand(rows) if angles is not None else None)
        compile_kernels(layer.turned_qkv(row, angles).view(1, 3, self._num_heads, -1))


def _rotary(config: BertEncoderConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every position, [positions, head_dim / 2] float32: what is turned is rounded once, after."""
    table = RotaryTable(config.max_tokens, config.head_dim, config.bert.rotary_emb_base, torch.empty(0, device=device))
    every = table.at(torch.arange(config.max_tokens, device=device))
    return every.cos.view(config.max_tokens, -1), every.sin.view(config.max_tokens, -1)


def _layer(weights: Mapping[str, torch.Tensor], number: int, config: BertEncoderConfig) -> FusedBertLayer:
    prefix = f"encoder.layer.{number}."
    up = f"{prefix}intermediate.dense"
    return FusedBertLayer(
        qkv=_qkv(weights, f"{prefix}attention.self", config),
        out=_linear(weights, f"{prefix}attention.output.dense"),
        attention_norm=_layer_norm(weights, f"{prefix}attention.output.LayerNorm", config.bert),
        up=GeluLinear(weights[f"{up}.weight"], weights[f"{up}.bias"]),
        down=_linear(weights, f"{prefix}output.dense"),
        output_norm=_layer_norm(weights, f"{prefix}output.LayerNorm", config.bert),
    )


def _qkv(weights: Mapping[str, torch.Tensor], prefix: str, config: BertEncoderConfig) -> Linear | RotaryLinear:
    """One product for queries, keys and values."""
    is_rotary = config.positions == "rotary"

    def joined(kind: str) -> torch.Tensor:
        query, key, value = (weights[f"{prefix}.{name}.{kind}"] for name in ("query", "key", "value"))
        if is_rotary:
            query, key = in_pairs(query, config.head_dim), in_pairs(key, config.head_dim)
        return torch.cat([query, key, value])

    weight, bias = joined("weight"), joined("bias")
    return RotaryLinear(weight, bias, config.head_dim) if is_rotary else Linear(weight, bias)


def _linear(weights: Mapping[str, torch.Tensor], name: str) -> Linear:
    return Linear(weights[f"{name}.weight"], weights[f"{name}.bias"])


def _layer_norm(weights: Mapping[str, torch.Tensor], name: str, config: BertConfig) -> LayerNorm:
    return LayerNorm(weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_eps)
