"""POST /v1/ranking, /ranking: NVIDIA NIM's reranker. All passages come back, best first, with their logits."""

from __future__ import annotations

from typing import cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from frontend.call import admitted
from frontend.routes.score_modes import convert_scores
from frontend.schemas import InputBody, NimAnswer, NimRank, Usage, decode_ranking
from frontend.turns import best_first, write_list

_encoder = msgspec.json.Encoder()


async def ranking(request: Request) -> Response:
    """A long passage is cut, as everywhere else, unless `truncate` is said to be NONE."""
    async with admitted(request) as call:
        body = decode_ranking(call.take_body())
        call.check_model(body.model)
        passages: list[InputBody] = [passage.text for passage in body.passages]
        if body.truncate == "NONE" and body.truncation is None:
            body = msgspec.structs.replace(body, truncation=False)
        task = await call.make_task(body, [body.query.text], passages, None, ("query.text", "passages"))
        result = await call.score(task)
        scores = convert_scores(result, None, body.score_mode or call.api.config.score_mode, call.api.ranker.spec)
        order = await best_first(scores)
        tokens = sum(result.query_prompt_tokens) + sum(result.document_prompt_tokens)
        rankings = await write_list(lambda index: NimRank(index, scores[index]), order)
        answer = NimAnswer(cast("list[NimRank]", rankings), Usage(tokens, tokens))
        return Response(_encoder.encode(answer), 200, call.timing_headers(result), "application/json")
