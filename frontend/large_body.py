"""A large body, decoded in turns: its texts at once keep the event loop for 1 to 9 ms a MiB (by hand, two cores).

Only where a list of plain texts is large, as it is in most. It is cut behind a text, which is found by its looks and
proven by decoding: a piece that begins between two elements of the list, and is a list by itself, ends there too. What
cannot be cut like that is decoded at once, and so is what is wrong: its fault is told in the words for a whole body.
But of a field that comes twice only the last one is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from frontend.errors import RequestFailed
from frontend.turns import Turns

Body = TypeVar("Body", bound=msgspec.Struct)

LARGE_LIST = 2**16  # bytes
# what is no larger, and seems to be no more texts and plain ones, is decoded at once: half as much again as it takes to
# find only where the list ends, which is done at once in any case
QUICK_BODY, QUICK_TEXTS = 3 * 2**20, 2048
SAMPLE = 2**14  # bytes, from which that is guessed
PIECE = 2**15  # bytes, and what is left of the text there: 10 us, and 100 of three characters each or all escaped

_QUOTE = re.compile(rb'",')
_TEXT_END = re.compile(rb'(?<!\\)",')  # the quote that ends a text, before another one; 40 times as slow to look for
_BACKSLASH = ord("\\")
_encoder = msgspec.json.Encoder()
_texts = msgspec.json.Decoder(list[str])


async def decode_in_turns(decode: Callable[[bytes], Body], kind: type[Body], body: bytes, lists: Sequence[str]) -> Body:
    """What `decode` makes of a body.

    Args:
        kind: what that is.
        lists: its fields that may be lists of strings, of none too.

    Raises:
        RequestFailed: `decode` does.
    """
    decoded = None if _is_quick(body) else await _decode_large(decode, kind, body, lists)
    return decoded if decoded is not None else decode(body)


def _is_quick(body: bytes) -> bool:
    """Whether it is not worth cutting: 0.3 ms a MiB of plain text, 1 of other scripts, 2 of escapes (by hand)."""
    if len(body) < LARGE_LIST:
        return True
    sample = body[:SAMPLE]
    is_plain = sample.isascii() and b"\\u" not in sample
    return is_plain and len(body) <= QUICK_BODY and sample.count(b'"') // 2 * len(body) <= QUICK_TEXTS * SAMPLE


async def _decode_large(
    decode: Callable[[bytes], Body], kind: type[Body], body: bytes, lists: Sequence[str]
) -> Body | None:
    """As `decode_in_turns`; None: it cannot be done so."""
    try:
        sent = {name: value for name, value in msgspec.structs.asdict(_sent(kind).decode(body)).items() if _size(value)}
        large = [name for name in lists if name in sent and _is_large_list(sent[name])]
        if not large:
            return None
        texts = {name: await _decode_texts(memoryview(sent[name])) for name in large}
        decoded = decode(_encoder.encode(sent | dict.fromkeys(large, ())))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestFailed):
        return None
    return msgspec.structs.replace(decoded, **texts)


async def _decode_texts(sent: memoryview) -> list[str]:
    """
    Raises:
        msgspec.DecodeError, UnicodeDecodeError: it is no list of strings, or was cut in the middle of one.
    """
    texts: list[str] = []
    turns = Turns()
    for piece in _pieces(sent):
        await turns.before_step()
        texts += _texts.decode(piece)
    return texts


def _is_large_list(sent: msgspec.Raw) -> bool:
    return _size(sent) >= LARGE_LIST and bytes(memoryview(sent)[:1]) == b"["


def _size(sent: msgspec.Raw) -> int:
    return len(memoryview(sent))


def _pieces(sent: memoryview) -> Iterator[bytes]:
    """Lists of some of a list's elements each."""
    start, end = 1, len(sent) - 1  # between its brackets
    while start < end:
        stop = min(_find_text_end(sent, start + PIECE), end)
        yield b"".join((b"[", sent[start:stop], b"]"))
        start = stop + 1


def _find_text_end(sent: memoryview, start: int) -> int:
    """Behind the first text that ends there or later, and before another one; without one, the end of all."""
    found = _QUOTE.search(sent, start)
    if found is not None and sent[found.start() - 1] == _BACKSLASH:
        found = _TEXT_END.search(sent, found.end())
    return found.end() - 1 if found is not None else len(sent)


@lru_cache(maxsize=16)
def _sent(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    """A decoder of the same fields as they were sent, empty where they were not."""
    nothing = msgspec.Raw(b"")
    return msgspec.json.Decoder(
        msgspec.defstruct("Sent", [(name, msgspec.Raw, nothing) for name in kind.__struct_encode_fields__])
    )
