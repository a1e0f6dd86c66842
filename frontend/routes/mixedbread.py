"""POST /v1/reranking: mixedbread's reranker. Best first, with their inputs only if asked for."""

from __future__ import annotations

from typing import cast

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from frontend.call import admitted
from frontend.routes.score_modes import convert_scores
from frontend.schemas import MixedbreadAnswer, MixedbreadRank, RerankingBody, Usage, decode_reranking, text_of
from frontend.turns import best_first, write_list

_encoder = msgspec.json.Encoder()


async def reranking(request: Request) -> Response:
    """As /rerank, in other words."""
    async with admitted(request) as call:
        body = await call.decode(decode_reranking, RerankingBody, ["input"])
        call.check_model(body.model)
        task = await call.make_task(body, [body.query], body.input, None, ("query", "input"))
        result = await call.score(task)
        scores = convert_scores(result, None, body.score_mode or call.api.config.score_mode, call.api.ranker.spec)
        order = (await best_first(scores))[: body.top_k or None]
        shows = bool(body.return_input)

        def rank(index: int) -> MixedbreadRank:
            text = text_of(body.input[index], f"input[{index}]") if shows else None
            return MixedbreadRank(index, scores[index], UNSET if text is None else text)

        tokens = sum(result.query_prompt_tokens) + sum(result.document_prompt_tokens)
        answer = MixedbreadAnswer(
            model=call.api.model_names[0],
            usage=Usage(tokens, tokens),
            data=cast("list[MixedbreadRank]", await write_list(rank, order)),
            top_k=len(order),
            return_input=shows,
        )
        return Response(_encoder.encode(answer), 200, call.timing_headers(result), "application/json")
