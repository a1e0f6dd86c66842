"""Weights from safetensors files, by one set of names, checked against the configuration before anything runs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import torch
from safetensors import SafetensorError, safe_open

from engine.bert_config import BertConfig, BertEncoderConfig
from engine.formats import Projection
from engine.model_files import ModelError, WeightsFile
from engine.modern_bert_config import ModernBertConfig

_PREFIXES = ("", "bert.", "roberta.", "model.", "model.bert.", "model.roberta.")
INITIALIZER_RANGE = 0.02
_FIRST = "embeddings.word_embeddings.weight"
_OLD_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}  # TensorFlow's, in old saves


def load_bert_weights(file: WeightsFile, config: BertEncoderConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The encoder's weights, by BertModel's names without a prefix. With rotary positions there is no table of them.

    Raises:
        ModelError: one is missing, no float, or has another shape than config.json says.
    """
    prefix = _prefix_of(file, _FIRST, _PREFIXES)
    if prefix is None:
        raise ModelError(f"{file.path}: no {_FIRST}, so no encoder of BERT's kind")
    if config.positions == "rotary":
        return _load_rotary(file, prefix, config.bert, dtype)
    return {
        name: _load_tensor(file, prefix + _name_in(file, prefix, name), shape, dtype)
        for name, shape in _expected_shapes(config.bert)
    }


def _load_rotary(file: WeightsFile, prefix: str, config: BertConfig, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The layout of XLM-R with rotary positions, which jina-colbert-v2 has: query, key and value in one matrix."""
    hidden, inner = config.hidden_size, config.intermediate_size

    def load(name: str, shape: list[int]) -> torch.Tensor:
        return _load_tensor(file, prefix + name, shape, dtype)

    names = "embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"
    sizes = config.vocab_size, config.type_vocab_size
    weights = {name: load(name, [rows, hidden]) for name, rows in zip(names, sizes, strict=True)}
    pairs = [("embeddings.LayerNorm", "emb_ln", [hidden])]
    for number in range(config.num_hidden_layers):
        layer, theirs = f"encoder.layer.{number}", f"encoder.layers.{number}"
        pairs += [
            (f"{layer}.attention.output.dense", f"{theirs}.mixer.out_proj", [hidden, hidden]),
            (f"{layer}.attention.output.LayerNorm", f"{theirs}.norm1", [hidden]),
            (f"{layer}.intermediate.dense", f"{theirs}.mlp.fc1", [inner, hidden]),
            (f"{layer}.output.dense", f"{theirs}.mlp.fc2", [hidden, inner]),
            (f"{layer}.output.LayerNorm", f"{theirs}.norm2", [hidden]),
        ]
        for kind, shape in (("weight", [3 * hidden, hidden]), ("bias", [3 * hidden])):
            parts = load(f"{theirs}.mixer.Wqkv.{kind}", shape).chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                weights[f"{layer}.attention.self.{name}.{kind}"] = part
    for ours, theirs, shape in pairs:
        weights[f"{ours}.weight"] = load(f"{theirs}.weight", shape)
        weights[f"{ours}.bias"] = load(f"{theirs}.bias", shape[:1])
    return weights


def load_modern_bert_weights(
    file: WeightsFile, config: ModernBertConfig, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The encoder's weights, by ModernBertModel's names without a prefix.

    Raises:
        ModelError: one is missing, no float, or has another shape than config.json says.
    """
    first = "embeddings.tok_embeddings.weight"
    prefix = _prefix_of(file, first, ("", "model."))
    if prefix is None:
        raise ModelError(f"{file.path}: no {first}, so no ModernBERT encoder")
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes = {first: [config.vocab_size, hidden], "embeddings.norm.weight": [hidden], "final_norm.weight": [hidden]}
    for number in range(config.num_hidden_layers):
        layer = f"layers.{number}"
        shapes |= {
            f"{layer}.attn.Wqkv.weight": [3 * hidden, hidden],
            f"{layer}.attn.Wo.weight": [hidden, hidden],
            f"{layer}.mlp_norm.weight": [hidden],
            f"{layer}.mlp.Wi.weight": [2 * inner, hidden],
            f"{layer}.mlp.Wo.weight": [hidden, inner],
        }
        if number:  # the first layer's input has just been normalised
            shapes[f"{layer}.attn_norm.weight"] = [hidden]
    return {name: _load_tensor(file, prefix + name, shape, dtype) for name, shape in shapes.items()}


def load_projection(projection: Projection, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The [out_features, in_features] matrix, and the [out_features] bias if there is one.

    Raises:
        ModelError: one is no float.
    """
    shape = [projection.out_features, projection.in_features]
    weight = _load_tensor(projection.file, projection.weight, shape, dtype)
    if projection.bias is None:
        return weight, None
    return weight, _load_tensor(projection.file, projection.bias, shape[:1], dtype)


def _prefix_of(file: WeightsFile, name: str, prefixes: Sequence[str]) -> str | None:
    """What stands before the names of the encoder's tensors; None: it has no such tensor."""
    if file.is_dummy:
        return ""
    return next((prefix for prefix in prefixes if prefix + name in file.tensors), None)


def _make_dummy(name: str, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Random values as before training, the same for a name in every process: scales of 1, no biases, and matrices of
    BERT's initializer_range."""
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=dtype)
    if len(shape) == 1:
        return torch.ones(shape, dtype=dtype)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return (torch.randn(shape, generator=generator) * INITIALIZER_RANGE).to(dtype)


def _load_tensor(file: WeightsFile, name: str, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    if file.is_dummy:
        return _make_dummy(name, shape, dtype)
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
