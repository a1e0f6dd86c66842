"""The bodies of rerank and score requests, and of their answers.

Requests are the superset of what vLLM's, Cohere's and Jina's clients send: unknown fields are ignored (among them
`user`, `priority`, `request_id`, `instruction` and `max_chunks_per_doc`), every optional field may be
null. Answers are the one shape that all of these clients parse: no `object` in rerank answers, and a `document` is left
out rather than null.

A query or document is one of

    "text"
    {"text": "text"}                                                              Jina, Cohere v1
    {"content": [{"type": "text", "text": "text"}, ...]}                          vLLM; parts are joined by newlines
    {"embeddings": {"data": base64, "shape": [rows, dim], "dtype": "float32"}}    token embeddings by value
    {"embeddings": [[number, ...], ...]}                                          next-plaid
    {"embeddings_b64": base64 of float32, "shape": [rows, dim]}                   next-plaid
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from frontend.embeddings_input import RowsOfNumbers, SentEmbeddings, Shape, is_given
from frontend.errors import invalid
from frontend.explanation import RelevantSpan, RelevantSpansOptions, TokenMatch
from frontend.json_body import ScoreMode, decode_body

Tokens = Annotated[int, Meta(ge=0, le=2**31 - 1)]
TokensOrOwn = Annotated[int, Meta(ge=-1, le=2**31 - 1, extra_json_schema={"not": {"const": 0}})]
Milliseconds = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Salt = Annotated[str, Meta(min_length=1, max_length=1024)]


class ContentPart(msgspec.Struct, frozen=True):
    """One part of vLLM's ScoreInput; only text can be scored."""

    type: str
    text: str | None = None


class InputObject(msgspec.Struct, frozen=True):
    """A query or document that is not a plain string: exactly one of these."""

    text: str | None = None
    embeddings: SentEmbeddings = msgspec.field(default_factory=msgspec.Raw)  # a default itself would be in the schema
    embeddings_b64: str | None = None
    shape: Annotated[Shape | None, Meta(description="[rows, dim] of embeddings_b64")] = None
    content: list[ContentPart] | None = None


InputBody = str | InputObject


class CommonBody(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of all requests that score. Lengths count special tokens and markers, and only lower the model's own."""

    model: Annotated[str | None, Meta(description="Any name is taken, unless --strict-model-name")] = None
    max_tokens_per_query: Annotated[
        Tokens | None, Meta(description="Longest query, in tokens; 0: the model's own length")
    ] = None
    max_tokens_per_doc: Annotated[
        Tokens | None, Meta(description="Longest document, in tokens; 0: the model's own length")
    ] = None
    truncate_prompt_tokens: Annotated[
        TokensOrOwn | None, Meta(description="Longest text, in tokens; -1: the model's own length")
    ] = None
    truncation: Annotated[bool | None, Meta(description="false: a text that is too long is a 400")] = None
    truncation_side: Annotated[Literal["right"] | None, Meta(description="vLLM's")] = None
    score_mode: Annotated[
        ScoreMode | None,
        Meta(
            description="raw: MaxSim. mean: divided by the number of scored query tokens. unit: the mean mapped to "
            "[0, 1]. null: the server's (--score-mode)"
        ),
    ] = None
    cache_salt: Annotated[
        Salt | None,
        Meta(description="Requests with another salt neither find nor time this one's stored embeddings"),
    ] = None
    timeout_ms: Annotated[Milliseconds | None, Meta(description="Lowers --request-timeout")] = None


class RerankBody(CommonBody, frozen=True, kw_only=True):
    """POST /rerank, /v1/rerank, /v2/rerank: `documents`, or on /rerank TEI's `texts`."""

    query: Annotated[
        InputBody | RowsOfNumbers | None,
        Meta(description="Required, unless query_b64; rows of numbers are next-plaid's"),
    ] = None
    query_b64: Annotated[str | None, Meta(description="next-plaid's: base64 of float32, shaped as query_shape")] = None
    query_shape: Annotated[Shape | None, Meta(description="[rows, dim] of query_b64")] = None
    documents: Annotated[list[InputBody] | InputBody | None, Meta(description="Required, unless texts")] = None
    texts: Annotated[list[str] | None, Meta(description="TEI's documents: the answer is TEI's")] = None
    top_n: Annotated[
        Annotated[int, Meta(ge=0)] | None, Meta(description="At most so many results; 0, or more than there are: all")
    ] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=0)] | UnsetType | None,
        Meta(description="Voyage's top_n. Where it is there, null too, the answer has Voyage's `data` as well"),
    ] = UNSET
    rank_fields: Annotated[
        list[Literal["text"]] | None, Meta(description="Cohere v1's: only the text of a document is ranked")
    ] = None
    return_documents: Annotated[
        bool | None, Meta(description="Whether results carry their document; null: not on /v2, else yes")
    ] = None
    explain: Annotated[
        bool | None, Meta(description="true: each result has for each query token the document token that it matched")
    ] = None
    relevant_spans: Annotated[
        RelevantSpansOptions | None,
        Meta(description="Cohere's: the parts of each document that the query's tokens matched"),
    ] = None
    return_text: Annotated[bool | None, Meta(description="TEI's return_documents; null: no")] = None
    raw_scores: Annotated[bool | None, Meta(description="TEI's and Infinity's; true: score_mode raw")] = None
    truncate: Annotated[bool | None, Meta(description="TEI's truncation")] = None
    truncation_direction: Annotated[str | None, Meta(description="TEI's; only Right")] = None


