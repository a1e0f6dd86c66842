"""ModernBERT as a packed encoder: the rows of all texts in one matrix, without padding.

The order of operations is that of transformers' ModernBertModel. Layers normalise before attention and before the
feed-forward net, which is gated; two of three attend to a window only.

Source: Warner et al. 2024. Ground truth: transformers' ModernBertModel, through tests/engine/test_parity.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from engine.attention import Attention, WindowAttention
from engine.layer_norm import LayerNorm
from engine.linear import Linear
from engine.modern_bert_config import ModernBertConfig
from engine.packing import PackedBatch
from engine.rotary import RotaryTable, Rotation


@dataclass(frozen=True, slots=True)
class ModernBertLayer:
    """Normalise, attend, add; normalise, feed forward, add (pre-norm)."""

    attention_norm: LayerNorm | None  # None: the first layer's input has just been normalised
    qkv: Linear  # hidden -> 3 * hidden
    out: Linear
    inner_norm: LayerNorm
    up: Linear  # hidden -> 2 * intermediate: what goes through GELU, and its gate
    down: Linear

    def __call__(
        self, hidden: torch.Tensor, num_heads: int, attend: Attention, batch: PackedBatch, rotation: Rotation
    ) -> torch.Tensor:  # [total_tokens, hidden] -> the same
        normalised = hidden if self.attention_norm is None else self.attention_norm(hidden)
        qkv = self.qkv(normalised).view(len(hidden), 3, num_heads, -1)  # [total_tokens, 3, num_heads, head_dim]
        hidden = hidden + self.out(attend(rotation(qkv), batch))
        inner, gate = self.up(self.inner_norm(hidden)).chunk(2, -1)
        return hidden + self.down(functional.gelu(inner) * gate)


class ModernBert:
    """A ModernBERT encoder.

    Args:
        config: of the checkpoint.
        weights: by ModernBertModel's own names, in the dtype and on the device to compute in.
        attend: how attention is computed in the layers without a window.
        attend_in_window: and in those with one.
    """

    def __init__(
        self,
        config: ModernBertConfig,
        weights: Mapping[str, torch.Tensor],
        attend: Attention,
        attend_in_window: WindowAttention,
    ) -> None:
        self._num_heads = config.num_attention_heads
        self._reach = config.local_attention // 2
        self._attend = attend
        self._attend_in_window = attend_in_window
        self._words = weights["embeddings.tok_embeddings.weight"]
        head_dim = config.head_dim
        self._global, self._local = (
            RotaryTable(config.max_tokens, head_dim, theta, self._words)
            for theta in (config.global_theta, config.local_theta)
        )
        self._norm = LayerNorm(weights["embeddings.norm.weight"], None, config.norm_eps)
        self._final_norm = LayerNorm(weights["final_norm.weight"], None, config.norm_eps)
        self._layers = [_layer(weights, number, config) for number in range(config.num_hidden_layers)]
        self._is_local = config.is_local

    def __call__(self, batch: PackedBatch) -> torch.Tensor:
        """The last hidden states, [total_tokens, hidden]."""
        hidden = self._norm(self._words[batch.token_ids])
        rotations = {False: self._global.at(batch.position_ids), True: self._local.at(batch.position_ids)}
        # where no text is longer than a row reaches, the window leaves nobody out
        has_far = max(batch.lengths) > self._reach + 1
        for layer, is_local in zip(self._layers, self._is_local, strict=True):
            attend = self._attend_near if is_local and has_far else self._attend
            hidden = layer(hidden, self._num_heads, attend, batch, rotations[is_local])
        return self._final_norm(hidden)

    def _attend_near(self, qkv: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
        return self._attend_in_window(qkv, batch, self._reach)


def _layer(weights: Mapping[str, torch.Tensor], number: int, config: ModernBertConfig) -> ModernBertLayer:
    def norm(name: str) -> LayerNorm:
        return LayerNorm(weights[f"layers.{number}.{name}.weight"], None, config.norm_eps)

    def linear(name: str) -> Linear:
        return Linear(weights[f"layers.{number}.{name}.weight"], None)

    return ModernBertLayer(
        attention_norm=norm("attn_norm") if number else None,
        qkv=linear("attn.Wqkv"),
        out=linear("attn.Wo"),
        inner_norm=norm("mlp_norm"),
        up=linear("mlp.Wi"),
        down=linear("mlp.Wo"),
    )
