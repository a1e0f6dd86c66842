"""jina-colbert-v2's shape without its weights: XLM-R-large with rotary positions, 128 dimensions, 250,002 pieces.

    python -m benchmarks.jina_shape DIRECTORY

For `--load-format dummy`, as in the benchmark of vLLM PR 35330. The tokenizer is synthetic: made-up
words, some of them in several pieces, as large as XLM-R's. Queries are not expanded (vLLM does not expand them either).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

VOCABULARY = 250_002
LAYERS, HIDDEN, HEADS, INNER, DIM, POSITIONS = 24, 1024, 16, 4096, 128, 8194
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
MARKERS = ["[QueryMarker]", "[DocumentMarker]"]
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]

CONFIG = {
    "model_type": "xlm-roberta",
    "architectures": ["XLMRobertaModel"],
    "position_embedding_type": "rotary",
    "rotary_emb_base": 20_000.0,
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": INNER,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
}


def flops(lengths: Iterable[int]) -> float:
    """Of the encoder's matrix products and its attention, for texts of these lengths."""
    products = 2 * LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)  # of a token
    return sum(products * length + 4 * LAYERS * HIDDEN * length * length for length in lengths)


def make_checkpoint(directory: Path, length: int = 8192) -> None:
    """Write everything but the weights, in PyLate's format.

    Args:
        length: the most ids of a query, and of a document.
    """
    dense = directory / "1_Dense"
    dense.mkdir(parents=True, exist_ok=True)
    write(directory / "config.json", CONFIG)
    prefix = "sentence_transformers."
    modules = [("0", "", f"{prefix}models.Transformer"), ("1", "1_Dense", "pylate.models.Dense.Dense")]
    entries = [{"idx": int(name), "name": name, "path": path, "type": kind} for name, path, kind in modules]
    write(directory / "modules.json", entries)
    settings = {
        "in_features": HIDDEN,
        "out_features": DIM,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    write(dense / "config.json", settings)
    colbert = {
        "model_type": "ColBERT",
        "query_prefix": MARKERS[0],
        "document_prefix": MARKERS[1],
        "query_length": length,
        "document_length": length,
        "do_query_expansion": False,
        "skiplist_words": [],
        "similarity_fn_name": "MaxSim",
    }
    write(directory / "config_sentence_transformers.json", colbert)
    write(directory / "sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})
    write_tokenizer(directory)


def write_tokenizer(directory: Path) -> None:
    """A Unigram tokenizer laid out as XLM-R's."""
    tokenizer = Tokenizer(Unigram(make_pieces(), unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*SPECIAL, AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.add_special_tokens(MARKERS)
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise AssertionError(tokenizer.get_vocab_size())
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "pad": "<pad>", "unk": "<unk>", "mask": "<mask>"}
    special = {f"{name}_token": token for name, token in names.items()}
    write(directory / "special_tokens_map.json", special)
    write(directory / "tokenizer_config.json", {**special, "tokenizer_class": "PreTrainedTokenizerFast"})


def make_pieces() -> list[tuple[str, float]]:
    """Every piece with its score: three of four begin a word, as in XLM-R's list."""
    choose = random.Random(0)
    letters = sorted(set("".join(SYLLABLES)))
    pieces = dict.fromkeys([*SPECIAL, "▁", *letters, *SYLLABLES])
    wanted = VOCABULARY - 1 - len(MARKERS)  # <mask> and the markers come after
    while len(pieces) < wanted:
        word = "".join(choose.choices(SYLLABLES, k=choose.randint(2, 4)))
        pieces.setdefault(f"▁{word}" if choose.random() < 0.75 else word)
    return [(piece, 0.0 if number < len(SPECIAL) else -8.0 - number / wanted) for number, piece in enumerate(pieces)]


def write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False))


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("directory", type=Path)
    make_checkpoint(arguments.parse_args().directory)
