"""POST /rerank, /v1/rerank, /v2/rerank: one query and documents in, documents with scores out, best first.

Several dialects share these paths. `texts` in place of `documents` makes it TEI's; a query of numbers or `query_b64`
next-plaid's; --dialect infinity makes documents plain strings; everything else gets the one answer that vLLM's, Jina's
and Cohere's clients all read. A body in safetensors holds embeddings alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from frontend.binary_body import decode_binary
from frontend.call import Call, GivenInput, admitted
from frontend.dialect import Dialect, speak
from frontend.embeddings_input import EmbeddingsPayload, decode_embeddings, from_numbers
from frontend.errors import RequestFailed, invalid
from frontend.explanation import (
    ExplanationRequest,
    TokenMatch,
    explanation_request,
    relevant_spans,
    written,
)
from frontend.json_body import sent_fields
from frontend.ranking import EmbeddingsInput, RankingResult, RankingTask, TextInput
from frontend.routes.next_plaid import next_plaid_answer
from frontend.routes.score_modes import convert_scores
from frontend.schemas import (
    ApiVersion,
    Document,
    InfinityAnswer,
    InfinityDocument,
    InputTokens,
    RankedDocument,
    RerankAnswer,
    RerankBody,
    RerankMeta,
    TeiRank,
    Usage,
    VoyageRank,
    as_list,
    decode_rerank,
    text_of,
)
from frontend.turns import best_first, end_turn, write_list

HAVE_SPANS = (Dialect.VLLM, Dialect.COHERE)  # answers with a place for relevant spans

Result = RankedDocument | TeiRank | InfinityDocument

_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class _Ranked:
    """What a request came to, before it is written in a dialect."""

    body: RerankBody
    documents: Sequence[GivenInput]
    scores: Sequence[float]  # in the order of the documents
    order: Sequence[int]  # of the documents to show, best first
    tokens: int
    model: str
    request_id: str

    def text(self, index: int) -> str | None:
        """A document's text; None: it is embeddings."""
        document = self.documents[index]
        if isinstance(document, str | EmbeddingsInput):
            return document if isinstance(document, str) else None
        return text_of(document, f"documents[{index}]")


async def rerank(request: Request) -> Response:
    """Documents come back unless `return_documents` is false; on /v2, in Infinity's and TEI's only if asked for."""
    async with admitted(request) as call:
        body, query, documents, dialect = await _asked(request.scope, call)
        call.check_model(body.model)
        fields = ("query", "texts" if dialect is Dialect.TEI else "documents")
        documents = await call.decode_embeddings(documents, fields[1])
        task = await call.make_task(_with_names(body), [query], documents, None, fields)
        asked = explanation_request(body.explain, body.relevant_spans if dialect in HAVE_SPANS else None)
        if asked is not None:
            return await _explained(call, body, documents, task, asked, dialect)
        result = await call.score(task)
        await end_turn(len(documents))
        ranked = await _rank(call, body, documents, result)
        await end_turn(len(documents))
        if dialect is Dialect.NEXT_PLAID:
            content = _encoder.encode(await next_plaid_answer(call, body, result))
        else:
            results = await write_list(_maker(ranked, dialect), ranked.order)
            content = _encoder.encode(_answer(ranked, dialect, results))
        await end_turn(len(documents))
        return Response(content, 200, call.timing_headers(result), "application/json")


async def _explained(
    call: Call,
    body: RerankBody,
    documents: Sequence[GivenInput],
    task: RankingTask,
    asked: ExplanationRequest,
    dialect: Dialect,
) -> Response:
    """The same, with what of an explanation is asked for.

    Raises:
        RequestFailed: it is too much, or the dialect has no place for it; names the field.
    """
    if dialect is Dialect.NEXT_PLAID:
        raise invalid(f"{asked.field}: not in next-plaid's answers; send the query as others do", asked.field)

    async def shown(result: RankingResult) -> Sequence[int]:
        order = (await _rank(call, body, documents, result)).order
        asked.check([result.query_rows[0]] * len(order))
        return order

    result = await call.score(replace(task, choose_aligned=shown))
    ranked = await _rank(call, body, documents, result)

    def write(matches: Mapping[int, Sequence[TokenMatch]]) -> bytes:
        results = list(map(_maker(ranked, dialect), ranked.order))
        _explain_results(results, ranked, matches, asked, isinstance(task.queries[0], TextInput))
        return _encoder.encode(_answer(ranked, dialect, results))

    async with call.explained(task, result) as matches:
        content = await asyncio.to_thread(write, matches)
    return Response(content, 200, call.timing_headers(result), "application/json")


