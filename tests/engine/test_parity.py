"""Ids, embeddings and scores are those of the reference, sentence-transformers' MultiVectorEncoder (promise P3)."""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

from engine.encoder import Encoder
from engine.model_spec import LoadedModel, load_model
from engine.packing import PackedTexts
from engine.plain_encoder import PlainEncoder
from engine.self_check import run_self_check
from frontend.tokenizer import StatelessTokenizer
from ipc.messages import Role, TextSpec
from ipc.settings import ModelSettings
from tests.engine.checkpoints import (
    HIDDEN,
    ROTARY_BASE,
    write_modern,
    write_modern_bare_markers,
    write_modern_stanford,
    write_pylate,
    write_stanford,
    write_xlmr,
    write_xlmr_pylate,
    xlmr_weights,
)

QUERIES = [
    "What is late interaction?",
    "",
    "naïve Ünïcode, 東京 and emoji 🙂",
    "a query that is a good deal longer than the sixteen tokens which these small models give to queries, so it is cut",
    "text with [MASK] and [SEP] inside, and [unused0] [Q] markers, <mask> and <pad> <pad> too",
    " blanks  around,\tand\nbetween ",
]
DOCUMENTS = [
    "ColBERT scores a document by the sum, over query tokens, of the best match among the document's tokens.",
    "",
    "?!... (--)",
    "word " * 200,
    "Crème brûlée; well-known, isn't it? [unused1] [D] [SEP]",
    "short",
    "  blanks  around,\tand\n\nbetween  ",
    " ",
]


TEXTS: dict[Role, list[str]] = {"query": QUERIES, "document": DOCUMENTS}


@dataclass
class Pair:
    """A model, as we load it and as the reference does, and what both make of the texts."""

    model: LoadedModel
    reference: Any
    packed: dict[Role, PackedTexts]
    ours: dict[Role, list[torch.Tensor]]  # [rows, dim] of each text
    theirs: dict[Role, list[torch.Tensor]]

    def reference_ids(self, role: Role) -> list[list[int]]:
        features = self.reference.preprocess(TEXTS[role], prompt=self.reference.prompts.get(role), task=role)
        is_there = features["attention_mask"].bool()
        if "query_expansion_positions" in features:
            is_there |= features["query_expansion_positions"].bool()
        return [ids[mask].tolist() for ids, mask in zip(features["input_ids"], is_there, strict=True)]


def load_pair(settings: ModelSettings, reference: Any) -> Pair:
    model = load_model(settings)
    encoder = Encoder.load(model, "cpu", settings.dtype, torch.get_num_threads())
    tokenizer = StatelessTokenizer(model.spec, model.tokenizer_json)
    pair = Pair(model, reference, {}, {}, {})
    specs: dict[Role, TextSpec] = {"query": model.spec.query, "document": model.spec.document}
    for role, spec in specs.items():
        tokens = tokenizer.encode(role, TEXTS[role], spec.max_length, True, TEXTS[role])
        roles = [role] * len(TEXTS[role])
        pair.packed[role] = PackedTexts(roles, tokens.token_ids, list(tokens.lengths), list(tokens.expansion))
        encoded = encoder.encode(pair.packed[role])
        pair.ours[role] = list(torch.split(encoded.embeddings, encoded.rows))
    pair.theirs = {"query": reference.encode_query(QUERIES), "document": reference.encode_document(DOCUMENTS)}
    return pair


def embedded(_: Path) -> Pair:
    path = str(load_model(ModelSettings()).directory)
    modules = [
        Transformer(path, max_seq_length=512),
        MultiVectorMask(skiplist_words=list(string.punctuation)),
        Normalize(module_input_name="token_embeddings"),
    ]
    return load_pair(ModelSettings(), MultiVectorEncoder(modules=modules, device="cpu"))


def from_directory(write: Callable[..., Path], **changes: Any) -> Callable[[Path], Pair]:
    def load(tmp: Path) -> Pair:
        directory = write(tmp / "model", **changes)
        return load_pair(ModelSettings(model=str(directory)), MultiVectorEncoder(str(directory), device="cpu"))

    return load


def rotary(write: Callable[..., Path] = write_xlmr, **changes: Any) -> Callable[[Path], Pair]:
    """jina-colbert-v2's own code is not run, here neither: transformers has the same encoder under other names."""

    def load(tmp: Path) -> Pair:
        directory = write(tmp / "model", is_rotary=True, **changes)
        reference = MultiVectorEncoder(str(write(tmp / "base", **changes)), device="cpu")
        reference[0].model = jina_encoder(directory)
        return load_pair(ModelSettings(model=str(directory)), reference)

    return load


