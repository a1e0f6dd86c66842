"""A tiny BERT in Stanford's ColBERT format with a vocabulary as large as XLM-R's: what a large tokenizer costs."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCABULARY, HIDDEN, POSITIONS, DIM = 250_002, 32, 512, 16
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]"]


def make_checkpoint(directory: Path) -> None:
    """Write config.json, artifact.metadata, tokenizer.json and model.safetensors; weights are random."""
    (directory / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["HF_ColBERT"],
                "model_type": "bert",
                "vocab_size": VOCABULARY,
                "hidden_size": HIDDEN,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 2 * HIDDEN,
                "max_position_embeddings": POSITIONS,
                "type_vocab_size": 2,
            }
        )
    )
    metadata = {
        "query_token_id": "[unused0]",
        "doc_token_id": "[unused1]",
        "query_maxlen": 32,
        "doc_maxlen": 180,
        "dim": DIM,
    }
    (directory / "artifact.metadata").write_text(json.dumps(metadata))
    (directory / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    save_file(_weights(), directory / "model.safetensors")


def _tokenizer() -> dict[str, object]:
    pieces = [*SPECIAL, *(f"piece{number}" for number in range(VOCABULARY - len(SPECIAL)))]
    added = [
        {
            "id": i,
            "content": s,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for i, s in enumerate(SPECIAL)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {piece: number for number, piece in enumerate(pieces)},
        },
    }


def _weights() -> dict[str, torch.Tensor]:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape) * 0.1

    weights = {
        "bert.embeddings.word_embeddings.weight": random(VOCABULARY, HIDDEN),
        "bert.embeddings.position_embeddings.weight": random(POSITIONS, HIDDEN),
        "bert.embeddings.token_type_embeddings.weight": random(2, HIDDEN),
        "linear.weight": random(DIM, HIDDEN),
    }
    layer = "bert.encoder.layer.0"
    for name, out, width in (
        ("attention.self.query", HIDDEN, HIDDEN),
        ("attention.self.key", HIDDEN, HIDDEN),
        ("attention.self.value", HIDDEN, HIDDEN),
        ("attention.output.dense", HIDDEN, HIDDEN),
        ("intermediate.dense", 2 * HIDDEN, HIDDEN),
        ("output.dense", HIDDEN, 2 * HIDDEN),
    ):
        weights[f"{layer}.{name}.weight"] = random(out, width)
        weights[f"{layer}.{name}.bias"] = random(out)
    for name in ("bert.embeddings.LayerNorm", f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"):
        weights[f"{name}.weight"] = torch.ones(HIDDEN)
        weights[f"{name}.bias"] = torch.zeros(HIDDEN)
    return weights
