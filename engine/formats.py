"""Checkpoint formats: what each one's files say of markers, lengths, query expansion, skipped words and projections.

Three of them, all as the reference (sentence-transformers' MultiVectorEncoder) reads them:
Stanford ColBERT (`artifact.metadata`), PyLate (`query_prefix` and others in `config_sentence_transformers.json`) and
MultiVectorEncoder itself (settings beside each module). The embedded default has no file that says them; it is built
here. What cannot be served exactly is refused with the file and the key: a checkpoint that half works is worse than one
that does not.
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import msgspec

from engine.encoder_config import EncoderConfig, read_encoder_config
from engine.model_files import JsonFile, ModelError, ModelFiles, WeightsFile
from engine.model_tokenizer import NUM_SPECIAL_TOKENS, ModelTokenizer
from ipc.messages import ModelSpec, TextSpec

Activation = Literal["identity", "tanh", "relu", "gelu"]
_ACTIVATIONS: dict[str, Activation] = {"Identity": "identity", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu"}

EMBEDDED_NAME = "all-MiniLM-L6-v2"
EMBEDDED_MAX_LENGTH = 512
PUNCTUATION = list(string.punctuation)
SETTINGS = "config_sentence_transformers.json"
STANFORD_DIM = 128
QUERY_LENGTH, PYLATE_DOCUMENT_LENGTH, STANFORD_DOCUMENT_LENGTH = 32, 180, 220  # the formats' own defaults


@dataclass(frozen=True, slots=True)
class Projection:
    """A Dense module after the encoder: activation(x @ weight.T + bias)."""

    file: WeightsFile
    weight: str  # name of the [out_features, in_features] matrix
    bias: str | None  # name of the [out_features] vector
    in_features: int
    out_features: int
    activation: Activation = "identity"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that has been understood; its weights have not been read."""

    spec: ModelSpec
    config: EncoderConfig
    tokenizer: ModelTokenizer
    weights: WeightsFile
    projections: list[Projection]


def read_checkpoint(files: ModelFiles, name: str | None) -> Checkpoint:
    """What a directory holds.

    Args:
        name: for people. None: it is the embedded default, which alone may do without a projection.

    Raises:
        ModelError: it is no late-interaction model, or cannot be served exactly.
    """
    if name is None:
        return _read_embedded(files)
    settings = files.read_json_if_there(SETTINGS)
    has_modules = files.has("modules.json")
    if has_modules and settings.values.get("model_type") == "MultiVectorEncoder":
        return _read_native(files, name, settings)
    if has_modules and (settings.values.get("model_type") == "ColBERT" or "query_prefix" in settings):
        return _read_pylate(files, name, settings)
    if files.has("artifact.metadata"):
        return _read_stanford(files, name)
    files.read_json("config.json")
    raise ModelError(
        f"{files.directory}: no ColBERT model: neither artifact.metadata nor a {SETTINGS} with a query_prefix or of a "
        "MultiVectorEncoder; a plain encoder has no trained projection to token embeddings"
    )


# --- the embedded default -------------------------------------------------------------------------------------------


def _read_embedded(files: ModelFiles) -> Checkpoint:
    """all-MiniLM-L6-v2's normalised token embeddings, punctuation skipped in documents, as

    MultiVectorEncoder(modules=[Transformer(path, max_seq_length=512),
                                MultiVectorMask(skiplist_words=list(string.punctuation)),
                                Normalize(module_input_name="token_embeddings")])
    """
    config = read_encoder_config(files)
    tokenizer = ModelTokenizer(files)
    document = TextSpec(EMBEDDED_MAX_LENGTH, skip_token_ids=tokenizer.known_ids(PUNCTUATION))
    spec = ModelSpec(
        EMBEDDED_NAME, config.hidden_size, TextSpec(EMBEDDED_MAX_LENGTH), document, format="embedded default"
    )
    return Checkpoint(spec, config, tokenizer, files.read_weights(), [])


# --- Stanford ColBERT -----------------------------------------------------------------------------------------------