def jina_encoder(directory: Path) -> Any:
    config = json.loads((directory / "config.json").read_text())
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    model: Any = JinaEmbeddingsV3Model(
        JinaEmbeddingsV3Config(
            **{name: config[name] for name in names},
            max_position_embeddings=config["max_position_embeddings"],
            layer_norm_eps=config["layer_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": ROTARY_BASE},
        ),
        add_pooling_layer=False,
    )
    model.eval()
    weights = xlmr_weights(config["vocab_size"])
    renamed = {}
    for name, tensor in weights.items():
        for ours, theirs in JINA_NAMES:
            name = re.sub(ours, theirs, name)
        if "position" not in name:
            renamed[name] = tensor
    model.load_state_dict(renamed)
    return model


JINA_NAMES = (
    (r"^encoder\.layer\.", "layers."),
    (r"attention\.self\.(q|k|v)[a-z]+", r"self_attn.\1_proj"),
    (r"attention\.output\.dense", "self_attn.o_proj"),
    (r"attention\.output\.LayerNorm", "post_attention_layernorm"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"(layers\.\d+)\.output\.dense", r"\1.mlp.fc2"),
    (r"(layers\.\d+)\.output\.LayerNorm", r"\1.post_mlp_layernorm"),
)


def write_native(
    directory: Path,
    base: Callable[[Path], Path] = write_stanford,
    expansion: dict[str, Any] | None = None,
    prompts: dict[str, str] | None = None,
    skiplist_tasks: list[str] | None = None,
    similarity: str = "maxsim",
    **lengths: Any,
) -> Path:
    """The reference's own format, saved by the reference."""
    modules = [
        Transformer(str(base(directory.with_name("base"))), query_expansion=expansion, **lengths),
        Dense(HIDDEN, 8, bias=True, activation_function=torch.nn.GELU(), module_input_name="token_embeddings"),
        MultiVectorMask(skiplist_words=list(string.punctuation), skiplist_tasks=skiplist_tasks),
        Normalize(module_input_name="token_embeddings"),
    ]
    model = MultiVectorEncoder(modules=modules, prompts=prompts, similarity_fn_name=similarity, device="cpu")
    model.save_pretrained(str(directory))
    return directory


MODELS: dict[str, Callable[[Path], Pair]] = {
    "embedded": embedded,
    "stanford": from_directory(write_stanford),
    "stanford-attends": from_directory(write_stanford, attend_to_mask_tokens=True),
    "stanford-punctuation-kept": from_directory(write_stanford, mask_punctuation=False, dim=4),
    "stanford-unprefixed": from_directory(write_stanford, prefix=""),
    "pylate": from_directory(write_pylate),
    "pylate-attends": from_directory(write_pylate, attend_to_expansion_tokens=True),
    "pylate-two-dense": from_directory(write_pylate, dims=(16, 8)),
    "pylate-bias-and-tanh": from_directory(write_pylate, dims=(16, 8), bias=True),
    "pylate-no-skiplist": from_directory(write_pylate, skiplist_words=[]),
    "pylate-default-skiplist": from_directory(write_pylate, skiplist_words=None),
    "pylate-no-expansion": from_directory(write_pylate, do_query_expansion=False, query_length=12),
    "pylate-stanford-markers": from_directory(write_pylate, query_prefix="[unused0]", document_prefix="[unused1]"),
    "pylate-prompts": from_directory(write_pylate, prompts={"query": "[Q] find: ", "document": "passage: "}),
    "xlmr-stanford": from_directory(write_xlmr),
    "xlmr-stanford-attends": from_directory(write_xlmr, attend_to_mask_tokens=True),
    "xlmr-stanford-own-class": from_directory(write_xlmr, has_own_class=True),
    "xlmr-pylate": from_directory(write_xlmr_pylate),
    "xlmr-pylate-two-dense-no-skiplist": from_directory(write_xlmr_pylate, dims=(16, 8), skiplist_words=[]),
    "xlmr-pylate-prompts": from_directory(
        write_xlmr_pylate, prompts={"query": "[QueryMarker]find: ", "document": "passage: "}
    ),
    "xlmr-pylate-marker-and-blank": from_directory(
        write_xlmr_pylate, query_prefix="[QueryMarker] ", document_prefix="[DocumentMarker] "
    ),
    "xlmr-native-fixed": from_directory(
        write_native, base=write_xlmr, expansion={"strategy": "fixed", "length": 12}, prompts={"query": "find: "}
    ),
    "xlmr-native-min": from_directory(
        write_native, base=write_xlmr, expansion={"strategy": "min", "length": 12, "attend": True, "token": "<pad>"}
    ),
    "jina": rotary(),
    "jina-attends": rotary(attend_to_mask_tokens=True),
    "jina-punctuation-kept": rotary(mask_punctuation=False),
    "jina-own-class": rotary(has_own_class=True, attend_to_mask_tokens=True),
    "jina-pylate": rotary(write_xlmr_pylate, dims=(16, 8), attend_to_expansion_tokens=True),
    "modern": from_directory(write_modern),
    "modern-attends": from_directory(write_modern, attend_to_expansion_tokens=True),
    # a short query leaves expansion rows that see nobody in the local layers
    "modern-long-expansion": from_directory(write_modern, query_length=40),
    "modern-no-expansion": from_directory(write_modern, do_query_expansion=False, document_length=80),
    "modern-two-dense": from_directory(write_modern, dims=(16, 8), skiplist_words=None),
    "modern-newer-config": from_directory(
        write_modern,
        config={
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 50_000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
            },
        },
    ),
    "modern-prompts": from_directory(write_modern, prompts={"query": "[Q] find: ", "document": "passage:\n"}),
    "modern-bare-markers": from_directory(write_modern_bare_markers),
    "modern-stanford": from_directory(write_modern_stanford),
    "modern-stanford-attends": from_directory(write_modern_stanford, attend_to_mask_tokens=True, query_maxlen=40),
    "modern-native-markers": from_directory(
        write_native,
        base=write_modern,
        expansion={"strategy": "fixed", "length": 12},
        prompts={"query": "[Q] ", "document": "[D] "},
    ),
    "modern-native-min": from_directory(
        write_native,
        base=write_modern,
        expansion={"strategy": "min", "length": 24},
        prompts={"query": "find: ", "document": "text: "},
    ),
    "native": from_directory(write_native, document_length=30),
    "native-fixed": from_directory(write_native, expansion={"strategy": "fixed", "length": 12}),
    "native-min": from_directory(
        write_native, expansion={"strategy": "min", "length": 12, "attend": True, "token": "[PAD]"}, query_length=20
    ),
    "native-text-prompts": from_directory(write_native, prompts={"query": "find: ", "document": "text: "}),
    "native-queries-skip": from_directory(write_native, skiplist_tasks=["query"], similarity="meanmaxsim"),
}


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    threads = torch.get_num_threads()
    yield MODELS[request.param](tmp_path_factory.mktemp(request.param))
    torch.set_num_threads(threads)


