"""Every family's embeddings on CUDA are those of the CPU, in every number format."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.encoder import EncodedTexts, Encoder
from engine.model_spec import LoadedModel, load_model
from engine.packing import PackedTexts
from ipc.messages import Role
from ipc.settings import ModelSettings
from tests.engine.checkpoints import change_json, write_modern, write_stanford, write_xlmr, write_xlmr_pylate

pytestmark = pytest.mark.gpu

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "bert": lambda path: write_stanford(path),
    "xlmr": lambda path: write_xlmr(path),
    "xlmr-two-dense": lambda path: write_xlmr_pylate(path, dims=(16, 8)),
    "jina": lambda path: write_xlmr(path, is_rotary=True),
    "jina-attends": lambda path: write_xlmr(path, is_rotary=True, attend_to_mask_tokens=True),
    "modern": lambda path: write_modern(path),
    "modern-attends": lambda path: write_modern(path, attend_to_expansion_tokens=True),
}
# cosine: the random weights of these checkpoints make rounding count for more than that of a trained model does
LEAST_COSINE = {"float32": 0.99999, "float16": 0.999, "bfloat16": 0.95}
# ids below 90 are in every family's vocabulary; 1 is XLM-R's padding token
QUERIES = [[0, 5, 1, 1, 7, 2], [0, *range(10, 40), 2]]
DOCUMENTS = [[0, 3, 2], [0, *range(5, 60), 1, *range(60, 88), 2]]
HEAD_DIMS = (32, 64, 128)  # of the own kernels
EXPANSION = 30  # longer than ModernBERT's windows reach: its last rows see nobody there


def load_family(family: str, path: Path, heads: int) -> LoadedModel:
    """A checkpoint of a family; with one head it is as wide as the own kernels' least, with four it is not."""
    directory = FAMILIES[family](path)
    change_json(directory / "config.json", num_attention_heads=heads)
    return load_model(ModelSettings(model=str(directory)))


def texts() -> PackedTexts:
    queries = [ids + [4] * EXPANSION for ids in QUERIES]
    ids = [*queries, *DOCUMENTS]
    roles: list[Role] = ["query", "query", "document", "document"]
    flat = array("i", [token_id for text in ids for token_id in text])
    return PackedTexts(roles, flat, [len(text) for text in ids], [EXPANSION, EXPANSION, 0, 0])


@pytest.mark.parametrize("heads", [1, 4], ids=["own-kernels", "torchs-kernels"])
@pytest.mark.parametrize("dtype", LEAST_COSINE)
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_those_of_the_cpu(tmp_path: Path, family: str, dtype: str, heads: int) -> None:
    model = load_family(family, tmp_path / "model", heads)
    assert (model.config.head_dim in HEAD_DIMS) == (heads == 1)
    expected = Encoder.load(model, "cpu", "float32", torch.get_num_threads()).encode(texts())
    ours = Encoder.load(model, "cuda", dtype, torch.get_num_threads()).encode(texts())
    assert ours.rows == expected.rows
    same_dtype = Encoder.load(model, "cpu", dtype, torch.get_num_threads()).encode(texts())
    rounding = least_cosine(same_dtype, expected)  # of the dtype itself: down to 0.90 for bfloat16
    assert least_cosine(ours, expected) >= min(LEAST_COSINE[dtype], rounding - 0.02)


def least_cosine(ours: EncodedTexts, theirs: EncodedTexts) -> float:
    return float((ours.embeddings.cpu() * theirs.embeddings).sum(1).min())
