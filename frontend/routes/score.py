"""POST /score, /v1/score: queries and documents in, a score for each pair out, in input order (vLLM's contract)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from frontend.binary_body import decode_binary
from frontend.call import Call, GivenInput, admitted
from frontend.errors import invalid
from frontend.explanation import TokenMatch, explanation_request, written
from frontend.ranking import RankingResult
from frontend.routes.score_modes import convert_scores
from frontend.schemas import (
    PAIRS_OF_FIELDS,
    SIDES,
    InputBody,
    ScoreAnswer,
    ScoreBody,
    ScoredPair,
    ScoreUsage,
    as_list,
    decode_score,
)
from frontend.turns import write_list

_encoder = msgspec.json.Encoder()


async def score(request: Request) -> Response:
    """1:1, 1:N, or N:N of equal lengths."""
    async with admitted(request) as call:
        body, queries, documents, fields = await _asked(call)
        call.check_model(body.model)
        pairs = _pairs(queries, documents, fields)
        if pairs is not None:
            queries = await call.decode_embeddings(queries, fields[0])
        documents = await call.decode_embeddings(documents, fields[1])
        task = await call.make_task(body, queries, documents, pairs, fields)
        asked = explanation_request(body.explain)
        if asked is None:
            result = await call.score(task)
            scores = _scores(call, body, pairs, result)
            data = await write_list(lambda index: ScoredPair(index, scores[index]), range(len(scores)))
            content = _encoder.encode(_answer(call, result, cast("list[ScoredPair]", data)))
            return Response(content, 200, call.timing_headers(result), "application/json")

        async def all_pairs(result: RankingResult) -> Sequence[int]:
            asked.check([result.query_rows[task.texts_of(pair)[0]] for pair in range(len(result.scores))])
            return range(len(result.scores))

        result = await call.score(replace(task, choose_aligned=all_pairs))

        def write(matches: Mapping[int, Sequence[TokenMatch]]) -> bytes:
            data = [
                msgspec.structs.replace(ScoredPair(index, score), explanation=written(matches.get(index, ())))
                for index, score in enumerate(_scores(call, body, pairs, result))
            ]
            return _encoder.encode(_answer(call, result, data))

        async with call.explained(task, result) as matches:
            content = await asyncio.to_thread(write, matches)
        return Response(content, 200, call.timing_headers(result), "application/json")


def _scores(call: Call, body: ScoreBody, pairs: Sequence[tuple[int, int]] | None, result: RankingResult) -> list[float]:
    return convert_scores(result, pairs, body.score_mode or call.api.config.score_mode, call.api.ranker.spec)


def _answer(call: Call, result: RankingResult, data: list[ScoredPair]) -> ScoreAnswer:
    tokens = sum(result.query_prompt_tokens) + sum(result.document_prompt_tokens)
    return ScoreAnswer(
        id=f"score-{call.request_id}",
        object="list",
        created=int(time.time()),
        model=call.api.model_names[0],
        data=data,
        usage=ScoreUsage(tokens, tokens),
    )


async def _asked(call: Call) -> tuple[ScoreBody, Sequence[GivenInput], Sequence[GivenInput], tuple[str, str]]:
    """The options, the two sides, and what the request calls them."""
    if call.has_binary_body:
        body, inputs = decode_binary(call.take_body(), ScoreBody)
        return body, inputs.queries, inputs.documents, ("query", "documents")
    body = await call.decode(decode_score, ScoreBody, SIDES)
    return body, *_sides(body)


def _sides(body: ScoreBody) -> tuple[list[InputBody], list[InputBody], tuple[str, str]]:
    """The two sides, and what the request calls them.

    Raises:
        RequestFailed: no pair of fields is complete.
    """
    for first, second in PAIRS_OF_FIELDS:
        left, right = getattr(body, first), getattr(body, second)
        if left is not None and right is not None:
            return as_list(left), as_list(right), (first, second)
    expected = ", ".join(f"{first} and {second}" for first, second in PAIRS_OF_FIELDS)
    raise invalid(f"body: no pair of fields is complete; expected one of {expected}")


def _pairs(
    queries: Sequence[GivenInput], documents: Sequence[GivenInput], fields: tuple[str, str]
) -> list[tuple[int, int]] | None:
    """None: one query with every document.

    Raises:
        RequestFailed: the lengths do not go together.
    """
    if len(queries) == 1:
        return None
    if len(queries) != len(documents):
        raise invalid(
            f"{fields[0]}, {fields[1]}: {len(queries)} and {len(documents)} items; expected 1 and N, or equal numbers",
            fields[1],
        )
    return [(index, index) for index in range(len(queries))]