class Passage(msgspec.Struct, frozen=True):
    """NIM's query or passage."""

    text: str
    image: Annotated[None, Meta(description="Only text can be scored")] = None


class RankingBody(CommonBody, frozen=True, kw_only=True):
    """POST /v1/ranking, /ranking: NIM's."""

    query: Passage
    passages: list[Passage]
    truncate: Annotated[
        Literal["NONE", "END"] | None, Meta(description="NONE: a text that is too long is a 400; null: END")
    ] = None


class RerankingBody(CommonBody, frozen=True, kw_only=True):
    """POST /v1/reranking: mixedbread's."""

    query: str
    input: list[InputBody]
    top_k: Annotated[Annotated[int, Meta(ge=0)] | None, Meta(description="0 or null: all")] = None
    rank_fields: Annotated[list[Literal["text"]] | None, Meta(description="Only the text is ranked")] = None
    return_input: Annotated[bool | None, Meta(description="null: no")] = None


class ScoreBody(CommonBody, frozen=True, kw_only=True):
    """POST /score, /v1/score: one of four pairs of fields; 1:1, 1:N or N:N."""

    queries: list[InputBody] | InputBody | None = None
    documents: list[InputBody] | InputBody | None = None
    items: list[InputBody] | InputBody | None = None
    data_1: list[InputBody] | InputBody | None = None
    data_2: list[InputBody] | InputBody | None = None
    text_1: list[InputBody] | InputBody | None = None
    text_2: list[InputBody] | InputBody | None = None
    explain: Annotated[
        bool | None, Meta(description="true: each result has for each query token the document token that it matched")
    ] = None


PAIRS_OF_FIELDS = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
SIDES = tuple(dict.fromkeys(name for both in PAIRS_OF_FIELDS for name in both))


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


class Document(msgspec.Struct, frozen=True, gc=False):
    text: str


class RankedDocument(msgspec.Struct, frozen=True, gc=False):
    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET
    explanation: list[TokenMatch] | UnsetType = UNSET
    relevant_spans: list[RelevantSpan] | UnsetType = UNSET


class ApiVersion(msgspec.Struct, frozen=True):
    version: Literal["1", "2"]


class BilledUnits(msgspec.Struct, frozen=True):
    search_units: int = 1


class InputTokens(msgspec.Struct, frozen=True):
    input_tokens: int


class RerankMeta(msgspec.Struct, frozen=True):
    """Cohere's."""

    api_version: ApiVersion
    tokens: InputTokens
    billed_units: BilledUnits = BilledUnits()


class VoyageRank(msgspec.Struct, frozen=True, gc=False):
    index: int
    relevance_score: float


class RerankAnswer(msgspec.Struct, frozen=True):
    """Best first. `document`, `explanation` and `relevant_spans` are left out where they were not asked for, and the
    first and the last where the document is embeddings. `data` is Voyage's."""

    id: str
    model: str
    created: int
    usage: Usage
    results: list[RankedDocument]
    meta: RerankMeta
    data: list[VoyageRank] | UnsetType = UNSET


