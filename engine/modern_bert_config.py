"""What config.json says of a ModernBERT encoder. Does not import torch."""

from __future__ import annotations

from typing import Any

import msgspec

from engine.bert_config import check_expected, convert, refuse_own_code
from engine.model_files import JsonFile

EXPECTED = {
    "hidden_activation": "gelu",
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "rope_scaling": None,
}
THETA = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
_OLD_KEYS = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


class ModernBertConfig(msgspec.Struct, frozen=True):
    """The keys that decide what is computed; names are transformers' own, but for the last three."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    norm_eps: float = 1e-5
    local_attention: int = 128  # a row of a local layer attends to rows at most half of this away
    is_local: tuple[bool, ...] = ()  # of each layer
    global_theta: float = THETA["full_attention"]
    local_theta: float = THETA["sliding_attention"]

    @property
    def family(self) -> str:
        return "ModernBERT"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """The most ids that one text may have."""
        return self.max_position_embeddings


def read_modern_bert_config(raw: JsonFile) -> ModernBertConfig:
    """The encoder's shape.

    Raises:
        ModelError: this encoder does not compute what it says.
    """
    refuse_own_code(raw)
    check_expected(raw, EXPECTED)
    defaults = {"norm_eps": 1e-5, "local_attention": 128}
    config = convert(raw, ModernBertConfig, defaults)
    if config.hidden_size // config.num_attention_heads % 2:
        raise raw.error("num_attention_heads", "heads of an even width: their halves are rotated")
    return msgspec.structs.replace(
        config,
        is_local=_read_layers(raw, config.num_hidden_layers),
        global_theta=_read_theta(raw, "full_attention"),
        local_theta=_read_theta(raw, "sliding_attention"),
    )


def _read_layers(raw: JsonFile, count: int) -> tuple[bool, ...]:
    """Newer configs list the layers' types, older ones say which are global."""
    types = raw.values.get("layer_types")
    if types is None:
        every = raw.get_int("global_attn_every_n_layers", 3)
        return tuple(number % every != 0 for number in range(count))
    if not isinstance(types, list) or len(types) != count or not set(types) <= THETA.keys():
        raise raw.error("layer_types", f"{count} times full_attention or sliding_attention")
    return tuple(each == "sliding_attention" for each in types)


def _read_theta(raw: JsonFile, kind: str) -> float:
    """Newer configs have rope_parameters for each type of layer; they come before the older keys."""
    both = raw.get_object("rope_parameters")
    if not both.values.keys() <= THETA.keys():
        raise raw.error("rope_parameters", f"an object with {' and '.join(THETA)}")
    parameters = both.get_object(kind)
    if parameters.get_str("rope_type", "default") != "default":
        raise parameters.error("rope_type", "'default'")
    if not parameters.values.keys() <= {"rope_type", "rope_theta"}:
        raise both.error(kind, "rope_type and rope_theta alone")
    source, key = (parameters, "rope_theta") if "rope_theta" in parameters else (raw, _OLD_KEYS[kind])
    value: Any = source.values.get(key, THETA[kind])  # null is no default: versions of transformers disagree on it
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise source.error(key, "a number above 0")
    return float(value)
