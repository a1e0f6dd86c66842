"""What config.json says of an encoder of BERT's kind: BERT, XLM-R, and XLM-R with rotary positions. No torch here."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from engine.model_files import JsonFile, ModelError

Config = TypeVar("Config", bound=msgspec.Struct)
Positions = Literal["absolute", "after_padding", "rotary"]


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
    pad_token_id: int = 0
    rotary_emb_base: float = 10_000.0


class BertEncoderConfig(msgspec.Struct, frozen=True):
    """A config and the kind of encoder that it describes.

    positions:
        absolute        a table, from 0 (BERT)
        after_padding   a table, from pad_token_id + 1; a padding token inside a text has pad_token_id's (XLM-R)
        rotary          none; queries and keys are rotated (jina-colbert-v2)
    """

    family: str  # for people
    bert: BertConfig
    positions: Positions

    @property
    def hidden_size(self) -> int:
        return self.bert.hidden_size

    @property
    def head_dim(self) -> int:
        return self.bert.hidden_size // self.bert.num_attention_heads

    @property
    def num_hidden_layers(self) -> int:
        return self.bert.num_hidden_layers

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self.bert.vocab_size

    @property
    def max_tokens(self) -> int:
        """The most ids that one text may have."""
        unused = self.bert.pad_token_id + 1 if self.family != "BERT" else 0
        return self.bert.max_position_embeddings - unused


# What another value would change, and what this encoder does: a checkpoint that wants another is refused.
EXPECTED = {"hidden_act": "gelu", "is_decoder": False}
ROTARY_EXPECTED = {
    "hidden_act": "gelu",
    "is_decoder": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_scale_base": None,
    "rotary_emb_interleaved": False,
    "use_qk_norm": False,
    "lora_adaptations": None,
    "mlp_type": "mlp",
}


def read_bert_config(raw: JsonFile) -> BertEncoderConfig:
    """The encoder's shape.

    Args:
        raw: config.json, of model_type bert or xlm-roberta.

    Raises:
        ModelError: this encoder does not compute what it says.
    """
    is_xlmr = raw.values.get("model_type") == "xlm-roberta"
    if is_xlmr and raw.values.get("position_embedding_type") == "rotary":
        return _read_rotary(raw)
    refuse_own_code(raw)
    check_expected(raw, {**EXPECTED, "position_embedding_type": "absolute"})
    if not is_xlmr:
        return BertEncoderConfig("BERT", _convert(raw, {"pad_token_id": 0}), "absolute")
    return BertEncoderConfig("XLM-R", _convert(raw, {"layer_norm_eps": 1e-5, "pad_token_id": 1}), "after_padding")


def _read_rotary(raw: JsonFile) -> BertEncoderConfig:
    """jina-colbert-v2 says auto_map: its code is known, and not needed."""
    check_expected(raw, ROTARY_EXPECTED)
    config = _convert(raw, {"layer_norm_eps": 1e-5, "pad_token_id": 1})
    head_dim = config.hidden_size // config.num_attention_heads
    if head_dim % 2:
        raise raw.error("num_attention_heads", "heads of an even width: their halves are rotated")
    check_expected(raw, {"rotary_emb_dim": head_dim})
    return BertEncoderConfig("XLM-R, rotary", config, "rotary")


def refuse_own_code(raw: JsonFile) -> None:
    """
    Raises:
        ModelError: the checkpoint brings code, which computes something that its config does not say.
    """
    if raw.values.get("auto_map"):
        raise raw.error("auto_map", "none: code that comes with a model is never run")


def check_expected(raw: JsonFile, expected: Mapping[str, object]) -> None:
    """
    Raises:
        ModelError: a key says something else; one that is missing says nothing else.
    """
    for key, value in expected.items():
        if raw.values.get(key, value) != value:
            raise raw.error(key, repr(value))


def _convert(raw: JsonFile, defaults: Mapping[str, Any]) -> BertConfig:
    return convert(raw, BertConfig, defaults, may_be_zero={"pad_token_id"})


def convert(
    raw: JsonFile, kind: type[Config], defaults: Mapping[str, Any], may_be_zero: Collection[str] = ()
) -> Config:
    """config.json's keys as a struct; null counts as missing where there is a default.

    Raises:
        ModelError: one is missing, of another type, not finite, or not above 0; or the heads do not fit.
    """
    given = {key: value for key, value in raw.values.items() if value is not None or key not in defaults}
    try:
        config = msgspec.convert({**defaults, **given}, kind)
    except msgspec.ValidationError as error:
        raise ModelError(f"{raw.path}: {error}") from None
    for field in msgspec.structs.fields(kind):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise raw.error(field.name, "a finite number")
        if isinstance(value, int | float) and (value < 0 or (value == 0 and field.name not in may_be_zero)):
            raise raw.error(field.name, "a number above 0")
    hidden, heads = getattr(config, "hidden_size"), getattr(config, "num_attention_heads")  # noqa: B009 - every kind has
    if hidden % heads:
        raise raw.error("num_attention_heads", f"a divisor of hidden_size, which is {hidden}")
    return config
