"""Which document row each query row matches, and how well: what explains a score.

The same code on CPU and CUDA, whatever the store's dtype; products are fp32. As in `torch_packed` documents are
gathered grain by grain into a block, multiplied with the query at once, and reduced within the grains and then over
each document's; here a grain also says which of its rows it was. It costs about what scoring does. Nothing is done for
each pair by itself: on CUDA that would be launches, on a CPU threads that meet, which takes milliseconds where others
use the cores too.

What it takes of the device's memory is bounded, whatever the texts' lengths; on CUDA it is taken when the aligner is
made. A pair's alignment does not depend on what else is in the call, for the reason that `torch_packed` gives.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from engine.linear import multiply
from scorer_worker.pairs import AlignedRows, PairGroup
from scorer_worker.store import ROW_GRAIN, Entry

QUERY_BLOCK = 512  # rows
BLOCK_GRAINS, BLOCK_BYTES = 512, 8 * 2**20  # gathered at a time, at most
MAX_PRODUCT = 2**20  # elements of one product, 4 MiB
NOWHERE = 2**31 - 1


class Aligner:
    """The contract is `reference.Reference.align`'s.

    Args:
        arena: as for `Reference`.
    """

    def __init__(self, arena: torch.Tensor) -> None:
        rows, dim = arena.shape
        self._arena = arena
        self._block = max(1, min(BLOCK_GRAINS, BLOCK_BYTES // (ROW_GRAIN * dim * 4)))
        self._grains = arena.view(rows // ROW_GRAIN, ROW_GRAIN * dim)
        if arena.device.type == "cuda":
            for query_rows in (1, QUERY_BLOCK):
                grains = _Grains.of([Entry(b"", 0, self._block * ROW_GRAIN, 0, 0, False, 0)], arena.device)
                self._align_block(torch.zeros(query_rows, dim, device=arena.device), grains)
            torch.cuda.current_stream().synchronize()

    def __call__(self, groups: Sequence[PairGroup]) -> AlignedRows:
        """See `Reference.align`."""
        found: list[tuple[torch.Tensor, torch.Tensor]] = []
        for group in groups:
            documents = [document for document in group.documents if document.rows]
            if documents and group.query.rows:
                found.append(self._align(group.query, documents))
        if not found:
            return AlignedRows()
        similarities = torch.cat([best.flatten() for best, _ in found]).cpu()
        rows = torch.cat([rows.flatten() for _, rows in found]).int().cpu()
        return AlignedRows(array("i", rows.numpy().tobytes()), array("f", similarities.numpy().tobytes()))

    def _align(self, query: Entry, documents: Sequence[Entry]) -> tuple[torch.Tensor, torch.Tensor]:
        """The best similarity of each query row in each document, [n, Lq] float32, and where it is, [n, Lq] int64."""
        grains = _Grains.of(documents, self._arena.device)
        blocks = []
        for start in range(query.start, query.start + query.rows, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, query.start + query.rows)
            blocks.append(self._align_block(self._arena[start:stop].float(), grains))
        best, rows = (torch.cat(parts, 1) for parts in zip(*blocks, strict=True))
        return best, torch.minimum(rows, grains.last_rows[:, None])  # the rows that fill a grain repeat the last one

    def _align_block(self, query: torch.Tensor, grains: _Grains) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for [Lq, dim] rows of a query."""
        num_rows = len(query)
        best = torch.full((len(grains.last_rows), num_rows), float("-inf"), device=query.device)
        rows = torch.full_like(best, NOWHERE, dtype=torch.int64)
        block = max(1, min(self._block, MAX_PRODUCT // (num_rows * ROW_GRAIN)))
        for start in range(0, len(grains.places), block):
            some = slice(start, start + block)
            gathered = self._grains.index_select(0, grains.places[some]).view(-1, query.shape[1])
            product = multiply(gathered.float(), query).view(-1, ROW_GRAIN, num_rows)
            maxima, within = product.max(1)  # [grains, Lq]; of equal ones torch takes the first
            documents = grains.documents[some, None].expand_as(maxima)
            before, best = best, best.scatter_reduce(0, documents, maxima, "amax")
            rows = rows.masked_fill(best > before, NOWHERE)
            is_best = maxima == best.gather(0, documents)
            found = torch.where(is_best, within + grains.first_rows[some, None], NOWHERE)
            rows = rows.scatter_reduce(0, documents, found, "amin")
        return best, rows


@dataclass(frozen=True, slots=True)
class _Grains:
    """The grains of n documents with rows, one document after the other; tensors on the arena's device, int64."""

    places: torch.Tensor  # [grains]: which grain of the arena
    documents: torch.Tensor  # [grains]: whose
    first_rows: torch.Tensor  # [grains]: which of its document's rows comes first
    last_rows: torch.Tensor  # [n]: of the documents

    @classmethod
    def of(cls, documents: Sequence[Entry], device: torch.device) -> _Grains:
        first = torch.tensor([document.start for document in documents]) // ROW_GRAIN
        rows = torch.tensor([document.rows for document in documents])
        count = (rows + (ROW_GRAIN - 1)) // ROW_GRAIN
        owners = torch.repeat_interleave(count)
        within = torch.arange(len(owners)) - (count.cumsum(0) - count)[owners]
        both = torch.stack([first[owners] + within, owners, within * ROW_GRAIN]).to(device)
        return cls(both[0], both[1], both[2], (rows - 1).to(device))
