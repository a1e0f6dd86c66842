"""From a request for embeddings to the embeddings: tokenise, then Encode in parts. Nothing is looked up or kept.

M1  A request makes at most MAX_ANSWER_BYTES of embeddings; more is a 400.
M2  All requests of this process together hold at most that much, from their first part until the answer is written.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from frontend.byte_budget import ByteBudget
from frontend.encoding import PART_TEXTS, EncodedText, TokenizedText, encode, tokenise
from frontend.errors import invalid
from frontend.fair_threads import FairThreads
from frontend.run_all import run_all
from frontend.tokenizer import StatelessTokenizer
from frontend.turns import end_turn
from ipc.arrays import ITEM_BYTES
from ipc.client import ServiceClient
from ipc.errors import ServiceFailed
from ipc.messages import ErrorCode, FloatDType, Role

MAX_ANSWER_BYTES = 64 * 2**20  # as they come from the encoder; as JSON numbers they are five times as much
PART_BYTES = 4 * 2**20  # of embeddings in one Encode
PARTS_IN_FLIGHT = 2  # of one request

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EmbeddingTask:
    """Texts of one role to encode. A text that is given as token ids is complete: special tokens, markers and all."""

    inputs: Sequence[str | Sequence[int]]
    keys: Sequence[bytes]  # the 16-byte name of each input's embeddings
    role: Role
    dtype: FloatDType
    client: bytes  # 8 bytes: whose turn it is
    deadline: float  # of time.monotonic()
    limit: int  # tokens of a text
    truncation: bool  # False: a text that is too long fails the request
    names: Sequence[str]  # what the user's request calls each input


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """Token embeddings in the order of the inputs: the rows that are scored, skipped tokens left out."""

    texts: Sequence[EncodedText]
    dim: int
    dtype: FloatDType
    prompt_tokens: int
    encoded_tokens: int
    tokenize_seconds: float
    encode_seconds: float


class Embedder:
    """Encodes for the routes; the service with the encoder does the work."""

    def __init__(self, service: ServiceClient, threads: FairThreads) -> None:
        self._service = service
        self._threads = threads
        self._budget = ByteBudget(MAX_ANSWER_BYTES)

    async def embed(
        self,
        task: EmbeddingTask,
        tokenizer: StatelessTokenizer,
        fingerprint: bytes,
        dim: int,
        write: Callable[[EmbeddingResult], T],
    ) -> tuple[EmbeddingResult, T]:
        """The embeddings, and what `write` makes of them: it runs in another thread, while their memory is held.

        Args:
            fingerprint: of the tokenizer's model.

        Raises:
            ModelChanged: the service has another model.
            RequestFailed: an input is wrong or too long, or they are too many; names the field.
            ServiceFailed: they could not be encoded in time, or at all.
        """
        started = time.monotonic()
        texts = await self._tokenise(task, tokenizer)
        await end_turn(len(texts))
        tokenized = time.monotonic()
        row_bytes = dim * ITEM_BYTES[task.dtype]
        size = sum(len(text.token_ids) for text in texts) * row_bytes
        if size > MAX_ANSWER_BYTES:
            field = task.names[0].partition("[")[0]
            raise invalid(f"{field}: {size} bytes of embeddings, at most {MAX_ANSWER_BYTES} in one answer", field)
        async with self._budget.hold(size):
            await end_turn(len(texts))
            encoded = await self._encode(task, texts, row_bytes, fingerprint)
            await end_turn(len(texts))
            result = EmbeddingResult(
                texts=encoded,
                dim=dim,
                dtype=task.dtype,
                prompt_tokens=sum(text.prompt_tokens for text in texts),
                encoded_tokens=sum(len(text.token_ids) for text in texts),
                tokenize_seconds=tokenized - started,
                encode_seconds=time.monotonic() - tokenized,
            )
            return result, await asyncio.to_thread(write, result)

    async def _tokenise(self, task: EmbeddingTask, tokenizer: StatelessTokenizer) -> list[TokenizedText]:
        places = [place for place, value in enumerate(task.inputs) if isinstance(value, str)]

        def string(place: int) -> str:
            value = task.inputs[place]
            assert isinstance(value, str)
            return value

        await end_turn(len(places))
        name = task.names.__getitem__
        in_thread = partial(self._threads.run, task.client, object())
        made = await tokenise(in_thread, tokenizer, task.role, places, string, name, task.limit, task.truncation)
        await end_turn(len(places))
        by_place = dict(zip(places, made, strict=True))
        return [
            by_place[place] if isinstance(value, str) else _cut_ids(task, place, value)
            for place, value in enumerate(task.inputs)
        ]

    async def _encode(
        self, task: EmbeddingTask, texts: Sequence[TokenizedText], row_bytes: int, fingerprint: bytes
    ) -> list[EncodedText]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + task.deadline - time.monotonic()
        turns = asyncio.Semaphore(PARTS_IN_FLIGHT)

        async def one(part: range) -> list[EncodedText]:
            some = slice(part.start, part.stop)
            async with turns:
                try:
                    return await encode(
                        self._service,
                        task.role,
                        texts[some],
                        task.keys[some],
                        task.client,
                        deadline,
                        task.dtype,
                        fingerprint,
                    )
                except ServiceFailed as error:
                    raise _explain(error, task.names[some]) from None

        done = await run_all([one(part) for part in _parts(texts, row_bytes)])
        return [text for part in done for text in part]


def _parts(texts: Sequence[TokenizedText], row_bytes: int) -> Iterator[range]:
    """Ranges of at most PART_TEXTS texts whose embeddings are at most PART_BYTES, or a single text's."""
    start = size = 0
    for place, text in enumerate(texts):
        own = len(text.token_ids) * row_bytes
        if place > start and (size + own > PART_BYTES or place - start == PART_TEXTS):
            yield range(start, place)
            start, size = place, 0
        size += own
    yield range(start, len(texts))


def _cut_ids(task: EmbeddingTask, place: int, token_ids: Sequence[int]) -> TokenizedText:
    """
    Raises:
        RequestFailed: they are too many and must not be cut, or none.
    """
    name = task.names[place]
    if not token_ids:
        raise invalid(f"{name}: no token ids", name)
    if len(token_ids) > task.limit and not task.truncation:
        raise invalid(f"{name}: more than {task.limit} tokens, and truncation is false", name)
    return TokenizedText(array("i", token_ids[: task.limit]), 0)


def _explain(error: ServiceFailed, names: Sequence[str]) -> Exception:
    """An error about one text, in the words of the user's request."""
    if error.code is not ErrorCode.INVALID_REQUEST or error.which is None or error.which >= len(names):
        return error
    name = names[error.which]
    return invalid(f"{name}: {error.message}", name)