def _read_stanford(files: ModelFiles, name: str) -> Checkpoint:
    config = read_encoder_config(files)
    metadata = files.read_json("artifact.metadata")
    tokenizer = ModelTokenizer(files)
    weights = files.read_weights()
    projection = _read_projection(weights, config.hidden_size, metadata.get_int("dim", STANFORD_DIM))
    dim = metadata.get_int("dim", projection.out_features)
    if dim != projection.out_features:
        raise metadata.error("dim", f"{projection.out_features}, which is what linear.weight in {weights.path} makes")
    if metadata.get_str("similarity", "cosine") != "cosine":
        raise metadata.error("similarity", "'cosine'")
    query_length = metadata.get_int("query_maxlen", QUERY_LENGTH)
    # the reference's prompt is the marker and a blank
    query = _text_spec(tokenizer, metadata, "query_token_id", "[unused0]", query_length, " ")
    query = _expand(query, tokenizer, attend=metadata.get_bool("attend_to_mask_tokens", False))
    length = metadata.get_int("doc_maxlen", STANFORD_DOCUMENT_LENGTH)
    document = _text_spec(tokenizer, metadata, "doc_token_id", "[unused1]", length, " ")
    if metadata.get_bool("mask_punctuation", True):
        document = _skip(document, tokenizer, PUNCTUATION)
    spec = ModelSpec(name, dim, query, document, format="Stanford ColBERT")
    return Checkpoint(spec, config, tokenizer, weights, [projection])


# --- PyLate ---------------------------------------------------------------------------------------------------------


def _read_pylate(files: ModelFiles, name: str, settings: JsonFile) -> Checkpoint:
    modules = _read_modules(files)
    tokenizer = modules.tokenizer
    query_length = settings.get_int("query_length", QUERY_LENGTH)
    query = _text_spec(tokenizer, settings, "query_prefix", "[Q] ", query_length)
    if settings.get_bool("do_query_expansion", True):
        query = _expand(query, tokenizer, attend=settings.get_bool("attend_to_expansion_tokens", False))
    document_length = settings.get_int("document_length", PYLATE_DOCUMENT_LENGTH)
    document = _text_spec(tokenizer, settings, "document_prefix", "[D] ", document_length)
    document = _skip(document, tokenizer, settings.get_words("skiplist_words", PUNCTUATION))
    prompts = settings.get_object("prompts")
    query = _add_prompt(query, tokenizer, settings, prompts, "query", "query_prefix")
    document = _add_prompt(document, tokenizer, settings, prompts, "document", "document_prefix")
    spec = ModelSpec(name, modules.dim, query, document, _similarity(settings), "PyLate")
    return Checkpoint(spec, modules.config, tokenizer, modules.weights, modules.projections)


def _add_prompt(
    spec: TextSpec, tokenizer: ModelTokenizer, settings: JsonFile, prompts: JsonFile, role: str, prefix_key: str
) -> TextSpec:
    """A saved prompt stands after the marker; it may hold the marker itself already."""
    prompt = prompts.get_str(role, "").removeprefix(settings.get_str(prefix_key, ""))
    return _add_text(spec, tokenizer, prompt, prompts, f"prompts.{role}")


# --- MultiVectorEncoder of sentence-transformers 6 --------------------------------------------------------------------


def _read_native(files: ModelFiles, name: str, settings: JsonFile) -> Checkpoint:
    modules = _read_modules(files)
    if modules.mask is None or not modules.normalizes:
        path = files.directory / "modules.json"
        raise ModelError(f"{path}: expected Transformer, Dense, MultiVectorMask and Normalize of token_embeddings")
    transformer, tokenizer = modules.transformer, modules.tokenizer
    limit = transformer.get_int("max_seq_length", tokenizer.model_max_length(modules.config.max_tokens))
    limit = min(limit, modules.config.max_tokens)
    query = TextSpec(transformer.get_int("query_length", limit))
    document = TextSpec(transformer.get_int("document_length", limit))
    expansion = transformer.get_object("query_expansion")
    if expansion.values:
        query = _expand_native(query, tokenizer, expansion, "query_length" in transformer)
    prompts = settings.get_object("prompts")
    query, document = (
        _add_text(spec, tokenizer, prompts.get_str(role, ""), prompts, f"prompts.{role}")
        for role, spec in (("query", query), ("document", document))
    )
    words = modules.mask.get_words("skiplist_words", [])
    tasks = modules.mask.values.get("skiplist_tasks") or ["document"]
    query = _skip(query, tokenizer, words) if "query" in tasks else query
    document = _skip(document, tokenizer, words) if "document" in tasks else document
    spec = ModelSpec(name, modules.dim, query, document, _similarity(settings), "MultiVectorEncoder")
    return Checkpoint(spec, modules.config, tokenizer, modules.weights, modules.projections)


