"""MaxSim by packed matmuls in torch: the fast kernel on a CPU.

For each query, the documents' grains (16 rows) are gathered block by block into a scratch that stays in the cache,
multiplied with the query in one matmul, and reduced 16 rows at a time; what is left is a maximum over each document's
grains. The last grain of a document is padded with a row of its own, so nothing needs a mask.

Gathering into the cache and multiplying there is as fast as multiplying in place where documents lie together, because
the matmul reads memory worse than a copy does. The product is oneDNN's (`engine.linear.multiply`): twice as fast as
`torch.mm` at these shapes on AMD's CPUs. Tried and slower: a matmul per document, [Lq, rows] products, torch.cat of
views, segment_reduce on rows, huge pages for the arena. Shares of the sgemm rate: `python -m benchmarks.bench_scoring`.

Bitwise independence (P4): a row's product does not depend on how many rows are multiplied with it, as long as their
number is a multiple of 16 (`tests/scorer_worker/test_kernels.py` holds this against random batches), and a maximum has
no order.
"""

from __future__ import annotations

import torch

from engine.linear import multiply
from scorer_worker.store import ROW_GRAIN

BLOCK_BYTES = 6 * 2**20  # gathered at a time: 12,288 rows of 128 floats, 4,096 of 384; more leaves the cache
MAX_BLOCK_ROWS = 8192
MAX_PRODUCT = 2**20  # elements of one product: long queries take smaller blocks


class TorchPacked:
    """The contract is `Reference`'s."""

    def __init__(self, arena: torch.Tensor) -> None:
        rows, dim = arena.shape
        self._grains = arena.view(rows // ROW_GRAIN, ROW_GRAIN * dim)
        self._dim = dim
        block = max(1, min(MAX_BLOCK_ROWS, BLOCK_BYTES // (dim * arena.element_size())) // ROW_GRAIN)
        self._scratch = torch.empty(block, ROW_GRAIN * dim, dtype=arena.dtype, device=arena.device)

    def __call__(
        self,
        q: torch.Tensor,
        cu_seqlens_q: list[int],
        d_start: torch.Tensor,
        d_rows: torch.Tensor,
        pair_q: torch.Tensor,
    ) -> torch.Tensor:
        """See `Reference.__call__`."""
        scores = torch.zeros(len(pair_q), device=q.device)
        num_grains = (d_rows + ROW_GRAIN - 1) // ROW_GRAIN
        pairs_of = torch.bincount(pair_q, minlength=len(cu_seqlens_q) - 1).tolist()
        first = 0
        for query, count in enumerate(pairs_of):
            pairs = slice(first, first + count)
            rows = slice(cu_seqlens_q[query], cu_seqlens_q[query + 1])
            if count and rows.stop > rows.start:
                scores[pairs] = self._score_one_query(q[rows], d_start[pairs], num_grains[pairs])
            first += count
        return scores

    def _score_one_query(self, query: torch.Tensor, d_start: torch.Tensor, num_grains: torch.Tensor) -> torch.Tensor:
        """[Lq, dim], [n], [n] -> [n] float32."""
        ends = torch.cumsum(num_grains, 0)  # [n]
        total = int(ends[-1])
        if not total:
            return torch.zeros(len(num_grains), device=query.device)
        # grain g of document j lies at d_start[j] / 16 + g
        documents = torch.repeat_interleave(num_grains, output_size=total)  # [total]: the document of each grain
        shift = d_start // ROW_GRAIN - (ends - num_grains)
        places = torch.arange(total, device=query.device) + shift[documents]
        maxima = self._grain_maxima(query, places)  # [total, Lq]
        best = maxima.new_full((len(num_grains), len(query)), float("-inf"))
        best.scatter_reduce_(0, documents[:, None].expand_as(maxima), maxima, "amax")
        scores = best.sum(1)
        return torch.where(num_grains > 0, scores, torch.zeros_like(scores))

    def _grain_maxima(self, query: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """For each grain and query row the best similarity in the grain: [total, Lq] float32."""
        query = query.float().contiguous()  # halves are multiplied in fp32
        num_rows = len(query)
        maxima = torch.empty(len(places), num_rows, device=query.device)
        block = max(1, min(len(self._scratch), MAX_PRODUCT // (num_rows * ROW_GRAIN)))
        for start in range(0, len(places), block):
            some = places[start : start + block]
            rows = torch.index_select(self._grains, 0, some, out=self._scratch[: len(some)])
            product = multiply(rows.view(-1, self._dim).float(), query)  # [rows, Lq]
            torch.amax(product.view(len(some), ROW_GRAIN, num_rows), 1, out=maxima[start : start + len(some)])
        return maxima
