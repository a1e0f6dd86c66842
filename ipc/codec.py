"""Messages to multipart frames and back.

Frame 0 is the struct in msgpack, frames 1..n are the raw buffers. Decoding checks what can be checked without knowing
the model: counts, shapes, dtypes, ranges. The service checks the rest (dim, limits). No pickle, ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, assert_never, get_args

import msgspec

from ipc.arrays import Buffer, view, view_ints
from ipc.errors import MalformedMessage
from ipc.messages import (
    KEY_BYTES,
    MAX_ALIGNED_ROWS,
    MAX_MESSAGE_BYTES,
    MAX_PAIRS,
    MAX_STRUCT_BYTES,
    MAX_TEXTS,
    Alignment,
    ArrayRef,
    Encode,
    Encoded,
    FloatDType,
    Message,
    Missing,
    Ready,
    Score,
    Scores,
    SuppliedEmbeddings,
    SuppliedTokens,
    ToClient,
    ToService,
)

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_to_service = msgspec.msgpack.Decoder(ToService)
_to_client = msgspec.msgpack.Decoder(ToClient)


def encode(message: Message, frames: Sequence[Buffer] = ()) -> list[Buffer]:
    """The multipart message: the struct, then its raw frames, uncopied."""
    return [_encoder.encode(message), *frames]


def decode_to_service(parts: Sequence[memoryview]) -> tuple[ToService, Sequence[memoryview]]:
    """A message from an API server.

    Returns:
        The message and its raw frames; every ArrayRef in it has been checked against them.

    Raises:
        MalformedMessage: the bytes are not such a message.
    """
    message = _decode(_to_service, parts)
    frames = parts[1:]
    if isinstance(message, Score):
        _check_score(message, frames)
    elif isinstance(message, Encode):
        _check_encode(message, frames)
    elif frames:
        raise MalformedMessage(f"{type(message).__name__}: unexpected frames")
    return message, frames


def decode_to_client(parts: Sequence[memoryview]) -> tuple[ToClient, Sequence[memoryview]]:
    """A message from a service; the same contract as `decode_to_service`."""
    message = _decode(_to_client, parts)
    frames = parts[1:]
    if isinstance(message, Scores):
        view(message.scores, frames, "float32", [None], "scores")
        (texts,) = _vector_length(message.rows, "rows")
        view_ints(message.rows, frames, texts, "rows")
        view_ints(message.prompt_tokens, frames, texts, "prompt_tokens")
        if message.alignment is not None:
            _check_alignment(message.alignment, frames)
    elif isinstance(message, Missing):
        view_ints(message.which, frames, None, "which")
    elif isinstance(message, Encoded):
        rows = view_ints(message.rows, frames, None, "rows")
        _check_embeddings(message.embeddings, frames, sum(rows))
    elif isinstance(message, Ready) and message.tokenizer is not None:
        view(message.tokenizer, frames, "uint8", [None], "tokenizer")
    return message, frames


def num_pairs(message: Score) -> int:
    """How many scores a Score asks for."""
    return message.pairs.shape[0] if message.pairs else message.num_queries * message.num_documents


def _decode(decoder: msgspec.msgpack.Decoder[T], parts: Sequence[memoryview]) -> T:
    if not parts:
        raise MalformedMessage("no frames")
    if sum(part.nbytes for part in parts) > MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"more than {MAX_MESSAGE_BYTES} bytes")
    if parts[0].nbytes > MAX_STRUCT_BYTES:
        raise MalformedMessage(f"frame 0: {parts[0].nbytes} bytes, at most {MAX_STRUCT_BYTES}")
    try:
        return decoder.decode(parts[0])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedMessage(f"frame 0: {error}") from None


def _check_score(message: Score, frames: Sequence[memoryview]) -> None:
    texts = message.num_queries + message.num_documents
    _check_count("texts", texts, MAX_TEXTS)
    view(message.keys, frames, "uint8", [texts, KEY_BYTES], "keys")
    if not message.num_queries or not message.num_documents:
        raise MalformedMessage("num_queries and num_documents: at least 1 each")
    _check_count("pairs", num_pairs(message), MAX_ALIGNED_ROWS if message.want_alignment else MAX_PAIRS)
    if message.pairs is not None:
        _check_pairs(message, message.pairs, frames)
    for supplied in message.supplied:
        match supplied:
            case SuppliedEmbeddings():
                count = _check_which(supplied.which, frames, texts)
                rows = view_ints(supplied.rows, frames, count, "supplied.rows")
                view_ints(supplied.prompt_tokens, frames, count, "supplied.prompt_tokens")
                _check_embeddings(supplied.embeddings, frames, sum(rows))
            case SuppliedTokens():
                count = _check_which(supplied.which, frames, texts)
                _check_tokens(supplied, frames, count)
            case _:
                assert_never(supplied)


def _check_encode(message: Encode, frames: Sequence[memoryview]) -> None:
    count = message.keys.shape[0]
    _check_count("texts", count, MAX_TEXTS)
    view(message.keys, frames, "uint8", [count, KEY_BYTES], "keys")
    _check_tokens(message, frames, count)


def _check_pairs(message: Score, pairs: ArrayRef, frames: Sequence[memoryview]) -> None:
    flat = view(pairs, frames, "int32", [None, 2], "pairs").cast("i")
    if not len(flat):
        raise MalformedMessage("pairs: at least 1")
    if min(flat) < 0 or max(flat[0::2]) >= message.num_queries or max(flat[1::2]) >= message.num_documents:
        raise MalformedMessage("pairs: an index is outside the queries or the documents")


def _check_which(ref: ArrayRef, frames: Sequence[memoryview], texts: int) -> int:
    which = view_ints(ref, frames, None, "supplied.which", high=texts - 1)
    if len(set(which)) != len(which):
        raise MalformedMessage("supplied.which: a position stands twice")
    return len(which)


def _check_tokens(tokens: SuppliedTokens | Encode, frames: Sequence[memoryview], count: int) -> None:
    lengths = view_ints(tokens.lengths, frames, count, "lengths")
    expansion = view_ints(tokens.expansion, frames, count, "expansion")
    if any(extra and extra >= length for extra, length in zip(expansion, lengths, strict=True)):
        raise MalformedMessage("expansion: no id of the text is left before it")
    view_ints(tokens.token_ids, frames, sum(lengths), "token_ids")


def _check_embeddings(ref: ArrayRef, frames: Sequence[memoryview], rows: int) -> None:
    if ref.dtype not in get_args(FloatDType):
        raise MalformedMessage(f"embeddings: dtype {ref.dtype}, expected {' or '.join(get_args(FloatDType))}")
    view(ref, frames, ref.dtype, [rows, None], "embeddings")


def _check_alignment(alignment: Alignment, frames: Sequence[memoryview]) -> None:
    (entries,) = _vector_length(alignment.document_rows, "document_rows")
    if entries > MAX_ALIGNED_ROWS:
        raise MalformedMessage(f"document_rows: {entries}, at most {MAX_ALIGNED_ROWS}")
    view_ints(alignment.document_rows, frames, entries, "document_rows")
    view(alignment.similarities, frames, "float32", [entries], "similarities")


def _check_count(name: str, count: int, limit: int) -> None:
    if not 0 < count <= limit:
        raise MalformedMessage(f"{name}: {count}, expected 1 to {limit}")


def _vector_length(ref: ArrayRef, name: str) -> list[int]:
    if len(ref.shape) != 1:
        raise MalformedMessage(f"{name}: shape {ref.shape}, expected a vector")
    return ref.shape
