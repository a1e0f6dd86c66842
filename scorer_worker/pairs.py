"""What is scored: a query of the store with documents of the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scorer_worker.store import Entry


@dataclass(frozen=True, slots=True)
class PairGroup:
    """One query's pairs. Entries must be filled and pinned while a kernel runs."""

    query: Entry
    documents: Sequence[Entry]
