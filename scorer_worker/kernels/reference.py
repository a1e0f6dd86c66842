"""MaxSim, slow and obviously right: the ground truth of every other kernel."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from scorer_worker.pairs import AlignedRows, PairGroup
from scorer_worker.store import Entry


class Reference:
    """One pair at a time, fp32.

    Args:
        arena: [arena_rows, dim] of any float dtype, where queries and documents lie. A text starts at a multiple of 16
            rows; the rows after one, up to the next multiple of 16, repeat one of its own (`Arena.write`).
    """

    def __init__(self, arena: torch.Tensor) -> None:
        self._arena = arena

    def __call__(self, groups: Sequence[PairGroup]) -> Sequence[float]:
        """MaxSim scores of queries against documents that lie anywhere in the arena.

            score of (q, d) = sum over s of  max over t of  <q[s], d[t]>     s: rows of query q, t: rows of document d

        Returns:
            As many float32 values as there are pairs, group by group, in order. A document without rows, or a query
            without rows, scores 0. The score of a pair is bitwise the same whatever else is in the call (promise P4).

        Source: Khattab & Zaharia 2020 (ColBERT), the MaxSim operator.
        """
        return [self._score(group.query, document) for group in groups for document in group.documents]

    def align(self, groups: Sequence[PairGroup]) -> AlignedRows:
        """What each query row matched: for s, the t whose <q[s], d[t]> goes into the score; of equal ones the first.

        Returns:
            For each pair, in order, as many entries as the query has rows, and none where the document has none. Those
            of a pair do not depend on what else is in the call.
        """
        aligned = AlignedRows()
        for group in groups:
            for document in group.documents:
                for row in self._rows(group.query) if document.rows else []:
                    similarities = (self._rows(document) @ row).tolist()
                    best = max(similarities)
                    aligned.extend(AlignedRows(array("i", [similarities.index(best)]), array("f", [best])))
        return aligned

    def _score(self, query: Entry, document: Entry) -> float:
        if not query.rows or not document.rows:
            return 0.0
        similarity = self._rows(query) @ self._rows(document).T  # [Lq, Ld]
        return float(similarity.max(dim=1).values.sum())

    def _rows(self, text: Entry) -> torch.Tensor:
        return self._arena[text.start : text.start + text.rows].float()
