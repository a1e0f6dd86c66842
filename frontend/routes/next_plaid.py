"""POST /rerank_with_encoding, and the answer of next-plaid's /rerank: all documents, best first, with their scores."""

from __future__ import annotations

from typing import cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from frontend.call import Call, admitted
from frontend.embedding_schemas import (
    NextPlaidAnswer,
    NextPlaidRank,
    RerankWithEncodingBody,
    check_pool_factor,
    decode_rerank_with_encoding,
)
from frontend.ranking import RankingResult
from frontend.routes.score_modes import convert_scores
from frontend.schemas import CommonBody, InputBody
from frontend.turns import best_first, write_list

_encoder = msgspec.json.Encoder()


async def rerank_with_encoding(request: Request) -> Response:
    """Texts in."""
    async with admitted(request) as call:
        body = await call.decode(decode_rerank_with_encoding, RerankWithEncodingBody, ["documents"])
        call.check_model(body.model)
        check_pool_factor(body.pool_factor)
        documents: list[InputBody] = list(body.documents)
        result = await call.score(await call.make_task(body, [body.query], documents, None, ("query", "documents")))
        answer = await next_plaid_answer(call, body, result)
        return Response(_encoder.encode(answer), 200, call.timing_headers(result), "application/json")


async def next_plaid_answer(call: Call, body: CommonBody, result: RankingResult) -> NextPlaidAnswer:
    """Its own `score_mode` is raw; another one is taken from the request or the server, as everywhere."""
    scores = convert_scores(result, None, body.score_mode or call.api.config.score_mode, call.api.ranker.spec)
    order = await best_first(scores)
    results = await write_list(lambda index: NextPlaidRank(index, scores[index]), order)
    return NextPlaidAnswer(cast("list[NextPlaidRank]", results), len(scores))
