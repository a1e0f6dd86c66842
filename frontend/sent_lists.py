"""Lists of texts that were sent before, known by their bytes: a body that has one again is not decoded there.

Who asks about the same candidates again and again sends the same megabyte each time. To decode it, and before that to
count its commas, cost an API server more than all else that it did with the request (by hand, on a GPU's slow host: 3.6
of 12 ms); to compare it with what was sent before costs a fiftieth of that.

The body is decoded with a word in the list's place, which nobody can guess. The list itself was decoded before, and is
found only where all of its bytes are the same, so the body has it as the field's value if the word comes out as that.
For up to there the reader of both bodies is in the same state, and both a list and a word in brackets lead it from
where a value is expected to where one has ended. Anywhere else the word does not come out as a value: within a string
the first quote ends it, and no word follows a string. Of a field that comes twice the last one counts, in both.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from frontend.errors import RequestFailed
from frontend.json_body import sent_fields
from frontend.large_body import decode_in_turns

Body = TypeVar("Body", bound=msgspec.Struct)

LEAST_BODY = 2**16  # bytes; a smaller one is decoded as quickly as it is compared
MOST_LISTS = 4
MOST_BYTES = 3 * 2**20  # of a body with a list that is remembered
BEGINNING = 48  # bytes of a list by which it is looked for
WITHIN = 2**16  # bytes at the beginning of a body, where a list begins that is found
MOST_PLACES = 4  # of a list's beginning that are looked at


@dataclass(frozen=True, slots=True)
class SentList:
    """A list as it was sent, and what it was decoded to."""

    sent: bytes
    texts: Sequence[str]


@dataclass(frozen=True, slots=True)
class CutBody:
    """A body with a word in the place of a list that may be its field's value."""

    short: bytes
    word: str
    texts: Sequence[str]  # of the list

    async def decode(self, decode: Callable[[bytes], Body], kind: type[Body], lists: Sequence[str]) -> Body | None:
        """As `decode_in_turns` of the whole body; None: it is to be decoded as a whole, to whatever comes of that."""
        try:
            decoded = await decode_in_turns(decode, kind, self.short, lists)
        except RequestFailed:
            return None
        names = [name for name in lists if getattr(decoded, name) == [self.word]]
        if len(names) != 1:
            return None
        return msgspec.structs.replace(decoded, **{names[0]: self.texts})


class SentLists:
    """The last few lists that were found to repeat."""

    def __init__(self) -> None:
        self._lists: deque[SentList] = deque(maxlen=MOST_LISTS)
        self._word = secrets.token_hex(16)

    def cut(self, body: bytes) -> CutBody | None:
        """A body that seems to have one of the lists; None: it has none, or is small."""
        if len(body) < LEAST_BODY:
            return None
        for known in reversed(self._lists):
            place = next((place for place in _places(body, known.sent) if body.startswith(known.sent, place)), None)
            if place is not None:
                self._lists.remove(known)
                self._lists.append(known)
                rest = body[place + len(known.sent) :]
                return CutBody(b'%s["%s"]%s' % (body[:place], self._word.encode(), rest), self._word, known.texts)
        return None

    def takes(self, body: bytes) -> bool:
        """Whether it is of a size that pays."""
        return LEAST_BODY <= len(body) <= MOST_BYTES

    def add(self, body: bytes, field: str, texts: Sequence[str]) -> None:
        """Remember the list that a body has in a field.

        Args:
            texts: what it was decoded to. Nobody changes it from now on.
        """
        value = sent_fields(body, field).get(field)
        sent = bytes(memoryview(value)) if value is not None else b""
        if sent.startswith(b"["):
            self._lists.append(SentList(sent, texts))


def _places(body: bytes, sent: bytes) -> Iterator[int]:
    """Where a list may begin in a body."""
    place = -1
    for _ in range(MOST_PLACES):
        place = body.find(sent[:BEGINNING], place + 1, WITHIN)
        if place < 0:
            return
        yield place
