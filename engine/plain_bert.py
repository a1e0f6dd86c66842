"""BERT and its kind, slow and obviously right: what the fast path is checked against at run time.

One text at a time, every operation written out as in the paper: no packing, no fused attention, no prepared weights.
It shares with the fast path nothing but the weights. Float32 throughout; or in halves, as any library rounds there:
what a product, a sum of two states, a norm, GELU or a softmax comes to is rounded, and nothing in between.

Source: Devlin et al. 2019 (BERT); Khattab & Zaharia 2020 (ColBERT).
"""

from __future__ import annotations

import torch

from engine.bert_config import BertEncoderConfig
from engine.checkpoint import load_bert_weights
from engine.model_files import WeightsFile


def gelu(rows: torch.Tensor) -> torch.Tensor:
    """The exact one, with erf."""
    values = rows.float()
    return (values * 0.5 * (1 + torch.erf(values / 2**0.5))).to(rows.dtype)


class PlainBert:
    """One text's ids in, its last hidden states out.

    Raises:
        ModelError: weights are missing or have another shape than the configuration says.
    """

    def __init__(self, file: WeightsFile, config: BertEncoderConfig, dtype: torch.dtype = torch.float32) -> None:
        self._config = config
        self._weights = load_bert_weights(file, config, dtype)

    def hidden(self, token_ids: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """[length], [length] bool -> [length, hidden]; nobody attends to rows that are not attended."""
        hidden = self._weights["embeddings.word_embeddings.weight"][token_ids]
        hidden = hidden + self._weights["embeddings.token_type_embeddings.weight"][0]
        if self._config.positions != "rotary":
            hidden = hidden + self._weights["embeddings.position_embeddings.weight"][self._positions(token_ids)]
        hidden = self._normalise(hidden, "embeddings.LayerNorm")
        for number in range(self._config.bert.num_hidden_layers):
            layer = f"encoder.layer.{number}"
            context = self._linear(self._attend(hidden, layer, attended), f"{layer}.attention.output.dense")
            hidden = self._normalise(hidden + context, f"{layer}.attention.output.LayerNorm")
            inner = gelu(self._linear(hidden, f"{layer}.intermediate.dense"))
            hidden = self._normalise(hidden + self._linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        return hidden

    def _positions(self, token_ids: torch.Tensor) -> list[int]:
        """BERT counts from 0. RoBERTa counts from after the padding token's id, and only what is not padding."""
        if self._config.positions == "absolute":
            return list(range(len(token_ids)))
        padding = self._config.bert.pad_token_id
        positions, counted = [], padding
        for token_id in token_ids.tolist():
            if token_id != padding:
                counted += 1
            positions.append(counted if token_id != padding else padding)
        return positions

    def _attend(self, hidden: torch.Tensor, layer: str, attended: torch.Tensor) -> torch.Tensor:
        """Softmax attention, [length, hidden] -> the same; rows that are not attended get no weight."""
        heads = self._config.bert.num_attention_heads
        q, k, v = (
            self._linear(hidden, f"{layer}.attention.self.{name}").view(len(hidden), heads, -1).transpose(0, 1)
            for name in ("query", "key", "value")
        )
        if self._config.positions == "rotary":
            base = self._config.bert.rotary_emb_base
            q, k = rotate(q, base).to(v.dtype), rotate(k, base).to(v.dtype)
        logits = q @ k.transpose(1, 2) / q.shape[2] ** 0.5  # [heads, length, length]
        weights = logits.masked_fill(~attended, float("-inf")).softmax(2)
        context: torch.Tensor = (weights @ v).transpose(0, 1).flatten(1)
        return context

    def _linear(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        return rows @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _normalise(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        values = rows.float()
        centred = values - values.mean(1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(1, keepdim=True) + self._config.bert.layer_norm_eps).sqrt()
        return (scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]).to(rows.dtype)


def rotate(heads: torch.Tensor, base: float) -> torch.Tensor:
    """[heads, length, head_dim]: (x_i, x_{i + head_dim / 2}) turned by position * base^(-2 i / head_dim)."""
    width = heads.shape[2]
    turned = heads.clone()
    for i in range(width // 2):
        angle = torch.arange(heads.shape[1]) * base ** (-2 * i / width)
        x, y = heads[:, :, i], heads[:, :, i + width // 2]
        turned[:, :, i] = x * angle.cos() - y * angle.sin()
        turned[:, :, i + width // 2] = y * angle.cos() + x * angle.sin()
    return turned
