"""What config.json says of an encoder of BERT's kind: BERT, XLM-R, and XLM-R with rotary positions. No torch here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from engine.model_files import JsonFile, ModelError, ModelFiles

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


class EncoderConfig(msgspec.Struct, frozen=True):
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
_MAY_BE_ZERO = {"pad_token_id"}


def read_bert_config(files: ModelFiles, folder: str = "") -> EncoderConfig:
    """The encoder's shape.

    Raises:
        ModelError: it is not an encoder of this kind, or one that this encoder does not compute exactly.
    """
    raw = files.read_json(f"{folder}/config.json" if folder else "config.json")
    kind = raw.values.get("model_type")
    is_rotary = kind == "xlm-roberta" and raw.values.get("position_embedding_type") == "rotary"
    if kind not in ("bert", "xlm-roberta"):
        raise raw.error("model_type", "'bert' or 'xlm-roberta': this version serves the BERT family only")
    if raw.values.get("auto_map") and not is_rotary:
        # the checkpoint's own code computes something that its config does not say; that of jina-colbert-v2 is known
        raise raw.error("auto_map", "none: code that comes with a model is never run")
    if is_rotary:
        _check(raw, ROTARY_EXPECTED)
        config = _convert(raw, {"layer_norm_eps": 1e-5, "pad_token_id": 1})
        if config.hidden_size // config.num_attention_heads % 2:
            raise raw.error("num_attention_heads", "heads of an even width: their halves are rotated")
        return EncoderConfig("XLM-R, rotary", config, "rotary")
    _check(raw, {**EXPECTED, "position_embedding_type": "absolute"})
    if kind == "bert":
        return EncoderConfig("BERT", _convert(raw, {"pad_token_id": 0}), "absolute")
    config = _convert(raw, {"layer_norm_eps": 1e-5, "pad_token_id": 1})
    return EncoderConfig("XLM-R", config, "after_padding")


def _check(raw: JsonFile, expected: Mapping[str, object]) -> None:
    for key, value in expected.items():
        if raw.values.get(key, value) != value:
            raise raw.error(key, repr(value))


def _convert(raw: JsonFile, defaults: Mapping[str, Any]) -> BertConfig:
    given = {key: value for key, value in raw.values.items() if value is not None or key not in defaults}
    try:
        config = msgspec.convert({**defaults, **given}, BertConfig)
    except msgspec.ValidationError as error:
        raise ModelError(f"{raw.path}: {error}") from None
    for field in msgspec.structs.fields(BertConfig):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise raw.error(field.name, "a finite number")
        if value < 0 or (value == 0 and field.name not in _MAY_BE_ZERO):
            raise raw.error(field.name, "a number above 0")
    if config.hidden_size % config.num_attention_heads:
        raise raw.error("num_attention_heads", f"a divisor of hidden_size, which is {config.hidden_size}")
    return config
