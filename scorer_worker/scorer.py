"""Runs the batches it is told to: (query, document) pairs of many jobs in one call of the kernel. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scorer_worker.arena import Arena
from scorer_worker.kernels import make_kernel
from scorer_worker.store import Entry


@dataclass(frozen=True, slots=True)
class PairGroup:
    """One query's pairs."""

    query: Entry
    documents: Sequence[Entry]


class Scorer:
    """The arena and the kernel that reads it."""

    def __init__(self, arena: Arena, kernel: str | None = None) -> None:
        self._rows = arena.rows
        self._kernel = make_kernel(arena.rows, kernel)

    def score(self, groups: Sequence[PairGroup]) -> list[float]:
        """Raw MaxSim of all pairs, group by group, in order. Entries must be filled and pinned."""
        queries = [self._rows[group.query.start : group.query.start + group.query.rows] for group in groups]
        cu_seqlens_q, cu_pairs = [0], [0]
        for group in groups:
            cu_seqlens_q.append(cu_seqlens_q[-1] + group.query.rows)
            cu_pairs.append(cu_pairs[-1] + len(group.documents))
        scores = self._kernel(
            queries[0] if len(queries) == 1 else torch.cat(queries),
            cu_seqlens_q,
            [document.start for group in groups for document in group.documents],
            [document.rows for group in groups for document in group.documents],
            cu_pairs,
        )
        result: list[float] = scores.tolist()
        return result