def _explain_results(
    results: list[Result],
    ranked: _Ranked,
    matches: Mapping[int, Sequence[TokenMatch]],
    asked: ExplanationRequest,
    is_query_text: bool,
) -> None:
    """Put into results what was asked for of their explanation."""
    for place, result in enumerate(results):
        own = matches.get(result.index, ())
        fields: dict[str, object] = {"explanation": written(own)} if asked.matches else {}
        text = ranked.text(result.index) if asked.spans is not None else None
        if asked.spans is not None and text is not None:
            fields["relevant_spans"] = relevant_spans(own, is_query_text, text, asked.spans)
        results[place] = msgspec.structs.replace(result, **fields)


async def _asked(scope: Scope, call: Call) -> tuple[RerankBody, GivenInput, Sequence[GivenInput], Dialect]:
    """The options, the query, the documents, and whose language this is.

    Raises:
        RequestFailed: the body is wrong; names the field.
    """
    if call.has_binary_body:
        body, inputs = decode_binary(call.take_body(), RerankBody)
        if len(inputs.queries) != 1:
            raise invalid(f"query: {len(inputs.queries)} tensors, expected 1", "query")
        return body, inputs.queries[0], inputs.documents, _dialect(scope, body, call.api.config.dialect)
    try:
        body = await call.decode(decode_rerank, RerankBody, ("documents", "texts"))
    except RequestFailed:
        _speak_as_keys_say(scope, call.take_body())
        raise
    dialect = _dialect(scope, body, call.api.config.dialect)
    return body, _query(body), _documents(body, dialect), dialect


def _speak_as_keys_say(scope: Scope, sent: bytes) -> None:
    """Of a body that could not be decoded: in whose words to say so."""
    fields = sent_fields(sent, "documents", "texts", "query", "query_b64")
    if scope["path"].startswith("/v2/"):
        return
    if "texts" in fields and "documents" not in fields:
        speak(scope, Dialect.TEI)
    elif "query_b64" in fields or bytes(memoryview(fields.get("query", b""))[:1]) == b"[":
        speak(scope, Dialect.NEXT_PLAID)


def _query(body: RerankBody) -> GivenInput:
    if body.query_b64 is not None:
        if body.query_shape is None:
            raise invalid("query_shape: required beside query_b64", "query_shape")
        return decode_embeddings(EmbeddingsPayload(body.query_b64, body.query_shape), "query", "query_b64")
    assert body.query is not None
    return from_numbers(body.query, "query") if isinstance(body.query, list) else body.query


def _dialect(scope: Scope, body: RerankBody, default: str) -> Dialect:
    """By path, then by keys, then as the server is set."""
    if scope["path"].startswith("/v2/"):
        return Dialect.COHERE
    if body.texts is not None and body.documents is None:
        speak(scope, Dialect.TEI)
        return Dialect.TEI
    if body.query_b64 is not None or isinstance(body.query, list):
        speak(scope, Dialect.NEXT_PLAID)
        return Dialect.NEXT_PLAID
    return Dialect.INFINITY if default == "infinity" else Dialect.VLLM


def _documents(body: RerankBody, dialect: Dialect) -> Sequence[GivenInput]:
    if dialect is Dialect.TEI:
        assert body.texts is not None
        return list(body.texts)
    if body.documents is None:
        raise invalid("documents: required", "documents")
    return as_list(body.documents)