def _expand_native(query: TextSpec, tokenizer: ModelTokenizer, expansion: JsonFile, is_cut: bool) -> TextSpec:
    strategy = expansion.get_str("strategy", "")
    if strategy not in ("fixed", "min"):
        raise expansion.error("strategy", "'fixed' or 'min'")
    if "length" not in expansion:
        raise expansion.error("length", "a whole number above 0")
    length = expansion.get_int("length", 0)
    if strategy == "min" and is_cut and query.max_length < length:
        raise expansion.error("length", f"at most query_length, which is {query.max_length}")
    token = expansion.values.get("token")
    return msgspec.structs.replace(
        query,
        max_length=length if strategy == "fixed" else query.max_length,
        expansion="fixed" if strategy == "fixed" else "min",
        expansion_length=length,
        expansion_token_id=tokenizer.mask_id() if token is None else tokenizer.id_of(token, expansion, "token"),
        attend_expansion=expansion.get_bool("attend", False),
    )


# --- modules.json -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules of a sentence-transformers checkpoint."""

    config: EncoderConfig
    tokenizer: ModelTokenizer
    weights: WeightsFile
    transformer: JsonFile  # settings of the Transformer module
    projections: list[Projection]
    mask: JsonFile | None  # settings of MultiVectorMask
    normalizes: bool

    @property
    def dim(self) -> int:
        return self.projections[-1].out_features


def _read_modules(files: ModelFiles) -> Modules:
    """Transformer, one Dense or more, then perhaps MultiVectorMask and Normalize; any other order is refused."""
    entries = files.read_modules("modules.json")
    kinds = [entry.get_str("type", "").rsplit(".", 1)[-1] for entry in entries]
    folders = [_folder_of(entry) for entry in entries]
    count = kinds.count("Dense")
    if kinds[: count + 1] != ["Transformer", *["Dense"] * count] or set(kinds[count + 1 :]) - {
        "MultiVectorMask",
        "Normalize",
    }:
        raise ModelError(
            f"{files.directory / 'modules.json'}: modules {', '.join(kinds)}; expected Transformer, Dense, and then at "
            "most MultiVectorMask and Normalize"
        )
    if not count:
        path = files.directory / "modules.json"
        raise ModelError(f"{path}: no Dense module, so no projection to token embeddings; no ColBERT model")
    config = read_encoder_config(files, folders[0])
    transformer = files.read_json_if_there(_in(folders[0], "sentence_bert_config.json"))
    if "processing_kwargs" in transformer:
        raise transformer.error("processing_kwargs", "nothing: this version does not know it")
    tokenizer = ModelTokenizer(files, folders[0])
    if transformer.get_bool("do_lower_case", False):
        tokenizer.lower_case()
    projections: list[Projection] = []
    width = config.hidden_size
    for folder in folders[1 : count + 1]:
        projections.append(_read_dense(files, folder, width))
        width = projections[-1].out_features
    rest = dict(zip(kinds[count + 1 :], folders[count + 1 :], strict=True))
    return Modules(
        config=config,
        tokenizer=tokenizer,
        weights=files.read_weights(folders[0]),
        transformer=transformer,
        projections=projections,
        mask=_read_mask(files, rest["MultiVectorMask"]) if "MultiVectorMask" in rest else None,
        normalizes="Normalize" in rest and _is_of_tokens(files, rest["Normalize"]),
    )


def _folder_of(entry: JsonFile) -> str:
    """A module's folder inside the checkpoint; never one outside."""
    folder = entry.get_str("path", "")
    if PurePosixPath(folder).is_absolute() or ".." in PurePosixPath(folder).parts:
        raise entry.error("path", "a folder of the checkpoint")
    return folder


