"""Lists of texts that are known by their bytes: a body with the very same ones is neither decoded nor walked again.

Of the time that a request with a thousand known documents of 1.4 kB took here, a quarter was spent on bytes that had
been looked at before: on counting, decoding, comparing and freeing them (by hand, two cores). So of a list that was
asked about twice the bytes are remembered too. A body that has them is decoded with one string, the token, in the
list's place; then the texts are put there.

    K1  What is decoded so is what the whole body is decoded to; else the whole body is.
    K2  Nobody learns by the time he waits that another one, with a salt or key of his own, has sent a list.
    K3  At most MOST_LISTS are kept, of MOST_RAW bytes each. A list that is not asked about twice costs nothing.

Why K1 holds. Be the body H D T, D the bytes of the known list, a JSON array; what is decoded is H ["token"] T. Nobody
knows the token, so it is neither in H nor in T. If the field's value is the list of just the token, the reader of JSON
that had read H began a list at the bracket, and ended it at the other: were it within a string, the first quote would
end that, and the token would not be a string. So H ends where a value is expected, and before T one has been read. D is
a value too, and a list of strings is decoded to the same texts in any kind of body: behind it the reader is in the same
state. A field that comes twice has its last value, in both. What is found wrong in H or T is told of the whole body.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from frontend.errors import RequestFailed
from frontend.json_body import sent_fields
from frontend.large_body import LARGE_LIST, is_list_of
from frontend.repeated_documents import MOST_BYTES, MOST_LISTS
from frontend.turns import Turns

Body = TypeVar("Body", bound=msgspec.Struct)

MOST_RAW = 2 * MOST_BYTES  # a letter that is escaped takes up to three times what it has in UTF-8
MOST_BESIDE = LARGE_LIST // 2  # bytes of a body beside its known list: they are decoded at once
COUNTED = 2**16  # bytes at a time
BEGINNING = 64  # bytes of a list by which it is looked for


@dataclass(slots=True, eq=False)
class _KnownList:
    owner: str
    texts: Sequence[object]  # strings
    field: str = ""
    raw: bytes | None = None  # its JSON; None: it has not come again since it was wanted; empty: it cannot be had
    commas: int = 0

    def find(self, body: bytes) -> int:
        """Where a body has it; -1: nowhere, or beside too much."""
        if not self.raw or not 0 <= (beside := len(body) - len(self.raw)) <= MOST_BESIDE:
            return -1
        start = body.find(self.raw[:BEGINNING], 0, beside + BEGINNING)
        return start if start >= 0 and body.startswith(self.raw, start) else -1


@dataclass(frozen=True, slots=True)
class ShortBody:
    """A body with a known list, without it."""

    body: bytes
    known: _KnownList
    _token: str

    @property
    def commas(self) -> int:
        """Of the list."""
        return self.known.commas

    def decode(self, decode: Callable[[bytes], Body]) -> Body | None:
        """What `decode` makes of the whole body; None: ask it, this is not to be had from the short one (K1)."""
        try:
            decoded = decode(self.body)
        except RequestFailed:
            return None
        if getattr(decoded, self.known.field, None) != [self._token]:
            return None
        return msgspec.structs.replace(decoded, **{self.known.field: self.known.texts})


class KnownLists:
    """The last few.

    An owner is whoever may know of each other's lists. What was sent with a salt is not kept here at all: who has sent
    none may be anybody (K2).
    """

    def __init__(self) -> None:
        self._lists: deque[_KnownList] = deque(maxlen=MOST_LISTS)
        self._token = secrets.token_hex(16)
        self._placeholder = f'["{self._token}"]'.encode()

    @staticmethod
    def takes(body_bytes: int) -> bool:
        """Whether a list is worth knowing that comes in so large a body."""
        return LARGE_LIST <= body_bytes <= MOST_RAW + MOST_BESIDE

    def want(self, owner: str, texts: Sequence[object]) -> None:
        """These texts were asked about twice: the next time their bytes are worth remembering."""
        if any(known.texts is texts and known.owner == owner for known in self._lists):
            return
        if set(map(type, texts)) <= {str} and not any(k.owner == owner and k.texts == texts for k in self._lists):
            self._lists.append(_KnownList(owner, texts))

    async def learn(self, owner: str, body: bytes, lists: Mapping[str, object]) -> None:
        """Remember the bytes of a list that is wanted.

        Args:
            body: one without a salt (K2).
            lists: what fields of it were decoded to.
        """
        wanted = [known for known in self._lists if known.raw is None and known.owner == owner]
        if not wanted or not self.takes(len(body)):
            return
        for known in wanted:
            for field, value in lists.items():
                if value == known.texts:
                    known.field, known.raw = field, b""
                    await Turns().before_step()  # all of the body is skipped in one go
                    raw = bytes(sent_fields(body, field).get(field, b""))
                    if len(raw) <= MOST_RAW and len(body) - len(raw) <= MOST_BESIDE and await is_list_of(raw, value):
                        known.raw, known.commas = raw, await _count_commas(raw)
                    break

    def shorten(self, owner: str, body: bytes) -> ShortBody | None:
        """A body that has a known list of this owner as the value of its field; None: it has none."""
        if len(body) < LARGE_LIST:
            return None
        for known in self._lists:
            if known.owner == owner and known.raw and (start := known.find(body)) >= 0:
                short = b"".join((body[:start], self._placeholder, body[start + len(known.raw) :]))
                if bytes(sent_fields(short, known.field).get(known.field, b"")) != self._placeholder:
                    return None
                return ShortBody(short, known, self._token)
        return None

    def use(self, short: ShortBody) -> None:
        """The list stays for longer than others. Not where the request has a salt: others would see it (K2)."""
        if short.known in self._lists:
            self._lists.remove(short.known)
            self._lists.append(short.known)


async def _count_commas(raw: bytes) -> int:
    """In turns: where Python counts a letter at a time, all of it takes some milliseconds."""
    turns, commas = Turns(), 0
    for start in range(0, len(raw), COUNTED):
        await turns.before_step()
        commas += raw.count(b",", start, start + COUNTED)
    return commas
