"""docs/plain-encoding.md: what goes wrong when a ColBERT model's texts are encoded like any other text.

    python -m benchmarks.plain_encoding > docs/plain-encoding.md

A checkpoint in Stanford's format is made of the embedded model's weights and a fixed projection, because no trained
ColBERT model comes with a package. Its texts are encoded as its files say, and with each of their rules left out.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from engine.encoder import Encoder
from engine.find_model import find_model
from engine.model_spec import LoadedModel, load_model
from engine.packing import PackedTexts
from frontend.tokenizer import StatelessTokenizer
from ipc.messages import ModelSpec, Role, TextSpec
from ipc.settings import ModelSettings

QUERY = "Which animal has three hearts?"
DOCUMENTS = [
    "An octopus has three hearts, and its blood is blue.",
    "A triple heart is found in octopuses, squids and cuttlefish; two of the hearts serve the gills.",
    "Squid and octopus: both have three hearts.",
    "Animals have one heart.",
]
DIM, WIDTH = 128, 384
METADATA = {
    "query_token_id": "[unused0]",
    "doc_token_id": "[unused1]",
    "query_maxlen": 32,
    "doc_maxlen": 180,
    "dim": DIM,
    "mask_punctuation": True,
    "attend_to_mask_tokens": False,
    "similarity": "cosine",
}


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to encode the texts."""

    name: str
    model: LoadedModel


def main() -> None:
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as directory:
        sys.stdout.write(page(Path(directory)))


def page(directory: Path) -> str:
    """The whole page, in markdown."""
    model = load_model(ModelSettings(model=str(write_checkpoint(directory / "model"))))
    ways = [
        Way("as the model's files say", model),
        Way("without the markers", with_spec(model, leave_out_markers)),
        Way("without query expansion", with_spec(model, leave_out_expansion)),
        Way("punctuation scored too", with_spec(model, leave_out_skip_list)),
        Way("without the projection", without_projection(model)),
        Way("plain: none of the four, but the projection", with_spec(model, leave_out_all)),
    ]
    rows = [row(way.name, *scores(way.model)) for way in ways]
    head = ["encoded", "query rows", "rows of the documents", *(f"document {n}" for n in range(1, 5)), "order"]
    listed = "\n".join(f"{number}. {document}" for number, document in enumerate(DOCUMENTS, 1))
    return "\n".join(
        [
            "# How plain encoding goes wrong",
            "",
            "A ColBERT model is trained on more than its text: a marker says whether a text is a query or a document,",
            "short queries are filled up with `[MASK]` rows that are scored, punctuation of documents is not. A server",
            "that encodes texts like any embedding model's answers without an error, with other scores, often in",
            "another order. vLLM does so (no marker, expansion, lengths or skip list); TEI and Infinity have no",
            "projection either. This page is the output of `python -m benchmarks.plain_encoding`.",
            "",
            "The model has Stanford's format, the embedded model's weights and a projection that was not trained: the",
            "numbers show that results differ, not how good they are, and the example was chosen to show it.",
            "",
            f"Query: {QUERY}",
            "",
            listed,
            "",
            "## What the texts become",
            "",
            *(line for role in ("query", "document") for line in tokens_of(model, role)),
            "## What that does to the scores",
            "",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
            *rows,
            "",
            "The first line equals sentence-transformers' MultiVectorEncoder on the same files",
            "(`tests/test_plain_encoding.py`). How each format's rules are read: [models](models.md). What becomes of",
            "your model's texts: `maxsimd check MODEL`.",
            "",
        ]
    )


