"""POST /pooling, /v1/embeddings, /v1/multi-vector, /embed_all, /encode: token embeddings out, in five vocabularies.

The embeddings are those that are scored: markers, expansion, projection and normalisation as the model was trained,
skipped tokens left out. A text is a document unless the request says that it is a query.
"""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from frontend.call import Call, admitted
from frontend.dialect import Dialect, speak
from frontend.embedding import EmbeddingResult
from frontend.embedding_formats import as_base64, as_base64_rows, as_bytes, as_numbers
from frontend.embedding_schemas import (
    BytesMetadata,
    BytesPlace,
    EmbedAllBody,
    EmbeddedText,
    EmbeddingBody,
    EmbeddingsAnswer,
    EmbeddingsBody,
    EncodeAnswer,
    EncodeBody,
    JinaAnswer,
    JinaEmbeddedText,
    PooledText,
    PoolingAnswer,
    PoolingBody,
    as_inputs,
    decode_embed_all,
    decode_embeddings_body,
    decode_encode,
    decode_pooling,
)
from frontend.errors import RequestFailed, invalid
from frontend.json_body import sent_fields
from frontend.large_body import decode_in_turns
from frontend.routes.rerank import check_direction
from frontend.schemas import ScoreUsage, Usage
from ipc.messages import Role

_encoder = msgspec.json.Encoder()
JSON = "application/json"
_JINA_FIELDS = ("input_type", "embedding_type", "return_multivector")  # whoever sends one reads `embeddings`


async def pooling(request: Request) -> Response:
    """vLLM's: numbers, base64 without shapes, or bytes with a header that says where each text's are."""
    async with admitted(request) as call:
        body = await decode_in_turns(decode_pooling, PoolingBody, call.take_body(), ["input"])
        inputs = as_inputs(body.input, "input")
        _check(call, body)
        form = body.encoding_format or "float"
        dtype = "float32" if form == "float" else body.embed_dtype or "float32"
        task = await call.make_embedding_task(body, body.input_type or "document", inputs, "input", dtype)
        if form in ("bytes", "bytes_only"):
            result, parts = await call.embed(task, lambda result: as_bytes(result, body.endianness or "native"))
            headers = {} if form == "bytes_only" else {"metadata": _metadata(call, result, body)}
            return Response(b"".join(parts), 200, headers, "application/octet-stream")
        _, answer = await call.embed(task, lambda result: _pooling_answer(call, result, body, form))
        return Response(answer, 200, media_type=JSON)


async def embeddings(request: Request) -> Response:
    """vLLM's and PyLate's `embedding`; with one of Jina's `input_type`, `embedding_type` and `return_multivector` its
    `embeddings`.
    """
    async with admitted(request) as call:
        sent = call.take_body()
        try:
            body = await decode_in_turns(decode_embeddings_body, EmbeddingsBody, sent, ["input"])
        except RequestFailed:
            if sent_fields(sent, *_JINA_FIELDS):
                speak(request.scope, Dialect.JINA)
            raise
        del sent
        if any(getattr(body, field) is not None for field in _JINA_FIELDS):
            speak(request.scope, Dialect.JINA)
            return await _jina(call, body)
        if body.encoding_format == "base64":
            raise invalid("encoding_format: base64, expected float; /pooling has base64", "encoding_format")
        inputs = as_inputs(body.input, "input")
        _check(call, body)
        role: Role = "query" if body.is_query else "document"
        task = await call.make_embedding_task(body, role, inputs, "input")
        _, answer = await call.embed(task, lambda result: _embeddings_answer(call, result))
        return Response(answer, 200, media_type=JSON)


async def multi_vector(request: Request) -> Response:
    """Jina's."""
    async with admitted(request) as call:
        body = await decode_in_turns(decode_embeddings_body, EmbeddingsBody, call.take_body(), ["input"])
        return await _jina(call, body)


async def embed_all(request: Request) -> Response:
    """TEI's: a list of lists of rows."""
    async with admitted(request) as call:
        body = await decode_in_turns(decode_embed_all, EmbedAllBody, call.take_body(), ["inputs"])
        inputs = as_inputs(body.inputs, "inputs")
        _check(call, body)
        check_direction(body.truncation_direction)
        if body.truncate is not None and body.truncation is None:
            body = msgspec.structs.replace(body, truncation=body.truncate)
        role = body.prompt_name or body.input_type or "document"
        task = await call.make_embedding_task(body, role, inputs, "inputs")
        _, answer = await call.embed(task, lambda result: _encoder.encode(as_numbers(result)))
        return Response(answer, 200, media_type=JSON)


