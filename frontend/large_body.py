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
# what is no larger, and seems to be no more texts and plain ones, is decoded at once: that takes little longer than to
# find only where the list ends, which is done at once in any case (1.2 to 1.4 times, by hand, two cores)
QUICK_BODY, QUICK_TEXTS = 3 * 2**20, 4096
SAMPLE = 2**13  # bytes of the beginning, the middle and the end, from which that is guessed
MOST_ESCAPES = 64  # in these
PIECE = 2**14  # bytes, and what is left of the text there: 7 us, and up to 150 of short ones (by hand)
MOST_QUOTES = 256  # that are looked at to find the end of one: 0.2 ms (by hand)

_QUOTE = re.compile(rb'",')  # that ends a text before another one, if it is not escaped
_BACKSLASHES = 32  # that are counted before it
_encoder = msgspec.json.Encoder()
_texts = msgspec.json.Decoder(list[str])


class _CannotBeCut(Exception):
    """It would take long to find where a text of the list ends."""


async def decode_in_turns(decode: Callable[[bytes], Body], kind: type[Body], body: bytes, lists: Sequence[str]) -> Body:
    """What `decode` makes of a body.

    Args:
        kind: what that is.
        lists: its fields that may be lists of strings, of none too.

    Raises:
        RequestFailed: `decode` does.
    """
    if len(body) < LARGE_LIST:
        return decode(body)
    await Turns().before_step()  # several may be complete in the same round
    decoded = None if _is_quick(body) else await _decode_large(decode, kind, body, lists)
    return decoded if decoded is not None else decode(body)


async def is_list_of(sent: bytes, texts: Sequence[object]) -> bool:
    """Whether the JSON of a list is decoded to these texts, in turns; no, also if it cannot be cut."""
    try:
        return await _decode_texts(memoryview(sent)) == texts
    except (msgspec.DecodeError, UnicodeDecodeError, _CannotBeCut):
        return False


def _is_quick(body: bytes) -> bool:
    """Whether it is not worth cutting, as it seems: to decode it takes 0.3 ms a MiB of plain and long texts, 1 of other
    scripts, 3 and more of escapes or of short ones (by hand, two cores).
    """
    if len(body) > QUICK_BODY or not body.isascii():
        return False
    last = len(body) - SAMPLE
    samples = b"".join(body[start : start + SAMPLE] for start in (0, last // 2, last))
    texts = samples.count(b'"') // 2
    return texts * len(body) <= QUICK_TEXTS * len(samples) and samples.count(b"\\") <= MOST_ESCAPES


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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RequestFailed, _CannotBeCut):
        return None
    return msgspec.structs.replace(decoded, **texts)


async def _decode_texts(sent: memoryview) -> list[str]:
    """
    Raises:
        msgspec.DecodeError, UnicodeDecodeError: it is no list of strings, or was cut in the middle of one.
        _CannotBeCut: see `_find_text_end`.
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
    """Behind the first text that ends there or later, and before another one; without one, the end of all.

    Raises:
        _CannotBeCut: it is not to be found among so many quotes.
    """
    for number, quote in enumerate(_QUOTE.finditer(sent, start)):
        before = bytes(sent[max(0, quote.start() - _BACKSLASHES) : quote.start()])
        if (len(before) - len(before.rstrip(b"\\"))) % 2 == 0:
            return quote.end() - 1
        if number == MOST_QUOTES:
            raise _CannotBeCut
    return len(sent)


@lru_cache(maxsize=16)
def _sent(kind: type[msgspec.Struct]) -> msgspec.json.Decoder[Any]:
    """A decoder of the same fields as they were sent, empty where they were not."""
    nothing = msgspec.Raw(b"")
    return msgspec.json.Decoder(
        msgspec.defstruct("Sent", [(name, msgspec.Raw, nothing) for name in kind.__struct_encode_fields__])
    )