class TeiRank(msgspec.Struct, frozen=True, gc=False):
    """One element of TEI's answer, which is a list."""

    index: int
    score: float
    text: str | UnsetType = UNSET
    explanation: list[TokenMatch] | UnsetType = UNSET


class InfinityDocument(msgspec.Struct, frozen=True, gc=False):
    """Infinity's clients read the document as a string."""

    index: int
    relevance_score: float
    document: str | None = None
    explanation: list[TokenMatch] | UnsetType = UNSET


class InfinityAnswer(msgspec.Struct, frozen=True):
    """Infinity's, under --dialect infinity."""

    id: str
    model: str
    created: int
    usage: Usage
    results: list[InfinityDocument]
    object: str = "rerank"


class NimRank(msgspec.Struct, frozen=True):
    index: int
    logit: float


class NimAnswer(msgspec.Struct, frozen=True):
    """NIM's: all passages, best first."""

    rankings: list[NimRank]
    usage: Usage


class MixedbreadRank(msgspec.Struct, frozen=True):
    index: int
    score: float
    input: str | UnsetType = UNSET
    object: str = "rank_result"


class MixedbreadAnswer(msgspec.Struct, frozen=True):
    """mixedbread's, best first."""

    model: str
    usage: Usage
    data: list[MixedbreadRank]
    top_k: int
    return_input: bool
    object: str = "list"


class ScoredPair(msgspec.Struct, frozen=True, gc=False):
    index: int
    score: float
    object: str = "score"
    explanation: list[TokenMatch] | UnsetType = UNSET


class ScoreAnswer(msgspec.Struct, frozen=True):
    """vLLM's: a score for each pair, in input order."""

    id: str
    object: str
    created: int
    model: str
    data: list[ScoredPair]
    usage: ScoreUsage


Body = TypeVar("Body", RerankBody, ScoreBody, RankingBody, RerankingBody)

_rerank = msgspec.json.Decoder(RerankBody)
_score = msgspec.json.Decoder(ScoreBody)
_ranking = msgspec.json.Decoder(RankingBody)
_reranking = msgspec.json.Decoder(RerankingBody)


def decode_rerank(body: bytes) -> RerankBody:
    """The request of a rerank body.

    Raises:
        RequestFailed: 400, naming the field and the rule.
    """
    decoded = _decode(_rerank, body)
    if decoded.query is None and decoded.query_b64 is None:
        raise invalid("query: required", "query")
    return decoded


def decode_score(body: bytes) -> ScoreBody:
    """The request of a score body; the same contract as `decode_rerank`."""
    return _decode(_score, body)


def decode_ranking(body: bytes) -> RankingBody:
    """The request of NIM's ranking body; the same contract as `decode_rerank`."""
    return _decode(_ranking, body)


def decode_reranking(body: bytes) -> RerankingBody:
    """The request of mixedbread's reranking body; the same contract as `decode_rerank`."""
    return _decode(_reranking, body)


def _decode(decoder: msgspec.json.Decoder[Body], body: bytes) -> Body:
    decoded = decode_body(decoder, body)
    if decoded.truncate_prompt_tokens == 0:
        raise invalid("truncate_prompt_tokens: 0, at least 1, or -1 for the model's own", "truncate_prompt_tokens")
    return decoded


def as_list(value: list[InputBody] | InputBody) -> list[InputBody]:
    return value if isinstance(value, list) else [value]


def text_of(value: InputBody, field: str) -> str | None:
    """The text of an input; None: it carries embeddings.

    Raises:
        RequestFailed: it carries neither, or both, or an image.
    """
    if isinstance(value, str):
        return value
    given = [name for name in ("text", "embeddings_b64", "content") if getattr(value, name) is not None]
    given += ["embeddings"] if is_given(value.embeddings) else []
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        raise invalid(f"{field}: expected exactly one of text, embeddings and content, got {got}", field)
    if value.content is None:
        return value.text
    for part in value.content:
        if part.type != "text" or part.text is None:
            raise invalid(f"{field}.content: a part of type {part.type[:40]!r}, only text can be scored", field)
    return "\n".join(part.text for part in value.content if part.text is not None)