def write_checkpoint(directory: Path) -> Path:
    """The embedded model's files, a projection, and the metadata of Stanford's format."""
    source = find_model(None)
    directory.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)
    config = json.loads((source / "config.json").read_text("utf-8"))
    (directory / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    (directory / "artifact.metadata").write_text(json.dumps(METADATA))
    weights = {f"bert.{name}": tensor for name, tensor in load_file(source / "model.safetensors").items()}
    random = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projection = torch.linalg.qr(random)[0][:DIM].float().contiguous()  # keeps angles as well as a projection can
    save_file({**weights, "linear.weight": projection}, directory / "model.safetensors")
    return directory


# --- ways to encode ---------------------------------------------------------------------------------------------------


def with_spec(model: LoadedModel, change: Any) -> LoadedModel:
    spec = msgspec.structs.replace(model.spec, query=change(model.spec.query), document=change(model.spec.document))
    return dataclasses.replace(model, spec=spec)


def leave_out_markers(text: TextSpec) -> TextSpec:
    return msgspec.structs.replace(text, marker_ids=[])


def leave_out_expansion(text: TextSpec) -> TextSpec:
    return msgspec.structs.replace(text, expansion="none", expansion_length=0)


def leave_out_skip_list(text: TextSpec) -> TextSpec:
    return msgspec.structs.replace(text, skip_token_ids=[])


def leave_out_all(text: TextSpec) -> TextSpec:
    return leave_out_skip_list(leave_out_expansion(leave_out_markers(text)))


def without_projection(model: LoadedModel) -> LoadedModel:
    return dataclasses.replace(model, projections=[], spec=msgspec.structs.replace(model.spec, dim=WIDTH))


# --- what comes of them -----------------------------------------------------------------------------------------------


def scores(model: LoadedModel) -> tuple[list[float], int, list[int]]:
    """MaxSim of the query with each document, the query's rows, and each document's."""
    encoder = Encoder.load(model, "cpu", "float32", torch.get_num_threads())
    (query,) = encode(encoder, model, "query", [QUERY])
    documents = encode(encoder, model, "document", DOCUMENTS)
    return (
        [float((query @ document.T).amax(1).sum()) for document in documents],
        len(query),
        [len(document) for document in documents],
    )


def encode(encoder: Encoder, model: LoadedModel, role: Role, texts: Sequence[str]) -> list[torch.Tensor]:
    ids = tokenize(model.spec, model.tokenizer_json, role, texts)
    packed = PackedTexts([role] * len(texts), ids.token_ids, list(ids.lengths), list(ids.expansion))
    encoded = encoder.encode(packed)
    return list(torch.split(encoded.embeddings, encoded.rows))


def tokenize(spec: ModelSpec, tokenizer_json: bytes, role: Role, texts: Sequence[str]) -> Any:
    limit = (spec.query if role == "query" else spec.document).max_length
    return StatelessTokenizer(spec, tokenizer_json).encode(role, texts, limit, True, texts)


def tokens_of(model: LoadedModel, role: Role) -> list[str]:
    """The first text of a role, as its model wants it and plain."""
    text = QUERY if role == "query" else DOCUMENTS[0]
    lines = [f"The {'query' if role == 'query' else 'first document'}, as the model's files say, and plain:", ""]
    for way in (model, with_spec(model, leave_out_all)):
        ids = tokenize(way.spec, way.tokenizer_json, role, [text]).token_ids
        tokenizer = Tokenizer.from_buffer(way.tokenizer_json)
        skipped = set((way.spec.query if role == "query" else way.spec.document).skip_token_ids)
        tokens = [tokenizer.id_to_token(token_id) or "" for token_id in ids]
        shown = [f"({token})" if token_id in skipped else token for token, token_id in zip(tokens, ids, strict=True)]
        lines.append("    " + fold(shown))
    return [*lines, ""]


def fold(tokens: Sequence[str]) -> str:
    """The same token many times over as one."""
    end = len(tokens)
    while end > 1 and tokens[end - 2] == tokens[-1]:
        end -= 1
    same = len(tokens) - end + 1
    return " ".join(tokens if same < 3 else [*tokens[: end - 1], f"{tokens[-1]} x {same}"])


def row(name: str, values: Sequence[float], query_rows: int, document_rows: Sequence[int]) -> str:
    order = sorted(range(len(values)), key=lambda number: -values[number])
    cells = [
        name,
        str(query_rows),
        ", ".join(map(str, document_rows)),
        *(f"{value:.2f}" for value in values),
        ", ".join(str(number + 1) for number in order),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