def _in(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _read_dense(files: ModelFiles, folder: str, in_features: int) -> Projection:
    settings = files.read_json(_in(folder, "config.json"))
    activation = settings.get_str("activation_function", "").rsplit(".", 1)[-1]
    if activation not in _ACTIVATIONS:  # the references disagree on what a missing one means
        raise settings.error("activation_function", f"one of torch's {', '.join(_ACTIVATIONS)}")
    if settings.get_bool("use_residual", False):
        raise settings.error("use_residual", "false: this version has no residual projections")
    if settings.get_str("module_input_name", "token_embeddings") != "token_embeddings":
        raise settings.error("module_input_name", "'token_embeddings'")
    if settings.get_int("in_features", in_features) != in_features:
        raise settings.error("in_features", f"{in_features}, the width of what comes before")
    has_bias = settings.get_bool("bias", True)
    out_features = settings.get_int("out_features", in_features)
    weights = files.read_weights(folder)
    projection = _read_projection(weights, in_features, out_features, has_bias, _ACTIVATIONS[activation])
    if settings.get_int("out_features", projection.out_features) != projection.out_features:
        raise settings.error("out_features", f"{projection.out_features}, which is what linear.weight makes")
    return projection


def _read_projection(
    file: WeightsFile,
    in_features: int,
    dummy_features: int,
    has_bias: bool = False,
    activation: Activation = "identity",
) -> Projection:
    """linear.weight and linear.bias of a file.

    Args:
        dummy_features: how wide a dummy's is; a real one's shape is the file's.

    Raises:
        ModelError: there is none: a made-up projection would load silently and rank at random.
    """
    bias = "linear.bias" if has_bias else None
    if file.is_dummy:
        return Projection(file, "linear.weight", bias, in_features, dummy_features, activation)
    shape = file.shape_of("linear.weight")
    if shape is None:
        raise ModelError(f"{file.path}: no linear.weight, so no projection to token embeddings; no ColBERT model")
    if len(shape) != 2 or shape[1] != in_features:
        raise ModelError(f"{file.path}: linear.weight has shape {shape}, expected [dim, {in_features}]")
    if has_bias and file.shape_of("linear.bias") != shape[:1]:
        raise ModelError(f"{file.path}: linear.bias has shape {file.shape_of('linear.bias')}, expected {shape[:1]}")
    return Projection(file, "linear.weight", bias, in_features, shape[0], activation)


def _read_mask(files: ModelFiles, folder: str) -> JsonFile:
    settings = files.read_json(_in(folder, "config.json"))
    if "keep_only_token_ids" in settings:
        raise settings.error("keep_only_token_ids", "null: this version does not know it")
    return settings


def _is_of_tokens(files: ModelFiles, folder: str) -> bool:
    settings = files.read_json_if_there(_in(folder, "config.json"))
    return settings.get_str("module_input_name", "sentence_embedding") == "token_embeddings"


# --- shared ---------------------------------------------------------------------------------------------------------


def _text_spec(
    tokenizer: ModelTokenizer, source: JsonFile, key: str, default: str, max_length: int, end: str = ""
) -> TextSpec:
    """Texts with one marker, and `end` after it."""
    marker = source.values.get(key)
    marker_id, rest = tokenizer.register_marker(default if marker is None else marker, source, key)
    return _add_text(TextSpec(max_length, [marker_id]), tokenizer, rest + end, source, key)


def _add_text(spec: TextSpec, tokenizer: ModelTokenizer, text: str, source: JsonFile, key: str) -> TextSpec:
    """A text before every text: as ids, or as text where its last blank is part of the word that follows."""
    if tokenizer.drops_blanks:
        ids = tokenizer.ids_of_prompt(text, source, key)
        return msgspec.structs.replace(spec, marker_ids=[*spec.marker_ids, *ids])
    return msgspec.structs.replace(spec, prefix=spec.prefix + text)


def _expand(query: TextSpec, tokenizer: ModelTokenizer, attend: bool) -> TextSpec:
    """ColBERT's own expansion: every query has exactly `max_length` rows, the last ones of [MASK]."""
    return msgspec.structs.replace(
        query,
        expansion="fixed",
        expansion_length=query.max_length,
        expansion_token_id=tokenizer.mask_id(),
        attend_expansion=attend,
    )


def _skip(spec: TextSpec, tokenizer: ModelTokenizer, words: list[str]) -> TextSpec:
    return msgspec.structs.replace(spec, skip_token_ids=tokenizer.known_ids(words))


def _similarity(settings: JsonFile) -> Literal["maxsim", "meanmaxsim"]:
    """MaxSim unless the checkpoint says otherwise; older saves name a single-vector similarity, which means nothing."""
    name = settings.get_str("similarity_fn_name", "maxsim").lower()
    if name not in ("maxsim", "meanmaxsim", "cosine", "dot"):
        raise settings.error("similarity_fn_name", "MaxSim or MeanMaxSim")
    return "meanmaxsim" if name == "meanmaxsim" else "maxsim"


def check_lengths(spec: ModelSpec, positions: int, source: str) -> None:
    """Every text has room for a token beside what is always there, and no more rows than the encoder has positions.

    Raises:
        ModelError: the message names `source`.
    """
    for role, text in (("query", spec.query), ("document", spec.document)):
        least = NUM_SPECIAL_TOKENS + len(text.marker_ids) + 1
        most = max(text.max_length, text.expansion_length)
        if text.max_length < least or most > positions:
            raise ModelError(f"{source}: {role} length {most}, expected {least} to {positions} ids")
