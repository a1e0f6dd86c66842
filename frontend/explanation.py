"""Why a document scored as it did: for each query token the document token that it matched, and how well.

The worker says which document row each query row matched (its alignment); here rows become tokens and places in the
texts, by tokenising again what is explained. Cohere's relevant spans are the same matches, seen from the document.

    X1  The similarities of a pair's explanation add up to its raw score, within rounding.
    X2  A span is of the text as the client sent it, in Unicode code points, [start, end); what stands for none of it
        (special tokens, markers, prompts, expansion, blanks, embeddings by value) has none.
    X3  One answer explains at most MAX_ALIGNED_ROWS query tokens, over all its results.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from frontend.errors import invalid
from frontend.ranking import Input, RankingResult, RankingTask, TextInput
from frontend.tokenizer import LocatedText, Span, StatelessTokenizer
from ipc.errors import ServiceFailed
from ipc.messages import MAX_ALIGNED_ROWS, ErrorCode, Role

_encoder = msgspec.json.Encoder()

THRESHOLD = 0.1  # of relevant spans, where a request does not say it
MATCH_BYTES = 512  # of memory for one match, and of JSON


class RelevantSpansOptions(msgspec.Struct, frozen=True):
    """Cohere's `relevant_spans` in a request."""

    mode: Annotated[Literal["enabled", "disabled"] | None, Meta(description="null: enabled")] = None
    threshold: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="A token is relevant if a query token matched it with at least this similarity; null: 0.1"),
    ] = None
    max_spans: Annotated[
        Annotated[int, Meta(ge=1)] | None, Meta(description="At most so many spans of a document, the best; null: all")
    ] = None


class RelevantSpan(msgspec.Struct, frozen=True, gc=False):
    """A part of a document's text, in code points, [start, end). `score` is its best token's similarity."""

    start: int
    end: int
    score: float


