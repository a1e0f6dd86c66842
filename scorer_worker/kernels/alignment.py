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

from scorer_worker.kernels.grain_products import GrainProducts
from scorer_worker.pairs import AlignedRows, PairGroup
from scorer_worker.store import ROW_GRAIN, Entry

QUERY_BLOCK = 512  # rows
BLOCK_GRAINS, BLOCK_BYTES = 512, 8 * 2**20  # gathered at a time, at most
NOWHERE = 2**31 - 1


class Aligner:
    """The contract is `reference.Reference.align`'s.

    Args:
        arena: as for `Reference`.
    """

    def __init__(self, arena: torch.Tensor) -> None:
        self._device = arena.device
        self._products = GrainProducts(
            arena, max(1, min(BLOCK_GRAINS, BLOCK_BYTES // (ROW_GRAIN * arena.shape[1] * 4)))
        )
        if arena.device.type == "cuda":
            for query_rows in (1, QUERY_BLOCK):
                rows = self._products.most_grains * ROW_GRAIN
                grains = _Grains.of([Entry(b"", 0, rows, 0, 0, False, 0, 0)], arena.device)
                self._align_block(0, query_rows, grains)
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
        grains = _Grains.of(documents, self._device)
        blocks = []
        for start in range(query.start, query.start + query.rows, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, query.start + query.rows)
            blocks.append(self._align_block(start, stop - start, grains))
        best, rows = (torch.cat(parts, 1) for parts in zip(*blocks, strict=True))
        return best, torch.minimum(rows, grains.last_rows[:, None])  # the rows that fill a grain repeat the last one

    def _align_block(self, start: int, num_rows: int, grains: _Grains) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for some rows of a query, the first of which begins a grain: [n, num_rows]."""
        query = self._products.query(start, num_rows)
        best = torch.full((len(grains.last_rows), num_rows), float("-inf"), device=query.device)
        rows = torch.full_like(best, NOWHERE, dtype=torch.int64)
        block = self._products.block(num_rows)
        for first in range(0, len(grains.places), block):
            some = slice(first, first + block)
            product = self._products(query, grains.places[some])[:, :, :num_rows]
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
