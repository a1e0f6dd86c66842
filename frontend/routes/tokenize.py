"""POST /tokenize, /detokenize: vLLM's (`prompt`) and TEI's (`inputs`); what the model's own tokenizer makes of a text.

Without markers, expansion and limits: those are `maxsimd check`'s to show. Runs in a thread, as all tokenising does.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from frontend.call import Call, admitted
from frontend.dialect import Dialect, speak
from frontend.errors import RequestFailed, invalid
from frontend.json_body import decode_body, sent_fields
from frontend.tokenizer import StatelessTokenizer
from ipc.errors import ServiceFailed
from ipc.messages import ErrorCode

_encoder = msgspec.json.Encoder()
T = TypeVar("T")


class TokenizeBody(msgspec.Struct, frozen=True):
    """vLLM's `prompt`, or TEI's `inputs`."""

    model: str | None = None
    prompt: str | None = None
    inputs: str | list[str] | None = None
    add_special_tokens: Annotated[bool | None, msgspec.Meta(description="null: true")] = None
    return_token_strs: bool | None = None


class DetokenizeBody(msgspec.Struct, frozen=True):
    """vLLM's."""

    tokens: list[int]
    model: str | None = None


class TokenizeAnswer(msgspec.Struct, frozen=True):
    """vLLM's."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeAnswer(msgspec.Struct, frozen=True):
    """vLLM's."""

    prompt: str


class TeiToken(msgspec.Struct, frozen=True):
    """TEI's; `start` and `stop` are null for special tokens, which stand nowhere in the text."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


_tokenize = msgspec.json.Decoder(TokenizeBody)
_detokenize = msgspec.json.Decoder(DetokenizeBody)


async def tokenize(request: Request) -> Response:
    """One text, or with `inputs` TEI's list of lists."""
    async with admitted(request) as call:
        sent = call.take_body()
        try:
            body = decode_body(_tokenize, sent)
        except RequestFailed:
            if set(sent_fields(sent, "inputs", "prompt")) == {"inputs"}:
                speak(request.scope, Dialect.TEI)
            raise
        call.check_model(body.model)
        tokenizer = _tokenizer_of(call)
        specials = body.add_special_tokens is not False
        if body.prompt is None and body.inputs is not None:
            speak(request.scope, Dialect.TEI)
            inputs = [body.inputs] if isinstance(body.inputs, str) else body.inputs
            call.check_count(inputs, "inputs")
            answer: object = await asyncio.to_thread(_tei_tokens, tokenizer, inputs, specials)
        elif body.prompt is not None:
            encoding = (await asyncio.to_thread(tokenizer.encode_plainly, [body.prompt], specials))[0]
            strings = encoding.tokens if body.return_token_strs else None
            answer = TokenizeAnswer(len(encoding.ids), _max_length(call), encoding.ids, strings)
        else:
            raise invalid("prompt: required", "prompt")
        return Response(_encoder.encode(answer), 200, media_type="application/json")


async def detokenize(request: Request) -> Response:
    """The text of token ids."""
    async with admitted(request) as call:
        body = decode_body(_detokenize, call.take_body())
        call.check_model(body.model)
        tokenizer = _tokenizer_of(call)
        for place, token_id in enumerate(body.tokens):
            if not 0 <= token_id < tokenizer.vocab_size:
                name = f"tokens[{place}]"
                raise invalid(f"{name}: {token_id}, expected 0 to {tokenizer.vocab_size - 1}", name)
        text = await asyncio.to_thread(tokenizer.decode, body.tokens)
        return Response(_encoder.encode(DetokenizeAnswer(text)), 200, media_type="application/json")


def _tei_tokens(tokenizer: StatelessTokenizer, inputs: list[str], specials: bool) -> list[list[TeiToken]]:
    return [
        [
            TeiToken(token_id, token, bool(special), None if special else start, None if special else stop)
            for token_id, token, special, (start, stop) in zip(
                encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
            )
        ]
        for encoding in tokenizer.encode_plainly(inputs, specials)
    ]


def _tokenizer_of(call: Call) -> StatelessTokenizer:
    ranker = call.api.ranker
    if ranker.tokenizer is not None:
        return ranker.tokenizer
    if ranker.has_encoder:
        raise ServiceFailed(ErrorCode.UNAVAILABLE, "the encoder is not ready", 1000)
    raise invalid("this server has no encoder (--no-engine), and so no tokenizer")


def _max_length(call: Call) -> int:
    spec = call.api.ranker.spec
    assert spec is not None
    return max(spec.query.max_length, spec.document.max_length)
