"""The bodies of requests for token embeddings, and of their answers.

As elsewhere, unknown fields are ignored and every optional field may be null.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from frontend.errors import invalid
from frontend.json_body import decode_body
from frontend.schemas import CommonBody, ScoreUsage, Usage
from ipc.messages import FloatDType, Role

TokenId = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class TextObject(msgspec.Struct, frozen=True):
    """Jina's way to write a text."""

    text: str


_ROWS = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
# Written by frontend.embedding_formats: whole answers as numbers would be ten times their size in Python's objects.
Rows = Annotated[Any, Meta(description="[rows, dim] numbers", extra_json_schema=_ROWS)]
RowsOrText = Annotated[
    Any,
    Meta(description="[rows, dim] numbers, or their base64", extra_json_schema={"anyOf": [_ROWS, {"type": "string"}]}),
]
RowsOrTexts = Annotated[
    Any,
    Meta(
        description="[rows, dim] numbers, or the base64 of each row",
        extra_json_schema={"anyOf": [_ROWS, {"type": "array", "items": {"type": "string"}}]},
    ),
]
EmbeddingInput = str | TextObject | list[str | TextObject | TokenId | list[TokenId]]


class EmbeddingBody(CommonBody, frozen=True, kw_only=True):
    """What all requests for embeddings may say."""

    input_type: Annotated[Role | None, Meta(description="null: document")] = None
    encoding_format: str | None = None
    dimensions: Annotated[int | None, Meta(description="Only the model's own")] = None


class PoolingBody(EmbeddingBody, frozen=True, kw_only=True):
    """POST /pooling: vLLM's, for the task token_embed."""

    input: EmbeddingInput
    task: Annotated[str | None, Meta(description="Only token_embed")] = None
    encoding_format: Annotated[
        Literal["float", "base64", "bytes", "bytes_only"] | None,
        Meta(description="bytes: all rows, with a header `metadata`; bytes_only: without it; null: float"),
    ] = None
    embed_dtype: Annotated[FloatDType | None, Meta(description="Of base64 and bytes; null: float32")] = None
    endianness: Annotated[
        Literal["native", "big", "little"] | None, Meta(description="Of base64 and bytes; null: native")
    ] = None
    use_activation: Annotated[bool | None, Meta(description="Not false")] = None
    normalize: Annotated[bool | None, Meta(description="Refused, as vLLM does: use_activation took its place")] = None
    add_special_tokens: Annotated[bool | None, Meta(description="Not false: send token ids")] = None


class EmbeddingsBody(EmbeddingBody, frozen=True, kw_only=True):
    """POST /v1/embeddings, /v1/multi-vector: vLLM's, PyLate's (`is_query`), Jina's (`input_type`, `embedding_type`)."""

    input: EmbeddingInput
    is_query: Annotated[bool | None, Meta(description="PyLate's; not together with input_type")] = None
    embedding_type: Annotated[
        Literal["float", "base64"]
        | Annotated[list[Literal["float", "base64"]], Meta(min_length=1, max_length=1)]
        | None,
        Meta(description="Jina's, alone or in a list; base64: a string for each row"),
    ] = None
    return_multivector: Annotated[
        bool | None, Meta(description="Jina's; not false: there is an embedding for each token, and none of the whole")
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None, Meta(description="base64: Jina's old name of embedding_type")
    ] = None
    add_special_tokens: Annotated[bool | None, Meta(description="Not false: send token ids")] = None


class EmbedAllBody(EmbeddingBody, frozen=True, kw_only=True):
    """POST /embed_all: TEI's."""

    inputs: EmbeddingInput
    truncate: Annotated[bool | None, Meta(description="TEI's truncation")] = None
    truncation_direction: Annotated[str | None, Meta(description="Only Right")] = None
    prompt_name: Annotated[Role | None, Meta(description="The role, as input_type")] = None


class EncodeBody(EmbeddingBody, frozen=True, kw_only=True):
    """POST /encode: next-plaid's."""

    texts: list[str]
    encoding_format: Literal["float", "base64"] | None = None
    pool_factor: Annotated[int | None, Meta(description="Only 1")] = None


class RerankWithEncodingBody(CommonBody, frozen=True, kw_only=True):
    """POST /rerank_with_encoding: next-plaid's."""

    query: str
    documents: list[str]
    pool_factor: Annotated[int | None, Meta(description="Only 1")] = None


class NextPlaidRank(msgspec.Struct, frozen=True, gc=False):
    index: int
    score: float


class NextPlaidAnswer(msgspec.Struct, frozen=True):
    """next-plaid's: all documents, best first."""

    results: list[NextPlaidRank]
    num_documents: int


class PooledText(msgspec.Struct, frozen=True):
    index: int
    data: RowsOrText
    object: str = "pooling"


class PoolingAnswer(msgspec.Struct, frozen=True):
    """vLLM's."""

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
    embedding: Rows
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
    embeddings: RowsOrTexts
    object: str = "embeddings"


class JinaAnswer(msgspec.Struct, frozen=True):
    """Jina's: the plural `embeddings`."""

    model: str
    object: str
    usage: Usage
    data: list[JinaEmbeddedText]


class EncodeAnswer(msgspec.Struct, frozen=True):
    """next-plaid's: numbers, or base64 of float32 with shapes."""

    num_texts: int
    embeddings: list[Rows] | UnsetType = UNSET
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
    if decoded.return_multivector is False:
        raise invalid("return_multivector: false, this model has an embedding for each token", "return_multivector")
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
