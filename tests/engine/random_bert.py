"""Random weights of an encoder of BERT's kind, without a file."""

from __future__ import annotations

import torch

from engine.bert_config import BertConfig


def random_weights(config: BertConfig, with_positions: bool) -> dict[str, torch.Tensor]:
    """By BertModel's own names, float32; no table of positions where positions are rotary."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, list[int]] = {
        "embeddings.word_embeddings.weight": [config.vocab_size, hidden],
        "embeddings.token_type_embeddings.weight": [2, hidden],
        "embeddings.LayerNorm.weight": [hidden],
    }
    if with_positions:
        shapes["embeddings.position_embeddings.weight"] = [config.max_position_embeddings, hidden]
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{layer}.attention.{name}.weight"] = [hidden, hidden]
        shapes[f"{layer}.attention.output.LayerNorm.weight"] = [hidden]
        shapes[f"{layer}.intermediate.dense.weight"] = [inner, hidden]
        shapes[f"{layer}.output.dense.weight"] = [hidden, inner]
        shapes[f"{layer}.output.LayerNorm.weight"] = [hidden]
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in shapes.items()}
    biases = {
        name.removesuffix("weight") + "bias": torch.randn(shape[0], generator=generator) * 0.2
        for name, shape in shapes.items()
        if "_embeddings" not in name
    }
    return weights | biases
