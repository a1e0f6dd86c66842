"""Weights from safetensors files, by one set of names, checked against the configuration before anything runs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from safetensors import SafetensorError, safe_open

from engine.bert_config import BertConfig
from engine.formats import Projection
from engine.model_files import ModelError, WeightsFile

_PREFIXES = ("", "bert.", "model.", "model.bert.")
_FIRST = "embeddings.word_embeddings.weight"
_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}  # TensorFlow's, in old saves


def load_bert_weights(file: WeightsFile, config: BertConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """BertModel's weights, by its own names without a prefix.

    Raises:
        ModelError: one is missing, no float, or has another shape than config.json says.
    """
    prefix = next((prefix for prefix in _PREFIXES if prefix + _FIRST in file.tensors), None)
    if prefix is None:
        raise ModelError(f"{file.path}: no {_FIRST}, so no BERT encoder")
    return {
        name: _load_tensor(file, prefix + _name_in(file, prefix, name), shape, dtype)
        for name, shape in _expected_shapes(config)
    }


def load_projection(projection: Projection, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The [out_features, in_features] matrix, and the [out_features] bias if there is one.

    Raises:
        ModelError: one is no float.
    """
    weight, bias = (
        _load_tensor(projection.file, name, projection.file.shape_of(name), dtype) if name is not None else None
        for name in (projection.weight, projection.bias)
    )
    assert weight is not None
    return weight, bias


def _load_tensor(file: WeightsFile, name: str, shape: list[int] | None, dtype: torch.dtype) -> torch.Tensor:
    if file.shape_of(name) is None:
        raise ModelError(f"{file.path}: no {name}; the checkpoint is not whole")
    if file.shape_of(name) != shape:
        raise ModelError(f"{file.path}: {name} has shape {file.shape_of(name)}, config.json says {shape}")
    try:
        with safe_open(file.path, framework="pt") as tensors:
            tensor: torch.Tensor = tensors.get_tensor(name)
    except SafetensorError as error:
        raise ModelError(f"{file.path}: not a safetensors file ({error}); download it again") from None
    if not tensor.is_floating_point():
        raise ModelError(f"{file.path}: {name} is {tensor.dtype}; quantised weights are not in this version")
    return tensor.to(dtype)


def _name_in(file: WeightsFile, prefix: str, name: str) -> str:
    for new, old in _OLD_NAMES.items():
        renamed = name.replace(new, old)
        if prefix + name not in file.tensors and prefix + renamed in file.tensors:
            return renamed
    return name


def _expected_shapes(config: BertConfig) -> Iterator[tuple[str, list[int]]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    yield _FIRST, [config.vocab_size, hidden]
    yield "embeddings.position_embeddings.weight", [config.max_position_embeddings, hidden]
    yield "embeddings.token_type_embeddings.weight", [config.type_vocab_size, hidden]
    yield from _pair("embeddings.LayerNorm", [hidden])
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            yield from _pair(f"{layer}.attention.{name}", [hidden, hidden])
        yield from _pair(f"{layer}.attention.output.LayerNorm", [hidden])
        yield from _pair(f"{layer}.intermediate.dense", [inner, hidden])
        yield from _pair(f"{layer}.output.dense", [hidden, inner])
        yield from _pair(f"{layer}.output.LayerNorm", [hidden])


def _pair(name: str, shape: list[int]) -> Iterator[tuple[str, list[int]]]:
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
