"""One `Score` on its way through the worker, from its frames to its answer.

A job is in one state at a time; `Worker` moves it, in one function.

    WAITING    for room in the store; holds nothing but its message
    ENCODING   holds its entries; some of them are not filled yet
    SCORING    all its entries are filled; the batcher hands out its pairs
"""

from __future__ import annotations

import enum
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from ipc.arrays import ITEM_BYTES, split_keys
from ipc.codec import num_pairs
from ipc.messages import Role, Score, SuppliedEmbeddings, SuppliedTokens
from ipc.running import RequestName
from ipc.service import Request
from scorer_worker.pairs import AlignedRows
from scorer_worker.recency import Ints
from scorer_worker.store import Entry, slots_of

NO_SLOTS = slots_of(())


class JobState(enum.Enum):
    """See the table on top."""

    WAITING = "waiting"
    ENCODING = "encoding"
    SCORING = "scoring"


class SuppliedRows(msgspec.Struct, frozen=True, gc=False):
    """One text's embeddings, [rows, dim] of `dtype`, as they came."""

    position: int  # in the key frame
    embeddings: memoryview
    dtype: str
    rows: int
    prompt_tokens: int
    keep: bool


class SuppliedIds(msgspec.Struct, frozen=True, gc=False):
    """One text's token ids, for the encoder that the worker hosts."""

    position: int
    role: Role
    token_ids: memoryview  # int32
    expansion: int
    rows: int  # that are scored


@dataclass(slots=True, eq=False)
class Job:
    """What a `Score` asks for, and how far it is."""

    request: Request
    message: Score
    keys: list[bytes]
    is_unique: bool  # whether no key comes twice
    supplied: dict[bytes, SuppliedRows | SuppliedIds]
    num_pairs: int
    is_suspect: bool
    arrived: float
    state: JobState = JobState.WAITING
    pinned: Sequence[Entry] = ()  # once each; of unique keys in their order
    slots: Ints = field(default_factory=lambda: NO_SLOTS)  # of these
    texts: Sequence[Entry] = ()  # the entry of each key, as the key frame has them
    text_places: bytes = b""  # `places_of` these
    rows: array[int] = field(default_factory=lambda: array("i"))  # of each of these
    prompt_tokens: array[int] = field(default_factory=lambda: array("i"))  # likewise
    unfilled: set[bytes] = field(default_factory=set)  # keys of entries that are being encoded
    scores: array[float] = field(default_factory=lambda: array("f"))
    scored: int = 0  # pairs
    aligned: AlignedRows | None = None  # of these, where the message wants it
    without_room_since: float | None = None  # it was its turn, and there was none
    admitted: float = 0.0
    score_seconds: float = 0.0

    @property
    def name(self) -> RequestName:
        return self.request.name

    def places(self) -> dict[bytes, int]:
        """Of each key its first position in the key frame."""
        if self.is_unique:
            return dict(zip(self.keys, range(len(self.keys)), strict=True))
        return dict(zip(reversed(self.keys), reversed(range(len(self.keys))), strict=True))


CountRows = Callable[[Role, memoryview, memoryview], Sequence[int]]


def read_job(request: Request, is_suspect: bool, now: float, count_rows: CountRows | None = None) -> Job:
    """A job from a decoded `Score`, whose arrays have been checked by the codec.

    Args:
        count_rows: (role, token ids, lengths) -> how many rows of each text are scored; None: all of them.
    """
    message = request.message
    assert isinstance(message, Score)
    frames = request.frames
    keys = split_keys(frames[message.keys.frame - 1])
    supplied: dict[bytes, SuppliedRows | SuppliedIds] = {}
    for part in message.supplied:
        if isinstance(part, SuppliedEmbeddings):
            supplied.update((keys[text.position], text) for text in _read_rows(part, request))
        else:
            supplied.update((keys[text.position], text) for text in _read_ids(part, request, count_rows))
    is_unique = len(set(keys)) == len(keys)
    return Job(request, message, keys, is_unique, supplied, num_pairs(message), is_suspect, now)


def _read_rows(part: SuppliedEmbeddings, request: Request) -> list[SuppliedRows]:
    which, rows, prompt_tokens = (
        request.frames[ref.frame - 1].cast("i") for ref in (part.which, part.rows, part.prompt_tokens)
    )
    data = request.frames[part.embeddings.frame - 1]
    row_bytes = part.embeddings.shape[1] * ITEM_BYTES[part.embeddings.dtype]
    texts = []
    offset = 0
    for position, num_rows, tokens in zip(which, rows, prompt_tokens, strict=True):
        end = offset + num_rows * row_bytes
        texts.append(SuppliedRows(position, data[offset:end], part.embeddings.dtype, num_rows, tokens, part.keep))
        offset = end
    return texts


def _read_ids(part: SuppliedTokens, request: Request, count_rows: CountRows | None) -> list[SuppliedIds]:
    which, lengths, expansion, token_ids = (
        request.frames[ref.frame - 1].cast("i") for ref in (part.which, part.lengths, part.expansion, part.token_ids)
    )
    rows = count_rows(part.role, token_ids, lengths) if count_rows is not None else lengths
    texts = []
    offset = 0
    for position, length, extra, scored in zip(which, lengths, expansion, rows, strict=True):
        texts.append(SuppliedIds(position, part.role, token_ids[offset : offset + length], extra, scored))
        offset += length
    return texts
