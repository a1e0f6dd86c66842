"""Which document row each query row matches, and how well: what explains a score.

One pair at a time, unlike scoring: alignment is asked for a few results that somebody looks at, and so it does not
depend on what else is in the batch. On a CPU a small pair takes some 20 us beside its product; on CUDA four launches,
and the host waits once, at the end of a call. The same code on both, whatever the store's dtype; products are fp32.

A query and a document are multiplied in blocks, so that what this takes of the device's memory is fixed, whatever the
texts' lengths. On CUDA it is taken when the aligner is made.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from engine.linear import multiply
from scorer_worker.pairs import AlignedRows, PairGroup
from scorer_worker.store import Entry

QUERY_BLOCK, DOCUMENT_BLOCK = 512, 2048  # rows; their product takes 4 MiB


class Aligner:
    """The contract is `reference.Reference.align`'s.

    Args:
        arena: [rows, dim] of any float dtype, where queries and documents lie.
    """

    def __init__(self, arena: torch.Tensor) -> None:
        self._arena = arena
        if arena.device.type == "cuda":
            longest = torch.zeros(DOCUMENT_BLOCK, arena.shape[1], device=arena.device)
            _align_block(longest[:QUERY_BLOCK].clone(), longest)
            torch.cuda.current_stream().synchronize()

    def __call__(self, groups: Sequence[PairGroup]) -> AlignedRows:
        """See `Reference.align`."""
        places: list[torch.Tensor] = []
        similarities: list[torch.Tensor] = []
        for group in groups:
            for document in group.documents:
                if not group.query.rows or not document.rows:
                    continue
                for start in range(0, group.query.rows, QUERY_BLOCK):
                    stop = min(start + QUERY_BLOCK, group.query.rows)
                    best, at = self._align(self._rows(group.query, start, stop), document)
                    similarities.append(best)
                    places.append(at)
        if not places:
            return AlignedRows()
        return AlignedRows(
            array("i", torch.cat(places).int().cpu().numpy().tobytes()),
            array("f", torch.cat(similarities).cpu().numpy().tobytes()),
        )

    def _align(self, query: torch.Tensor, document: Entry) -> tuple[torch.Tensor, torch.Tensor]:
        """[block, dim] -> [block] float32: the best similarity of each query row; [block] int64: where it is."""
        best, at = _align_block(query, self._rows(document, 0, min(DOCUMENT_BLOCK, document.rows)))
        for start in range(DOCUMENT_BLOCK, document.rows, DOCUMENT_BLOCK):
            rows = self._rows(document, start, min(start + DOCUMENT_BLOCK, document.rows))
            values, places = _align_block(query, rows)
            at = torch.where(values > best, places + start, at)  # of equal ones the first
            best = torch.maximum(values, best)
        return best, at

    def _rows(self, text: Entry, start: int, stop: int) -> torch.Tensor:
        return self._arena[text.start + start : text.start + stop].float()


def _align_block(query: torch.Tensor, document: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[Lq, dim], [Ld, dim] float32 -> [Lq] float32, [Lq] int64"""
    best = multiply(query, document).max(1)  # of equal ones torch takes the first
    return best.values, best.indices
