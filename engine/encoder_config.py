"""Which family of encoders a config.json describes. Does not import torch."""

from __future__ import annotations

from engine.bert_config import BertEncoderConfig, read_bert_config
from engine.model_files import ModelFiles
from engine.modern_bert_config import ModernBertConfig, read_modern_bert_config

EncoderConfig = BertEncoderConfig | ModernBertConfig


def read_encoder_config(files: ModelFiles, folder: str = "") -> EncoderConfig:
    """The encoder's shape.

    Raises:
        ModelError: it is of no family that is served, or says what its family's encoder does not compute.
    """
    raw = files.read_json(f"{folder}/config.json" if folder else "config.json")
    match raw.values.get("model_type"):
        case "bert" | "xlm-roberta":
            return read_bert_config(raw)
        case "modernbert":
            return read_modern_bert_config(raw)
        case _:
            raise raw.error("model_type", "'bert', 'xlm-roberta' or 'modernbert'")