def _with_names(body: RerankBody) -> RerankBody:
    """TEI's names of what others call truncation.

    Raises:
        RequestFailed: texts cannot be cut from the left.
    """
    check_direction(body.truncation_direction)
    if body.truncate is None or body.truncation is not None:
        return body
    return msgspec.structs.replace(body, truncation=body.truncate)


def check_direction(truncation_direction: str | None) -> None:
    """
    Raises:
        RequestFailed: texts cannot be cut from the left.
    """
    if truncation_direction is not None and truncation_direction.lower() != "right":
        raise invalid("truncation_direction: texts are cut on the right only", "truncation_direction")


async def _rank(call: Call, body: RerankBody, documents: Sequence[GivenInput], result: RankingResult) -> _Ranked:
    mode = body.score_mode or ("raw" if body.raw_scores else call.api.config.score_mode)
    scores = convert_scores(result, None, mode, call.api.ranker.spec)
    await end_turn(len(documents))
    order = (await best_first(scores))[: body.top_n or body.top_k or None]
    tokens = sum(result.query_prompt_tokens) + sum(result.document_prompt_tokens)
    return _Ranked(body, documents, scores, order, tokens, call.api.model_names[0], call.request_id)


# --- the dialects -----------------------------------------------------------------------------------------------------


_KINDS: Mapping[Dialect, type[Result]] = {Dialect.TEI: TeiRank, Dialect.INFINITY: InfinityDocument}


def _maker(ranked: _Ranked, dialect: Dialect) -> Callable[[int], Result]:
    """What makes a document's place in the answer: what that looks like is decided once for all of them."""
    if _shows_texts(ranked.body, dialect):
        return lambda index: _with_text(ranked, dialect, index)
    kind, scores = _KINDS.get(dialect, RankedDocument), ranked.scores
    return lambda index: kind(index, scores[index])


def _with_text(ranked: _Ranked, dialect: Dialect, index: int) -> Result:
    """One document in the answer. Embeddings have no text to return."""
    text, score = ranked.text(index), ranked.scores[index]
    match dialect:
        case Dialect.TEI:
            return TeiRank(index, score, UNSET if text is None else text)
        case Dialect.INFINITY:
            return InfinityDocument(index, score, text)
        case _:
            return RankedDocument(index, score, UNSET if text is None else Document(text))


def _shows_texts(body: RerankBody, dialect: Dialect) -> bool:
    match dialect:
        case Dialect.TEI:
            return bool(body.return_text)
        case Dialect.INFINITY | Dialect.COHERE:
            return bool(body.return_documents)
        case _:
            return body.return_documents is not False


def _answer(
    ranked: _Ranked, dialect: Dialect, results: Sequence[Result] | msgspec.Raw
) -> RerankAnswer | InfinityAnswer | Sequence[Result] | msgspec.Raw:
    """Of all dialects but next-plaid's, for an encoder: it takes what is written already as it is."""
    match dialect:
        case Dialect.TEI:
            return results
        case Dialect.INFINITY:
            return _infinity_answer(ranked, cast("list[InfinityDocument]", results))
        case _:
            return _common_answer(ranked, dialect, cast("list[RankedDocument]", results))


def _common_answer(ranked: _Ranked, dialect: Dialect, results: list[RankedDocument]) -> RerankAnswer:
    """The one that vLLM's, Jina's and Cohere's clients read."""
    return RerankAnswer(
        id=f"rerank-{ranked.request_id}",
        model=ranked.model,
        created=int(time.time()),
        usage=Usage(ranked.tokens, ranked.tokens),
        results=results,
        meta=RerankMeta(ApiVersion("2" if dialect is Dialect.COHERE else "1"), InputTokens(ranked.tokens)),
        data=UNSET
        if ranked.body.top_k is UNSET
        else [VoyageRank(index, ranked.scores[index]) for index in ranked.order],
    )


def _infinity_answer(ranked: _Ranked, results: list[InfinityDocument]) -> InfinityAnswer:
    """Documents are strings or null, and `object` is what its client insists on."""
    usage = Usage(ranked.tokens, ranked.tokens)
    return InfinityAnswer(f"infinity-{ranked.request_id}", ranked.model, int(time.time()), usage, results)
