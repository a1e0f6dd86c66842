"""The bodies of rerank and score requests, and of their answers.

Requests are the superset of what vLLM's, Cohere's and Jina's clients send: unknown fields are ignored, every optional field may be
null. Answers are the one shape that all of these clients parse (../docs/http.md): no `object` in rerank answers, and a
`document` is left out rather than null.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from frontend.embeddings_input import EmbeddingsPayload
from frontend.errors import invalid

MAX_SALT = 1024

ScoreMode = Literal["raw", "mean", "unit"]


class ContentPart(msgspec.Struct, frozen=True):
    """One part of vLLM's ScoreInput; only text can be scored."""

    type: str
    text: str | None = None


class InputObject(msgspec.Struct, frozen=True):
    """A query or document that is not a plain string: exactly one of these."""

    text: str | None = None
    embeddings: EmbeddingsPayload | None = None
    content: list[ContentPart] | None = None


InputBody = str | InputObject


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of both requests. Lengths are in tokens, special tokens and markers included."""

    model: str | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None
    truncate_prompt_tokens: int | None = None  # -1: the model's own lengths
    truncation: bool | None = None  # false: a text that is too long is a 400
    score_mode: ScoreMode | None = None
    cache_salt: str | None = None
    timeout_ms: int | None = None


class RerankBody(_Common, frozen=True, kw_only=True):
    """POST /rerank, /v1/rerank, /v2/rerank."""

    query: InputBody
    documents: list[InputBody] | InputBody
    top_n: int | None = None  # 0: all
    return_documents: bool | None = None


class ScoreBody(_Common, frozen=True, kw_only=True):
    """POST /score, /v1/score: one of four pairs of fields; 1:1, 1:N or N:N."""

    queries: list[InputBody] | InputBody | None = None
    documents: list[InputBody] | InputBody | None = None
    items: list[InputBody] | InputBody | None = None
    data_1: list[InputBody] | InputBody | None = None
    data_2: list[InputBody] | InputBody | None = None
    text_1: list[InputBody] | InputBody | None = None
    text_2: list[InputBody] | InputBody | None = None


PAIRS_OF_FIELDS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    total_tokens: int


class ScoreUsage(msgspec.Struct, frozen=True):
    """vLLM's, with its nulls."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None
    completion_tokens_details: None = None


class Document(msgspec.Struct, frozen=True):
    text: str


class RankedDocument(msgspec.Struct, frozen=True):
    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class RerankAnswer(msgspec.Struct, frozen=True):
    id: str
    model: str
    created: int
    usage: Usage
    results: list[RankedDocument]
    meta: dict[str, Any]


class ScoredPair(msgspec.Struct, frozen=True):
    index: int
    score: float
    object: str = "score"


class ScoreAnswer(msgspec.Struct, frozen=True):
    id: str
    object: str
    created: int
    model: str
    data: list[ScoredPair]
    usage: ScoreUsage


_MISSING = "Object missing required field "

Body = TypeVar("Body", RerankBody, ScoreBody)

_rerank = msgspec.json.Decoder(RerankBody)
_score = msgspec.json.Decoder(ScoreBody)


def decode_rerank(body: bytes) -> RerankBody:
    """The request of a rerank body.

    Raises:
        RequestFailed: 400, naming the field and the rule.
    """
    decoded = _check_common(_decode(_rerank, body))
    if decoded.top_n is not None and decoded.top_n < 0:
        raise invalid(f"top_n: {decoded.top_n}, at least 0 (0: all)", "top_n")
    return decoded


def decode_score(body: bytes) -> ScoreBody:
    """The request of a score body; the same contract as `decode_rerank`."""
    return _check_common(_decode(_score, body))


def _decode(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    if not body:
        raise invalid("body: empty, expected a JSON object")
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at `$")
        field = place.rstrip("`").lstrip(".") or None
        if problem.startswith(_MISSING):
            problem, field = "required", ".".join(filter(None, (field, problem[len(_MISSING) :].strip("`"))))
        raise invalid(f"{field}: {problem}" if field else f"body: {problem}", field) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"body: not JSON ({str(error)[:200]})") from None


def _check_common(body: Body) -> Body:
    for field in ("max_tokens_per_query", "max_tokens_per_doc"):
        value = getattr(body, field)
        if value is not None and value < 0:
            raise invalid(f"{field}: {value}, at least 0 (0: the model's own)", field)
    cut = body.truncate_prompt_tokens
    if cut is not None and cut < 1 and cut != -1:
        raise invalid(f"truncate_prompt_tokens: {cut}, at least 1, or -1 for the model's own", "truncate_prompt_tokens")
    if body.cache_salt is not None and not 1 <= len(body.cache_salt) <= MAX_SALT:
        raise invalid(f"cache_salt: {len(body.cache_salt)} characters, expected 1 to {MAX_SALT}", "cache_salt")
    if body.timeout_ms is not None and body.timeout_ms < 1:
        raise invalid(f"timeout_ms: {body.timeout_ms}, at least 1", "timeout_ms")
    return body


def as_list(value: list[InputBody] | InputBody) -> list[InputBody]:
    return value if isinstance(value, list) else [value]


def text_of(value: InputBody, field: str) -> str | None:
    """The text of an input; None: it carries embeddings.

    Raises:
        RequestFailed: it carries neither, or both, or an image.
    """
    if isinstance(value, str):
        return value
    given = [name for name in ("text", "embeddings", "content") if getattr(value, name) is not None]
    if len(given) != 1:
        raise invalid(f"{field}: has {' and '.join(given) or 'none'}; expected exactly one of text, embeddings, content", field)
    if value.content is None:
        return value.text
    for part in value.content:
        if part.type != "text" or part.text is None:
            raise invalid(f"{field}.content: a part of type {part.type[:40]!r}; this model scores text only", field)
    return "\n".join(part.text for part in value.content if part.text is not None)