class TokenMatch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A query token, and the document token that it matched: the one that is most similar.

    Rows count the scored tokens of a text from 0: those of /pooling, or of embeddings by value, which have no tokens.
    Spans are in code points of the text, [start, end).
    """

    query_token: str | UnsetType = UNSET
    query_span: Span | UnsetType = UNSET
    document_token: str | UnsetType = UNSET
    document_span: Span | UnsetType = UNSET
    similarity: float
    query_row: int
    document_row: int


class ExplanationRequest(msgspec.Struct, frozen=True):
    """What of an explanation a request asks for."""

    matches: bool  # `explain`
    spans: RelevantSpansOptions | None  # `relevant_spans`

    @property
    def field(self) -> str:
        """What the request calls it."""
        return "explain" if self.matches else "relevant_spans"

    def check(self, query_rows: Sequence[int]) -> None:
        """
        Args:
            query_rows: of the query of each pair that is to be explained.

        Raises:
            RequestFailed: they are too many (X3).
        """
        total = sum(query_rows)
        if total > MAX_ALIGNED_ROWS:
            raise invalid(
                f"{self.field}: {total} query tokens over {len(query_rows)} results, at most {MAX_ALIGNED_ROWS}; "
                "ask for fewer results",
                self.field,
            )


def explanation_request(explain: bool | None, spans: RelevantSpansOptions | None = None) -> ExplanationRequest | None:
    """None: nothing is asked for."""
    spans = spans if spans is not None and spans.mode != "disabled" else None
    return ExplanationRequest(bool(explain), spans) if explain or spans is not None else None


def explain(
    task: RankingTask, result: RankingResult, tokenizer: StatelessTokenizer | None
) -> Mapping[int, Sequence[TokenMatch]]:
    """The matches of each pair that was aligned. For a thread: it tokenises.

    Raises:
        RequestFailed: a similarity is not finite: a client's own embeddings are too large.
        ServiceFailed: the rows are not those of the tokens, which would be a bug.
    """
    pairs = [(position, task.texts_of(position)) for position in result.alignments]
    queries = _Locator(tokenizer, "query", task.queries, result.query_rows, task.query_length)
    documents = _Locator(tokenizer, "document", task.documents, result.document_rows, task.document_length)
    located_queries = queries.locate([query for _, (query, _) in pairs])
    located_documents = documents.locate([document for _, (_, document) in pairs])
    return {
        position: _matches(result.alignments[position].document_rows, result.alignments[position].similarities, *texts)
        for (position, _), *texts in zip(pairs, located_queries, located_documents, strict=True)
    }


def relevant_spans(
    matches: Sequence[TokenMatch], is_query_text: bool, text: str, options: RelevantSpansOptions
) -> list[RelevantSpan]:
    """The parts of a document that the query's own tokens matched, in the order of the text.

    Relevant are tokens that are the best match of a query token and at least `threshold` similar to it; those with
    nothing but blanks between them are one span.

    Args:
        is_query_text: then special tokens, markers and expansion match nothing: they are not the user's words.
        text: the document's.
    """
    threshold = THRESHOLD if options.threshold is None else options.threshold
    best: dict[Span, float] = {}
    for match in matches:
        is_own = match.query_span is not UNSET or not is_query_text
        if is_own and match.document_span is not UNSET and match.similarity >= threshold:
            best[match.document_span] = max(match.similarity, best.get(match.document_span, 0.0))
    spans: list[RelevantSpan] = []
    for (start, end), similarity in sorted(best.items()):
        score = min(similarity, 1.0)  # rounding, or embeddings by value that are not normalised
        if spans and (start <= spans[-1].end or text[spans[-1].end : start].isspace()):
            last = spans.pop()
            spans.append(RelevantSpan(last.start, max(last.end, end), max(last.score, score)))
        else:
            spans.append(RelevantSpan(start, end, score))
    if options.max_spans is not None and len(spans) > options.max_spans:
        spans = sorted(sorted(spans, key=lambda span: -span.score)[: options.max_spans], key=lambda span: span.start)
    return spans


def written(matches: Sequence[TokenMatch]) -> msgspec.Raw:
    """A pair's explanation as JSON: a whole answer, encoded in one go, would hold Python's lock for 15 ms."""
    return msgspec.Raw(_encoder.encode(matches))


def _matches(
    document_rows: Sequence[int], similarities: Sequence[float], query: LocatedText | None, document: LocatedText | None
) -> list[TokenMatch]:
    if not math.isfinite(sum(similarities)):
        raise invalid("embeddings: too large, their products are more than a float32 holds", "embeddings")
    return [
        TokenMatch(
            query_token=query.tokens[query_row] if query is not None else UNSET,
            query_span=_or_unset(query.span(query_row)) if query is not None else UNSET,
            document_token=document.tokens[document_row] if document is not None else UNSET,
            document_span=_or_unset(document.span(document_row)) if document is not None else UNSET,
            similarity=similarity,
            query_row=query_row,
            document_row=document_row,
        )
        for query_row, (document_row, similarity) in enumerate(zip(document_rows, similarities, strict=True))
    ]


def _or_unset(span: Span | None) -> Span | UnsetType:
    return UNSET if span is None else span


class _Locator:
    """Locates texts of one role, a few at a time; a text that comes again and again in a row, once."""

    def __init__(
        self,
        tokenizer: StatelessTokenizer | None,
        role: Role,
        inputs: Sequence[Input],
        rows: Sequence[int],
        limit: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._role: Role = role
        self._inputs = inputs
        self._rows = rows
        self._limit = limit

    def locate(self, places: Sequence[int]) -> Iterator[LocatedText | None]:
        """Each input's tokens, in the order of `places`; None: it is embeddings."""
        changes = [place for index, place in enumerate(places) if not index or places[index - 1] != place]
        texts = [text.text for place in changes if isinstance(text := self._inputs[place], TextInput)]
        located = self._locate_texts(texts)
        current: LocatedText | None = None
        for index, place in enumerate(places):
            if not isinstance(self._inputs[place], TextInput):
                yield None
                continue
            if not index or places[index - 1] != place:
                current = next(located)
                if len(current.tokens) != self._rows[place]:
                    raise ServiceFailed(ErrorCode.INTERNAL, "a text has another number of tokens than of embeddings")
            yield current

    def _locate_texts(self, texts: Sequence[str]) -> Iterator[LocatedText]:
        if not texts:
            return iter(())
        if self._tokenizer is None:
            raise ServiceFailed(ErrorCode.UNAVAILABLE, "the encoder is not ready", 1000)
        return self._tokenizer.locate(self._role, texts, self._limit)
