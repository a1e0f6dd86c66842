"""What is scored: a query of the store with documents of the store. And what they are aligned to."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from scorer_worker.store import Entry

PLACE_BYTES = 8  # of `Entry.place`


def places_of(entries: Sequence[Entry]) -> bytes:
    """`Entry.place` of each, one after the other: what a CUDA kernel reads of them."""
    return b"".join([entry.place for entry in entries])


@dataclass(frozen=True, slots=True)
class PairGroup:
    """One query's pairs. Entries must be filled and pinned while a kernel runs."""

    query: Entry
    documents: Sequence[Entry]
    places: bytes = b""  # `places_of` the documents; made here where whoever calls does not have it

    def __post_init__(self) -> None:
        if not self.places:
            object.__setattr__(self, "places", places_of(self.documents))


@dataclass(frozen=True, slots=True)
class AlignedRows:
    """The entries of some pairs, one pair after the other; `ipc.messages.Alignment` says what they are."""

    document_rows: array[int] = field(default_factory=lambda: array("i"))
    similarities: array[float] = field(default_factory=lambda: array("f"))

    def extend(self, other: AlignedRows) -> None:
        """Append the entries of more pairs."""
        self.document_rows.extend(other.document_rows)
        self.similarities.extend(other.similarities)
