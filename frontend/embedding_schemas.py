"""The bodies of requests for token embeddings, and of their answers.

As elsewhere, unknown fields are ignored and every optional field may be null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from frontend.errors import invalid
from frontend.json_body import decode_body
from frontend.schemas import CommonBody, ScoreUsage, Usage
from ipc.messages import FloatDType, Role

TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]


class TextObject(msgspec.Struct, frozen=True):
    """Jina's way to write a text."""

    text: str


EmbeddingInput = str | TextObject | list[str | TextObject | TokenId | list[TokenId]]


class EmbeddingBody(CommonBody, frozen=True, kw_only=True):
    """What all of them may say. None of these lengths, types or roles means the model's own, float32, a document."""

    input_type: Role | None = None
    encoding_format: str | None = None
    dimensions: int | None = None  # only the model's own


class PoolingBody(EmbeddingBody, frozen=True, kw_only=True):
    """POST /pooling: vLLM's, for the task token_embed."""

    input: EmbeddingInput
    task: str | None = None
    encoding_format: Literal["float", "base64", "bytes", "bytes_only"] | None = None
    embed_dtype: FloatDType | None = None  # of base64 and bytes
    endianness: Literal["native", "big", "little"] | None = None
    use_activation: bool | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None


class EmbeddingsBody(EmbeddingBody, frozen=True, kw_only=True):
    """POST /v1/embeddings, /v1/multi-vector: vLLM's, PyLate's (`is_query`), Jina's (`input_type`, `embedding_type`)."""

    input: EmbeddingInput
    is_query: bool | None = None
    embedding_type: Literal["float", "base64"] | None = None
    encoding_format: Literal["float", "base64"] | None = None  # base64: Jina's old name of embedding_type
    add_special_tokens: bool | None = None


class EmbedAllBody(EmbeddingBody, frozen=True, kw_only=True):
    """POST /embed_all: TEI's. `prompt_name` is the role."""

    inputs: EmbeddingInput
    truncate: bool | None = None
    truncation_direction: str | None = None
    prompt_name: Role | None = None


class EncodeBody(EmbeddingBody, frozen=True, kw_only=True):
    """POST /encode: next-plaid's."""

    texts: list[str]
    encoding_format: Literal["float", "base64"] | None = None
    pool_factor: int | None = None


class RerankWithEncodingBody(CommonBody, frozen=True, kw_only=True):
    """POST /rerank_with_encoding: next-plaid's."""

    query: str
    documents: list[str]
    pool_factor: int | None = None


class NextPlaidRank(msgspec.Struct, frozen=True):
    index: int
    score: float


class NextPlaidAnswer(msgspec.Struct, frozen=True):
    results: list[NextPlaidRank]
    num_documents: int


class PooledText(msgspec.Struct, frozen=True):
    index: int
    data: Any  # numbers, or base64
    object: str = "pooling"


class PoolingAnswer(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    data: list[PooledText]
    usage: ScoreUsage


class BytesPlace(msgspec.Struct, frozen=True):
    """Where one text's embeddings lie in an answer of bytes."""

    index: int
    embed_dtype: str
    endianness: str
    start: int
    end: int
    shape: list[int]


class BytesMetadata(msgspec.Struct, frozen=True):
    """The header `metadata` of an answer of bytes."""

    id: str
    created: int
    model: str
    data: list[BytesPlace]
    usage: ScoreUsage


class EmbeddedText(msgspec.Struct, frozen=True):
    index: int
    embedding: Any  # [rows, dim] numbers
    object: str = "embedding"


class EmbeddingsAnswer(msgspec.Struct, frozen=True):
    """vLLM's and PyLate's."""

    id: str
    object: str
    created: int
    model: str
    data: list[EmbeddedText]
    usage: ScoreUsage


class JinaEmbeddedText(msgspec.Struct, frozen=True):
    index: int
    embeddings: Any  # [rows, dim] numbers, or the base64 of each row
    object: str = "embeddings"


class JinaAnswer(msgspec.Struct, frozen=True):
    model: str
    object: str
    usage: Usage
    data: list[JinaEmbeddedText]


class EncodeAnswer(msgspec.Struct, frozen=True):
    """next-plaid's: numbers, or base64 of float32 with shapes."""

    num_texts: int
    embeddings: list[Any] | UnsetType = UNSET
    embeddings_b64: list[str] | UnsetType = UNSET
    shapes: list[list[int]] | UnsetType = UNSET


_pooling = msgspec.json.Decoder(PoolingBody)
_embeddings = msgspec.json.Decoder(EmbeddingsBody)
_embed_all = msgspec.json.Decoder(EmbedAllBody)
_encode = msgspec.json.Decoder(EncodeBody)
_rerank_with_encoding = msgspec.json.Decoder(RerankWithEncodingBody)


def decode_pooling(body: bytes) -> PoolingBody:
    """
    Raises:
        RequestFailed: 400, naming the field and the rule.
    """
    decoded = decode_body(_pooling, body)
    if decoded.task not in (None, "token_embed"):
        raise invalid(f"task: {decoded.task[:40]!r}, this model serves token_embed", "task")
    if decoded.normalize is not None:
        raise invalid("normalize: was removed; use use_activation", "normalize")
    if decoded.use_activation is False:
        raise invalid("use_activation: false, embeddings are normalised as the model was trained", "use_activation")
    if decoded.dimensions is not None:
        raise invalid("dimensions: not for token_embed", "dimensions")
    _check_special_tokens(decoded.add_special_tokens)
    return decoded


def decode_embeddings_body(body: bytes) -> EmbeddingsBody:
    """The same contract as `decode_pooling`."""
    decoded = decode_body(_embeddings, body)
    if decoded.is_query is not None and decoded.input_type is not None:
        raise invalid("is_query: not together with input_type", "is_query")
    _check_special_tokens(decoded.add_special_tokens)
    return decoded


def decode_embed_all(body: bytes) -> EmbedAllBody:
    """The same contract as `decode_pooling`."""
    return decode_body(_embed_all, body)


def decode_encode(body: bytes) -> EncodeBody:
    """The same contract as `decode_pooling`."""
    decoded = decode_body(_encode, body)
    check_pool_factor(decoded.pool_factor)
    return decoded


def decode_rerank_with_encoding(body: bytes) -> RerankWithEncodingBody:
    """The same contract as `decode_pooling`."""
    return decode_body(_rerank_with_encoding, body)


def check_pool_factor(pool_factor: int | None) -> None:
    """
    Raises:
        RequestFailed: tokens are to be pooled.
    """
    if pool_factor not in (None, 1):
        raise invalid(f"pool_factor: {pool_factor}, expected 1 or null: tokens are not pooled here", "pool_factor")


def _check_special_tokens(add_special_tokens: bool | None) -> None:
    if add_special_tokens is False:
        raise invalid("add_special_tokens: false; send token ids to say which tokens", "add_special_tokens")


def as_inputs(value: EmbeddingInput, field: str) -> list[str | list[int]]:
    """Each text, or its token ids. A list of numbers is one text.

    Raises:
        RequestFailed: a number stands among texts.
    """
    if not isinstance(value, list):
        return [value.text if isinstance(value, TextObject) else value]
    numbers = [each for each in value if isinstance(each, int)]
    if numbers and len(numbers) == len(value):
        return [numbers]
    inputs: list[str | list[int]] = []
    for place, each in enumerate(value):
        if isinstance(each, int):
            raise invalid(
                f"{field}[{place}]: a number among texts; token ids of one text are a list", f"{field}[{place}]"
            )
        inputs.append(each.text if isinstance(each, TextObject) else each)
    return inputs