@pytest.mark.parametrize("role", ["query", "document"])
def test_ids_are_the_references(pair: Pair, role: Role) -> None:
    packed = pair.packed[role]
    ids = [part.tolist() for part in torch.split(torch.tensor(packed.token_ids), list(packed.lengths))]
    assert ids == pair.reference_ids(role)


@pytest.mark.parametrize("role", ["query", "document"])
def test_embeddings_are_the_references(pair: Pair, role: Role) -> None:
    assert [rows.shape for rows in pair.ours[role]] == [rows.shape for rows in pair.theirs[role]]
    for mine, theirs in zip(pair.ours[role], pair.theirs[role], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("role", ["query", "document"])
def test_each_row_is_known_by_its_token_and_its_place(pair: Pair, role: Role) -> None:
    """What explains a score, for every format: markers, prompts, expansion and skipped tokens shift neither."""
    tokenizer = StatelessTokenizer(pair.model.spec, pair.model.tokenizer_json)
    limit = (pair.model.spec.query if role == "query" else pair.model.spec.document).max_length
    words = 0
    for text, rows, located in zip(
        TEXTS[role], pair.ours[role], tokenizer.locate(role, TEXTS[role], limit), strict=True
    ):
        assert len(located.tokens) == len(rows)
        for row, token in enumerate(located.tokens):
            word, span = token.removeprefix("##").strip("\u2581\u0120"), located.span(row)
            if span is not None and re.fullmatch("[A-Za-z0-9]+", word):
                piece = unicodedata.normalize("NFKD", text[span[0] : span[1]])
                assert re.sub("[\u0300-\u036f]", "", piece).lower() == word.lower()
                words += 1
    assert words > 5


@pytest.mark.parametrize("role", ["query", "document"])
def test_the_plain_encoder_s_embeddings_are_the_references(pair: Pair, role: Role) -> None:
    """What the self-check compares the fast path with is itself right."""
    plain, packed = PlainEncoder(pair.model), pair.packed[role]
    for theirs, ids, extra in zip(
        pair.theirs[role], torch.split(torch.tensor(packed.token_ids), list(packed.lengths)), packed.expansion,
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(plain.encode(role, ids.tolist(), extra), theirs, atol=1e-4, rtol=0)


def test_self_check_passes(pair: Pair) -> None:
    result = run_self_check(pair.model, Encoder.load(pair.model, "cpu", "auto", torch.get_num_threads()))
    assert result.pairs == 24
    assert result.largest_difference <= result.tolerance


def test_scores_are_the_references(pair: Pair) -> None:
    scores = torch.stack([torch.stack([maxsim(q, d) for d in pair.ours["document"]]) for q in pair.ours["query"]])
    if pair.model.spec.similarity == "meanmaxsim":
        scores /= torch.tensor([[len(q)] for q in pair.ours["query"]])
    expected = pair.reference.similarity(pair.theirs["query"], pair.theirs["document"])
    torch.testing.assert_close(scores, expected, atol=1e-3, rtol=0)


def test_dim_is_the_width_of_the_embeddings(pair: Pair) -> None:
    assert {rows.shape[1] for rows in pair.ours["query"]} == {pair.model.spec.dim}


def maxsim(query: torch.Tensor, document: torch.Tensor) -> torch.Tensor:
    return (query @ document.T).max(dim=1).values.sum()
