"""What config.json says of a BERT encoder. Does not import torch."""

from __future__ import annotations

import math

import msgspec

from engine.model_files import ModelError, ModelFiles


class BertConfig(msgspec.Struct, frozen=True):
    """The keys that decide what is computed; others are ignored. Names are transformers' own."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12


# What another value would change, and what this encoder does: a checkpoint that wants another is refused.
EXPECTED = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}


def read_bert_config(files: ModelFiles, folder: str = "") -> BertConfig:
    """The encoder's shape.

    Raises:
        ModelError: it is not a BERT encoder, or one that this encoder does not compute exactly.
    """
    raw = files.read_json(f"{folder}/config.json" if folder else "config.json")
    if raw.values.get("model_type") != "bert":
        raise raw.error("model_type", "'bert': this version serves the BERT family only")
    if raw.values.get("auto_map"):  # the checkpoint's own code computes something that its config does not say
        raise raw.error("auto_map", "none: code that comes with a model is never run")
    for key, expected in EXPECTED.items():
        if raw.values.get(key, expected) != expected:
            raise raw.error(key, repr(expected))
    try:
        config = msgspec.convert(dict(raw.values), BertConfig)
    except msgspec.ValidationError as error:
        raise ModelError(f"{raw.path}: {error}") from None
    for field in msgspec.structs.fields(BertConfig):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise raw.error(field.name, "a finite number")
        if value <= 0:
            raise raw.error(field.name, "a number above 0")
    if config.hidden_size % config.num_attention_heads:
        raise raw.error("num_attention_heads", f"a divisor of hidden_size, which is {config.hidden_size}")
    return config
