"""ModernBERT, slow and obviously right: what the fast path is checked against at run time.

One text at a time, every operation written out. Shares with the fast path nothing but the weights. Float32 throughout,
or in halves, as `plain_bert` says.

Source: Warner et al. 2024 (ModernBERT).
"""

from __future__ import annotations

import torch

from engine.checkpoint import load_modern_bert_weights
from engine.model_files import WeightsFile
from engine.modern_bert_config import ModernBertConfig
from engine.plain_bert import gelu, rotate


class PlainModernBert:
    """One text's ids in, its last hidden states out.

    Raises:
        ModelError: weights are missing or have another shape than the configuration says.
    """

    def __init__(self, file: WeightsFile, config: ModernBertConfig, dtype: torch.dtype = torch.float32) -> None:
        self._config = config
        self._weights = load_modern_bert_weights(file, config, dtype)

    def hidden(self, token_ids: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """[length], [length] bool -> [length, hidden]; nobody attends to rows that are not attended."""
        hidden = self._normalise(self._weights["embeddings.tok_embeddings.weight"][token_ids], "embeddings.norm")
        for number, is_local in enumerate(self._config.is_local):
            layer = f"layers.{number}"
            rows = self._normalise(hidden, f"{layer}.attn_norm") if number else hidden
            hidden = hidden + self._attend(rows, layer, attended, is_local) @ self._weights[f"{layer}.attn.Wo.weight"].T
            rows = self._normalise(hidden, f"{layer}.mlp_norm")
            both = rows @ self._weights[f"{layer}.mlp.Wi.weight"].T
            width = self._config.intermediate_size
            gated = gelu(both[:, :width]) * both[:, width:]
            hidden = hidden + gated @ self._weights[f"{layer}.mlp.Wo.weight"].T
        return self._normalise(hidden, "final_norm")

    def _attend(self, rows: torch.Tensor, layer: str, attended: torch.Tensor, is_local: bool) -> torch.Tensor:
        """[length, hidden] -> the same, before the output's matrix."""
        length, heads = len(rows), self._config.num_attention_heads
        qkv = rows @ self._weights[f"{layer}.attn.Wqkv.weight"].T
        q, k, v = (part.view(length, heads, -1).transpose(0, 1) for part in qkv.chunk(3, 1))
        theta = self._config.local_theta if is_local else self._config.global_theta
        q, k = rotate(q, theta).to(v.dtype), rotate(k, theta).to(v.dtype)
        may_see = attended.expand(length, length)
        if is_local:
            places = torch.arange(length)
            may_see = may_see & ((places[:, None] - places).abs() <= self._config.local_attention // 2)
        logits = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).masked_fill(~may_see, float("-inf"))
        weights = logits.softmax(2).nan_to_num(0.0)  # who sees nobody gets nothing
        context: torch.Tensor = (weights @ v).transpose(0, 1).flatten(1)
        return context

    def _normalise(self, rows: torch.Tensor, name: str) -> torch.Tensor:
        values = rows.float()
        centred = values - values.mean(1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(1, keepdim=True) + self._config.norm_eps).sqrt()
        return (scaled * self._weights[f"{name}.weight"]).to(rows.dtype)
