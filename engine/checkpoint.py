"""Weights from safetensors files, checked against the configuration before anything is computed with them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from engine.model_spec import BertConfig, ModelError, Projection

_PREFIXES = ("", "bert.", "model.", "model.bert.")
_FIRST = "embeddings.word_embeddings.weight"


def load_bert_weights(path: Path, config: BertConfig) -> dict[str, torch.Tensor]:
    """BertModel's weights in float32, by its own names without a prefix.

    Raises:
        ModelError: one is missing or has another shape than config.json says.
    """
    tensors = load_file(path)
    prefix = next((prefix for prefix in _PREFIXES if prefix + _FIRST in tensors), None)
    if prefix is None:
        raise ModelError(f"{path}: no {_FIRST}; the weights are not a BERT encoder's")
    weights = {}
    for name, shape in _expected_shapes(config).items():
        tensor = tensors.get(prefix + name)
        if tensor is None:
            raise ModelError(f"{path}: no {prefix + name}")
        if list(tensor.shape) != shape:
            raise ModelError(f"{path}: {prefix + name} has shape {list(tensor.shape)}, config.json says {shape}")
        weights[name] = tensor.float()
    return weights


def load_projection(projection: Projection, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The [out, in] matrix, and the [out] bias if there is one."""
    tensors = load_file(projection.path)
    bias = tensors[projection.bias].to(dtype) if projection.bias is not None else None
    return tensors[projection.weight].to(dtype), bias


def _expected_shapes(config: BertConfig) -> dict[str, list[int]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {
        _FIRST: [config.vocab_size, hidden],
        "embeddings.position_embeddings.weight": [config.max_position_embeddings, hidden],
        "embeddings.token_type_embeddings.weight": [config.type_vocab_size, hidden],
        "embeddings.LayerNorm.weight": [hidden],
        "embeddings.LayerNorm.bias": [hidden],
    }
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes[f"{layer}{name}.weight"] = [hidden, hidden]
            shapes[f"{layer}{name}.bias"] = [hidden]
        shapes[f"{layer}intermediate.dense.weight"] = [inner, hidden]
        shapes[f"{layer}intermediate.dense.bias"] = [inner]
        shapes[f"{layer}output.dense.weight"] = [hidden, inner]
        shapes[f"{layer}output.dense.bias"] = [hidden]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{layer}{name}.weight"] = [hidden]
            shapes[f"{layer}{name}.bias"] = [hidden]
    return shapes
