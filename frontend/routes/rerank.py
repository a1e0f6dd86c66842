"""POST /rerank, /v1/rerank, /v2/rerank: one query and documents in, documents with scores out, best first."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from frontend.call import Call, admitted
from frontend.ranking import RankingResult
from frontend.routes.score_modes import convert_scores
from frontend.schemas import (
    Document,
    InputBody,
    RankedDocument,
    RerankAnswer,
    RerankBody,
    Usage,
    as_list,
    decode_rerank,
    text_of,
)

_encoder = msgspec.json.Encoder()


async def rerank(request: Request) -> Response:
    """Documents come back unless `return_documents` is false; on /v2 only if it is true."""
    async with admitted(request) as call:
        body = decode_rerank(call.take_body())
        call.check_model(body.model)
        documents = as_list(body.documents)
        task = call.make_task(body, [body.query], documents, None, ("query", "documents"))
        result = await call.score(task)
        return _answer(request, call, body, documents, result)


def _answer(
    request: Request, call: Call, body: RerankBody, documents: Sequence[InputBody], result: RankingResult
) -> Response:
    is_v2 = request.scope["path"].startswith("/v2/")
    scores = convert_scores(result, None, body.score_mode or call.api.config.score_mode, call.api.ranker.spec)
    # Equal scores stay in the order of the input: a reversed sort is stable too.
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: body.top_n or None]
    shows = bool(body.return_documents) if is_v2 else body.return_documents is not False
    results = [
        RankedDocument(index, scores[index], _document(documents[index], index) if shows else UNSET) for index in order
    ]
    tokens = sum(result.query_prompt_tokens) + sum(result.document_prompt_tokens)
    answer = RerankAnswer(
        id=f"rerank-{call.request_id}",
        model=call.api.model_names[0],
        created=int(time.time()),
        usage=Usage(tokens, tokens),
        results=results,
        meta={
            "api_version": {"version": "2" if is_v2 else "1"},
            "billed_units": {"search_units": 1},
            "tokens": {"input_tokens": tokens},
        },
    )
    return Response(_encoder.encode(answer), 200, call.timing_headers(result), "application/json")


def _document(document: InputBody, index: int) -> Document | UnsetType:
    """Embeddings have no text to return: the key is left out, never null."""
    text = document if isinstance(document, str) else text_of(document, f"documents[{index}]")
    return UNSET if text is None else Document(text)