async def encode(request: Request) -> Response:
    """next-plaid's."""
    async with admitted(request) as call:
        body = await decode_in_turns(decode_encode, EncodeBody, call.take_body(), ["texts"])
        _check(call, body)
        task = await call.make_embedding_task(body, body.input_type or "document", body.texts, "texts")
        in_base64 = body.encoding_format == "base64"
        _, answer = await call.embed(task, lambda result: _encode_answer(result, in_base64))
        return Response(answer, 200, media_type=JSON)


def _check(call: Call, body: EmbeddingBody) -> None:
    """
    Raises:
        RequestFailed: another model or another width is wanted.
    """
    call.check_model(body.model)
    spec = call.api.ranker.spec
    if body.dimensions is not None and spec is not None and body.dimensions != spec.dim:
        raise invalid(f"dimensions: {body.dimensions}, this model's embeddings have {spec.dim}", "dimensions")


async def _jina(call: Call, body: EmbeddingsBody) -> Response:
    inputs = as_inputs(body.input, "input")
    _check(call, body)
    role: Role = body.input_type or ("query" if body.is_query else "document")
    task = await call.make_embedding_task(body, role, inputs, "input")
    kind = body.embedding_type[0] if isinstance(body.embedding_type, list) else body.embedding_type
    in_base64 = (kind or body.encoding_format) == "base64"
    _, answer = await call.embed(task, lambda result: _jina_answer(call, result, in_base64))
    return Response(answer, 200, media_type=JSON)


# --- the answers, written in a thread ---------------------------------------------------------------------------------


def _pooling_answer(call: Call, result: EmbeddingResult, body: PoolingBody, form: str) -> bytes:
    data = as_numbers(result) if form == "float" else as_base64(result, body.endianness or "native")
    answer = PoolingAnswer(
        id=f"pooling-{call.request_id}",
        object="list",
        created=int(time.time()),
        model=call.api.model_names[0],
        data=[PooledText(index, each) for index, each in enumerate(data)],
        usage=_usage(result),
    )
    return _encoder.encode(answer)


def _metadata(call: Call, result: EmbeddingResult, body: PoolingBody) -> str:
    """Where each text's bytes are, in a header."""
    places = []
    start = 0
    for index, text in enumerate(result.texts):
        end = start + text.embeddings.nbytes
        shape = [text.rows, result.dim]
        places.append(BytesPlace(index, result.dtype, body.endianness or "native", start, end, shape))
        start = end
    metadata = BytesMetadata(
        id=f"pooling-{call.request_id}",
        created=int(time.time()),
        model=call.api.model_names[0].encode("ascii", "replace").decode(),  # a header is ASCII
        data=places,
        usage=_usage(result),
    )
    return _encoder.encode(metadata).decode()


def _embeddings_answer(call: Call, result: EmbeddingResult) -> bytes:
    answer = EmbeddingsAnswer(
        id=f"embd-{call.request_id}",
        object="list",
        created=int(time.time()),
        model=call.api.model_names[0],
        data=[EmbeddedText(index, each) for index, each in enumerate(as_numbers(result))],
        usage=_usage(result),
    )
    return _encoder.encode(answer)


def _jina_answer(call: Call, result: EmbeddingResult, in_base64: bool) -> bytes:
    data = as_base64_rows(result) if in_base64 else as_numbers(result)
    answer = JinaAnswer(
        model=call.api.model_names[0],
        object="list",
        usage=Usage(result.prompt_tokens, result.prompt_tokens),
        data=[JinaEmbeddedText(index, each) for index, each in enumerate(data)],
    )
    return _encoder.encode(answer)


def _encode_answer(result: EmbeddingResult, in_base64: bool) -> bytes:
    count = len(result.texts)
    if not in_base64:
        return _encoder.encode(EncodeAnswer(count, embeddings=as_numbers(result)))
    shapes = [[text.rows, result.dim] for text in result.texts]
    return _encoder.encode(EncodeAnswer(count, embeddings_b64=as_base64(result, "little"), shapes=shapes))


def _usage(result: EmbeddingResult) -> ScoreUsage:
    return ScoreUsage(result.prompt_tokens, result.prompt_tokens)
