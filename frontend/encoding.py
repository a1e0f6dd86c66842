"""From texts to token ids, and from those to token embeddings: the steps that scoring and embeddings out share."""

from __future__ import annotations

from array import array
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from itertools import chain

import msgspec

from frontend.division import TOKENISING_THREADS
from frontend.run_all import run_all
from frontend.tokenizer import BATCH_CHARACTERS, StatelessTokenizer, TokenizedTexts, first_beginning
from ipc.arrays import ITEM_BYTES, FrameWriter
from ipc.client import Frames, ServiceClient
from ipc.errors import ServiceFailed
from ipc.messages import Encode, Encoded, ErrorCode, FloatDType, Role

TOKENISE_TEXTS = 32  # in one piece of a thread's work: 1 to 5 ms (by hand), which others wait for
PIECES_AT_ONCE = TOKENISING_THREADS  # of one request's part
PART_TEXTS = 128  # to encode in one message: to read and queue one costs its service 10 us or so, and others wait

InThread = Callable[[Callable[[], TokenizedTexts]], Awaitable[TokenizedTexts]]


class TokenizedText(msgspec.Struct, gc=False):
    """One text's ids; the last `expansion` of them are expansion rows."""

    token_ids: array[int]
    expansion: int

    @property
    def prompt_tokens(self) -> int:
        return len(self.token_ids) - self.expansion


class EncodedText(msgspec.Struct, gc=False):
    """One text's token embeddings, [rows, dim] of the dtype that was asked for, little-endian."""

    embeddings: memoryview
    rows: int


async def tokenise(
    in_thread: InThread,
    tokenizer: StatelessTokenizer,
    role: Role,
    texts: Sequence[int],
    string: Callable[[int], str],
    name: Callable[[int], str],
    limit: int,
    truncation: bool,
) -> list[TokenizedText]:
    """The ids of texts of one role, made in other threads; the rest as `StatelessTokenizer.encode`.

    Args:
        in_thread: has a piece of this work done.
        texts: their numbers.
        string: what a text says.
        name: what a user calls it.
    """
    parts = list(pieces(texts, string, first_beginning(limit)))
    made: list[list[TokenizedText]] = [[] for _ in parts]
    numbered = iter(enumerate(parts))

    async def work() -> None:
        for number, some in numbered:
            strings, names = [string(text) for text in some], [name(text) for text in some]
            result = await in_thread(partial(tokenizer.encode, role, strings, limit, truncation, names))
            made[number] = list(_split_ids(result))

    if len(parts) <= 1:
        await work()
    else:
        await run_all([work() for _ in range(PIECES_AT_ONCE)])
    return list(chain.from_iterable(made))


def _split_ids(result: TokenizedTexts) -> Iterator[TokenizedText]:
    offset = 0
    for length, expansion in zip(result.lengths, result.expansion, strict=True):
        yield TokenizedText(result.token_ids[offset : offset + length], expansion)
        offset += length


def pieces(texts: Sequence[int], string: Callable[[int], str], longest: int) -> Iterator[Sequence[int]]:
    """Texts that are tokenised in one go: at most TOKENISE_TEXTS, of BATCH_CHARACTERS together, or a single one.

    Args:
        longest: characters of a text that are tokenised, but for a few.
    """
    start = size = 0
    for place, text in enumerate(texts):
        share = min(len(string(text)), longest)
        if place > start and (size + share > BATCH_CHARACTERS or place - start == TOKENISE_TEXTS):
            yield texts[start:place]
            start, size = place, 0
        size += share
    if start < len(texts):
        yield texts[start:]


async def encode(
    service: ServiceClient,
    role: Role,
    texts: Sequence[TokenizedText],
    keys: Sequence[bytes],
    client: bytes,
    deadline: float,
    dtype: FloatDType = "float32",
    fingerprint: bytes | None = None,
) -> list[EncodedText]:
    """Have a service encode tokenised texts.

    Args:
        keys: equal ones are encoded once, whoever asks.
        client: whose turn it is.
        deadline: in loop time.
        fingerprint: of the model that tokenised them; None: whichever there is.

    Raises:
        ModelChanged: the service has another model.
        ServiceFailed: there is no answer; `which` is the place of the text to blame.
    """
    writer = FrameWriter()
    token_ids = concatenate(texts)
    message = Encode(
        epoch=0,
        request_id=0,
        client=client,
        budget_ms=0,
        role=role,
        keys=writer.add_keys(keys),
        lengths=writer.add_ints(len(text.token_ids) for text in texts),
        expansion=writer.add_ints(text.expansion for text in texts),
        token_ids=writer.add_ints(token_ids),
        reply=dtype,
    )
    answer, frames = await service.request(message, writer.frames, deadline, len(token_ids), fingerprint)
    if not isinstance(answer, Encoded) or answer.embeddings.dtype != dtype:
        raise ServiceFailed(ErrorCode.INTERNAL, f"the {service.name} answered an Encode with {type(answer).__name__}")
    return list(_cut_rows(answer, frames, len(texts)))


def concatenate(texts: Sequence[TokenizedText]) -> array[int]:
    """The ids of all texts, one after the other."""
    token_ids = array("i")
    for text in texts:
        token_ids.extend(text.token_ids)
    return token_ids


def _cut_rows(answer: Encoded, frames: Frames, count: int) -> Iterator[EncodedText]:
    """The texts' embeddings, as views of the one frame they came in."""
    rows = frames[answer.rows.frame - 1].cast("i")
    if len(rows) != count:
        raise ServiceFailed(ErrorCode.INTERNAL, "the encoder answered with another number of texts")
    data = frames[answer.embeddings.frame - 1]
    row_bytes = answer.embeddings.shape[1] * ITEM_BYTES[answer.embeddings.dtype]
    offset = 0
    for num_rows in rows:
        yield EncodedText(data[offset : offset + num_rows * row_bytes], num_rows)
        offset += num_rows * row_bytes
