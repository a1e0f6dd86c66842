"""What is understood of a checkpoint before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from engine.model_spec import LoadedModel, ModelError, load_model
from ipc.messages import TextSpec
from ipc.settings import ModelSettings
from tests.engine.checkpoints import POSITIONS, VOCAB_SIZE, change_json, write_pylate, write_stanford

ROOT = Path(__file__).parents[2]
MASK = 103
PUNCTUATION = 32  # all of string.punctuation are single tokens of this vocabulary


def load(directory: Path, query_length: int | None = None, document_length: int | None = None) -> LoadedModel:
    return load_model(ModelSettings(str(directory), query_length, document_length))


def test_embedded_default() -> None:
    model = load_model(ModelSettings())
    assert (model.spec.name, model.spec.dim) == ("all-MiniLM-L6-v2", 384)
    assert model.spec.query == TextSpec(512)
    assert model.spec.document.max_length == 512
    assert len(model.spec.document.skip_token_ids) == PUNCTUATION
    assert (model.max_positions, model.vocab_size, list(model.projections)) == (512, 30_522, [])


def test_stanford_settings(tmp_path: Path) -> None:
    spec = load(write_stanford(tmp_path / "colbert")).spec
    assert (spec.name, spec.dim, spec.similarity) == ("colbert", 8, "maxsim")
    assert spec.query == TextSpec(16, [1], expansion="fixed", expansion_length=16, expansion_token_id=MASK)
    assert (spec.document.max_length, spec.document.marker_ids, spec.document.expansion) == (40, [2], "none")
    assert len(spec.document.skip_token_ids) == PUNCTUATION


def test_stanford_defaults_are_those_of_its_own_code(tmp_path: Path) -> None:
    directory = write_stanford(tmp_path / "model")
    change_json(directory / "config.json", max_position_embeddings=512)
    names = ("query_token_id", "doc_token_id", "query_maxlen", "doc_maxlen", "dim", "mask_punctuation", "similarity")
    change_json(directory / "artifact.metadata", **dict.fromkeys(names))
    spec = load(directory).spec
    assert (spec.query.max_length, spec.query.marker_ids, spec.dim) == (32, [1], 8)
    assert (spec.document.max_length, spec.document.marker_ids) == (220, [2])
    assert len(spec.document.skip_token_ids) == PUNCTUATION


def test_pylate_settings(tmp_path: Path) -> None:
    spec = load(write_pylate(tmp_path / "model", do_query_expansion=False, similarity_fn_name="MeanMaxSim")).spec
    assert spec.query == TextSpec(16, [VOCAB_SIZE - 2])
    assert (spec.document.max_length, spec.document.marker_ids) == (40, [VOCAB_SIZE - 1])
    assert spec.document.skip_token_ids == [999, 1010, 1012, 1029]  # ! , . ?
    assert spec.similarity == "meanmaxsim"


def test_tokenizer_is_without_state(tmp_path: Path) -> None:
    directory = write_stanford(tmp_path / "model")
    assert json.loads((directory / "tokenizer.json").read_text())["truncation"] is not None
    tokenizer = Tokenizer.from_buffer(load(directory).tokenizer_json)
    assert tokenizer.truncation is None
    assert tokenizer.padding is None


def test_do_lower_case_of_sentence_transformers_is_heeded(tmp_path: Path) -> None:
    directory = write_pylate(tmp_path / "model")
    change_json(directory / "sentence_bert_config.json", do_lower_case=True)
    content = json.loads((directory / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (directory / "tokenizer.json").write_text(json.dumps(content))
    change_json(directory / "tokenizer_config.json", do_lower_case=False)
    tokenizer = Tokenizer.from_buffer(load(directory).tokenizer_json)
    assert tokenizer.encode("HELLO", add_special_tokens=False).tokens == ["hello"]


def test_own_lengths_replace_the_checkpoints(tmp_path: Path) -> None:
    spec = load(write_stanford(tmp_path / "model"), query_length=20, document_length=POSITIONS).spec
    assert (spec.query.max_length, spec.query.expansion_length, spec.document.max_length) == (20, 20, POSITIONS)


@pytest.mark.parametrize(
    ("name", "length"), [("query_length", POSITIONS + 1), ("query_length", 3), ("document_length", POSITIONS + 1)]
)
def test_own_length_out_of_range_names_the_options(tmp_path: Path, name: str, length: int) -> None:
    role = name.removesuffix("_length")
    expected = f"--query-length, --document-length: {role} length {length}, expected 4 to {POSITIONS}"
    with pytest.raises(ModelError, match=expected):
        load(write_stanford(tmp_path / "model"), **{name: length})


# --- the fingerprint --------------------------------------------------------------------------------------------------


def test_fingerprint_is_the_same_for_a_copy(tmp_path: Path) -> None:
    one, other = (load(write_stanford(tmp_path / place / "model")).fingerprint for place in ("here", "there"))
    assert one == other
    assert len(one) == 16


def change_a_weight(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors["linear.weight"][0, 0] += 1
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda at: change_json(at / "artifact.metadata", doc_maxlen=41), id="a-length"),
        pytest.param(lambda at: change_json(at / "config.json", layer_norm_eps=1e-6), id="the-encoders-config"),
        pytest.param(lambda at: change_json(at / "tokenizer.json", normalizer=None), id="the-tokenizer"),
        pytest.param(change_a_weight, id="one-weight"),
    ],
)
def test_fingerprint_changes_with(tmp_path: Path, change: Callable[[Path], None]) -> None:
    directory = write_stanford(tmp_path / "model")
    before = load(directory).fingerprint
    change(directory)
    assert load(directory).fingerprint != before


def test_fingerprint_changes_with_any_one_tensor(tmp_path: Path) -> None:
    """Of a file so large that samples spread over it alone would miss most of them."""
    directory = write_stanford(tmp_path / "model")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "another": torch.zeros(128 * 2**20, dtype=torch.uint8)}, path)
    header = load(directory).weights
    seen = {load(directory).fingerprint}
    changed = list(tensors)[::4]
    for name in changed:
        with path.open("r+b") as file:  # in place: one byte at the tensor's start
            file.seek(header.start_of(name))
            (byte,) = file.read(1)
            file.seek(header.start_of(name))
            file.write(bytes([byte ^ 1]))
        seen.add(load(directory).fingerprint)
    assert len(seen) == len(changed) + 1


def test_fingerprint_changes_with_own_settings(tmp_path: Path) -> None:
    directory = write_stanford(tmp_path / "model")
    settings = [
        ModelSettings(str(directory)),
        ModelSettings(str(directory), document_length=30),
        ModelSettings(str(directory), dtype="float16"),
    ]
    assert len({load_model(each).fingerprint for each in settings}) == len(settings)


# --- what it imports -----------------------------------------------------------------------------------------------


def test_understanding_a_model_imports_neither_torch_nor_transformers() -> None:
    code = """
import sys
from engine.model_spec import load_model
from ipc.settings import ModelSettings
load_model(ModelSettings())
print([name for name in ("torch", "numpy", "transformers", "huggingface_hub", "safetensors") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_encoder_does_not_import_transformers() -> None:
    code = "import sys; import engine.encoder; print('transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"
