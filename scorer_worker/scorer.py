"""Runs the batches it is told to: (query, document) pairs of many jobs in one call of the kernel. Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from scorer_worker.arena import Arena
from scorer_worker.kernels import make_kernel
from scorer_worker.kernels.alignment import Aligner
from scorer_worker.pairs import AlignedRows, PairGroup

__all__ = ["PairGroup", "Scorer"]


class Scorer:
    """The arena and the kernel that reads it."""

    def __init__(self, arena: Arena, kernel: str | None = None) -> None:
        self._kernel = make_kernel(arena.rows, kernel)
        self._align = Aligner(arena.rows)

    def score(self, groups: Sequence[PairGroup]) -> Sequence[float]:
        """Raw MaxSim of all pairs, group by group, in order. Entries must be filled and pinned."""
        return self._kernel(groups)

    def align(self, groups: Sequence[PairGroup]) -> AlignedRows:
        """What each query row of these pairs matched, pair after pair, in order. Entries must be filled and pinned."""
        return self._align(groups)
