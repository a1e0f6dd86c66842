"""How many values a JSON body may hold, decided before objects are made of them.

Python's objects for `{},` take fifty times its three bytes: 60 MiB of them were 3 GiB, and eleven seconds in which
nobody else was served. A body with few commas holds few values. One with many is first walked as msgspec skips values,
which makes no objects and takes a nanosecond a byte; its lists are then cut into their elements, at most so many as are
allowed.

    V1  A list of inputs has at most as many elements as a request may have documents.
    V2  A document's rows have at most MAX_NUMBERS, which are decoded one document at a time; all other lists of numbers
        (token ids, a query's rows) have as many together. An input's parts are as many as documents may be, and all of
        them together at most MAX_PARTS.
    V3  What lies beside these fields has at most MAX_OTHERS commas: there the first value of a field hides that comes
        twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import msgspec

from frontend.errors import RequestFailed, invalid
from frontend.json_body import decode_body
from frontend.turns import in_turns

FEW_COMMAS = 65_536  # so many values are decoded in 20 ms, into 10 MiB
MAX_NUMBERS = 2**21
MAX_PARTS = 65_536
MAX_OTHERS = 2**18

_PIECE = 2**20  # bytes that are looked at at once
_NOTHING = msgspec.Raw(b"")
_INPUT_FIELDS = (
    *("query", "documents", "texts", "queries", "items", "data_1", "data_2", "text_1", "text_2"),
    *("passages", "input", "inputs", "tokens"),
)


def _raw_fields(name: str, fields: tuple[str, ...]) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(msgspec.defstruct(name, [(field, msgspec.Raw, _NOTHING) for field in fields]))


_body = _raw_fields("Body", _INPUT_FIELDS)
_object = _raw_fields("Object", ("content", "embeddings", "shape"))


@lru_cache(maxsize=4)
def _elements(limit: int) -> msgspec.json.Decoder[Any]:
    """A decoder of lists that stops at the first element too many, as no limit on a list type does."""
    fields = [(f"element_{place}", msgspec.Raw, _NOTHING) for place in range(limit)]
    kind = msgspec.defstruct(f"AtMost{limit}", fields, array_like=True, forbid_unknown_fields=True, gc=False)
    return msgspec.json.Decoder(kind)


async def check_values(body: bytes, max_documents: int, known_commas: int = 0) -> None:
    """The inputs of a list in turns.

    Args:
        known_commas: of a list of texts that was taken out of the body, and checked when it came first.

    Raises:
        RequestFailed: 400, the body is no JSON object, or holds too many values; names the field.
    """
    commas = body.count(b",")
    if commas + known_commas > FEW_COMMAS:
        await _Walk(max_documents).walk(body, commas)


class _Walk:
    """One body: what it may still hold."""

    def __init__(self, max_documents: int) -> None:
        self._max_documents = max_documents
        self._numbers = MAX_NUMBERS
        self._parts = MAX_PARTS

    async def walk(self, body: bytes, commas: int) -> None:
        fields = decode_body(_body, body)
        for field in _INPUT_FIELDS:
            value = getattr(fields, field)
            commas -= _count_commas(value)
            await self._check(value, field)
        if commas > MAX_OTHERS:
            raise invalid(f"body: more than {MAX_OTHERS} values that are no inputs")

    async def _check(self, value: msgspec.Raw, field: str) -> None:
        """The value of a field: a list of inputs, or one input."""
        if not _begins(value, b"[") or _is_numbers(value):
            self._check_input(value, field)
            return
        place = 0
        async for some in in_turns(self._cut(value, field)):
            for element in some:
                self._check_input(element, f"{field}[{place}]")
                place += 1

    def _cut(self, value: msgspec.Raw, name: str) -> list[msgspec.Raw]:
        """The elements of a list."""
        try:
            elements = _elements(self._max_documents).decode(value)
        except msgspec.ValidationError:
            limit = self._max_documents
            raise invalid(f"{name}: more than {limit}, at most {limit} (--max-documents-per-request)", name) from None
        return [element for element in msgspec.structs.astuple(elements) if element is not _NOTHING]

    def _check_input(self, value: msgspec.Raw, name: str) -> None:
        if _begins(value, b"["):
            self._take_numbers(_count_commas(value), name)
        elif _begins(value, b"{") and _count_commas(value):
            self._check_object(value, name)

    def _check_object(self, value: msgspec.Raw, name: str) -> None:
        """Its text and what it may carry beside are skipped, or take no more than their bytes."""
        fields = decode_body(_object, value, name)
        if _begins(fields.content, b"["):
            self._parts -= len(self._cut(fields.content, f"{name}.content"))
            if self._parts < 0:
                raise invalid(f"{name}.content: more than {MAX_PARTS} parts in all", name)
        if _begins(fields.shape, b"["):
            self._take_numbers(_count_commas(fields.shape), f"{name}.shape")
        if _begins(fields.embeddings, b"[") and _count_commas(fields.embeddings) > MAX_NUMBERS:
            raise _too_many_numbers(f"{name}.embeddings")

    def _take_numbers(self, count: int, name: str) -> None:
        self._numbers -= count
        if self._numbers < 0:
            raise _too_many_numbers(name)


def _too_many_numbers(name: str) -> RequestFailed:
    return invalid(f"{name}: more than {MAX_NUMBERS} numbers; send embeddings in base64", name)


def _begins(value: msgspec.Raw, letter: bytes) -> bool:
    return bytes(memoryview(value)[:1]) == letter


def _is_numbers(value: msgspec.Raw) -> bool:
    """Whether there is nothing but numbers and lists of them, to the eye of who makes objects of it."""
    return not any(b'"' in piece or b"{" in piece for piece in _pieces(value))


def _count_commas(value: msgspec.Raw) -> int:
    return sum(piece.count(b",") for piece in _pieces(value))


def _pieces(value: msgspec.Raw) -> Iterator[bytes]:
    """A view cannot be searched; to copy all of it would double the body."""
    view = memoryview(value)
    return (bytes(view[start : start + _PIECE]) for start in range(0, len(view), _PIECE))
