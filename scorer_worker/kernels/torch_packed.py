"""MaxSim by packed matmuls in torch: the fast kernel on a CPU.

For each query, the documents' grains (16 rows) are gathered block by block into a scratch that stays in the cache,
multiplied with the query in one matmul, and reduced 16 rows at a time; what is left is a maximum over each document's
grains. The last grain of a document is padded with a row of its own, so nothing needs a mask.

Gathering into the cache and multiplying there is as fast as multiplying in place where documents lie together, because
the matmul reads memory worse than a copy does. The product is oneDNN's (`engine.linear.multiply`): twice as fast as
`torch.mm` at these shapes on AMD's CPUs; `grain_products` keeps their number small, and has another one for small
calls. Tried and slower: a matmul per document, [Lq, rows] products, torch.cat of views, segment_reduce on rows, huge
pages for the arena. Shares of the sgemm rate: `python -m benchmarks.bench_scoring`.

Bitwise independence (P4): a row's product does not depend on how many rows are multiplied with it, as long as their
number is a multiple of 16 (`tests/scorer_worker/test_kernels.py` holds this against random batches), and a maximum has
no order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from scorer_worker.kernels.grain_products import GrainProducts, few_product, whole_grains
from scorer_worker.pairs import PairGroup
from scorer_worker.store import ROW_GRAIN, Entry

BLOCK_BYTES = 8 * 2**20  # gathered at a time: 16,384 rows of 128 floats, 5,461 of 384; more leaves the cache
MAX_BLOCK_ROWS = 16384
MAX_MAXIMA = 2**22  # elements, 16 MiB: 8,192 query rows with 260,000 of a document would have half a gigabyte
FEW_BYTES = 2**20  # of small calls' rows, gathered together: 49 against 67 us each where a hundred came at once
FEW_DOCUMENTS, FEW_PRODUCTS = 64, 2**15  # what counts as a small call, and the elements of its product


@dataclass(frozen=True, slots=True)
class _Small:
    """A group whose overhead would be more than its work."""

    place: int  # among all groups
    query: Entry
    grains: list[int]  # of its documents, as many of each, filled up
    shape: tuple[int, int, int]  # documents, rows of each, Lq


class TorchPacked:
    """The contract is `Reference`'s."""

    def __init__(self, arena: torch.Tensor) -> None:
        block_rows = min(MAX_BLOCK_ROWS, BLOCK_BYTES // (arena.shape[1] * arena.element_size()))
        self._products = GrainProducts(arena, max(1, block_rows // ROW_GRAIN))
        self._multiply_few = few_product(arena)
        self._few_grains = FEW_BYTES // (4 * arena.shape[1] * ROW_GRAIN)
        self._device = arena.device

    def __call__(self, groups: Sequence[PairGroup]) -> Sequence[float]:
        """See `Reference.__call__`."""
        scores: list[list[float]] = [[] for _ in groups]
        small: list[_Small] = []
        for place, group in enumerate(groups):
            starts = [document.start for document in group.documents]
            rows = [document.rows for document in group.documents]
            if not group.query.rows or not rows:
                scores[place] = [0.0] * len(rows)
            elif (plan := self._plan_small(place, group.query, starts, rows)) is not None:
                small.append(plan)
            else:
                scores[place] = self._score_many(group.query, starts, rows).tolist()
        for some in self._parts(small):
            self._score_small(some, scores)
        return [score for each in scores for score in each]

    def _plan_small(self, place: int, query: Entry, d_start: list[int], d_rows: list[int]) -> _Small | None:
        """A small call is all overhead, so small ones are gathered and reduced together, without index arithmetic in
        tensors. 41 against 93 us for ten documents of 16 rows alone.

        Every document is read as long as the longest, by reading its last grain again; None if that is too much.
        """
        if len(d_rows) > FEW_DOCUMENTS:
            return None
        most = (max(d_rows) + ROW_GRAIN - 1) // ROW_GRAIN
        total = most * len(d_rows)
        is_small = total <= self._products.most_grains and total * ROW_GRAIN * whole_grains(query.rows) <= FEW_PRODUCTS
        if not is_small or not min(d_rows):
            return None
        grains: list[int] = []
        for start, rows in zip(d_start, d_rows, strict=True):
            first, last = start // ROW_GRAIN, (start + rows - 1) // ROW_GRAIN
            grains += range(first, last + 1)
            grains += [last] * (most - (last + 1 - first))
        grains += grains[-1:] * (self._products.filled(total) - total)
        return _Small(place, query, grains, (len(d_rows), most * ROW_GRAIN, query.rows))

    def _parts(self, small: Sequence[_Small]) -> Iterator[list[_Small]]:
        """As many at a time as stay close to the core; one alone may be larger."""
        part: list[_Small] = []
        room = self._few_grains
        for plan in small:
            if part and len(plan.grains) > room:
                yield part
                part, room = [], self._few_grains
            part.append(plan)
            room -= len(plan.grains)
        if part:
            yield part

    def _score_small(self, small: Sequence[_Small], scores: list[list[float]]) -> None:
        """One gather for all; a product for each, as alone; one maximum and one sum for those of the same shape."""
        grains = torch.tensor([grain for plan in small for grain in plan.grains], device=self._device)
        rows = torch.split(self._products.gather(grains), [ROW_GRAIN * len(plan.grains) for plan in small])
        alike: dict[tuple[int, int, int], list[tuple[_Small, torch.Tensor]]] = {}
        for plan, some in zip(small, rows, strict=True):
            product = self._multiply_few(some, self._products.query(plan.query.start, plan.query.rows))
            wanted = plan.shape[0] * plan.shape[1]
            alike.setdefault(plan.shape, []).append((plan, product if len(product) == wanted else product[:wanted]))
        for (count, most, num_rows), found in alike.items():
            products = found[0][1] if len(found) == 1 else torch.cat([product for _, product in found])
            maxima = products.view(-1, most, products.shape[1]).amax(1)
            values: list[float] = maxima[:, :num_rows].sum(1).tolist()
            for number, (plan, _) in enumerate(found):
                scores[plan.place] = values[number * count : (number + 1) * count]

    def _score_many(self, query: Entry, d_start: list[int], d_rows: list[int]) -> torch.Tensor:
        """[n], [n] -> [n] float32."""
        first = torch.tensor(d_start, device=self._device) // ROW_GRAIN
        num_grains = (torch.tensor(d_rows, device=self._device) + (ROW_GRAIN - 1)) // ROW_GRAIN
        ends = torch.cumsum(num_grains, 0)  # [n]
        total = int(ends[-1])
        if not total:
            return torch.zeros(len(num_grains), device=self._device)
        # grain g of document j lies at first[j] + g
        documents = torch.repeat_interleave(num_grains, output_size=total)  # [total]: the document of each grain
        shift = first - (ends - num_grains)
        places = torch.arange(total, device=self._device) + shift[documents]
        best = torch.full((len(num_grains), query.rows), float("-inf"), device=self._device)
        step = max(1, MAX_MAXIMA // query.rows)
        for start in range(0, total, step):
            maxima = self._grain_maxima(query, places[start : start + step])  # [step, Lq]
            best.scatter_reduce_(0, documents[start : start + step, None].expand_as(maxima), maxima, "amax")
        scores = best.sum(1)
        return torch.where(num_grains > 0, scores, torch.zeros_like(scores))

    def _grain_maxima(self, query: Entry, places: torch.Tensor) -> torch.Tensor:
        """For each grain and query row the best similarity in the grain: [total, Lq] float32."""
        rows = self._products.query(query.start, query.rows)
        maxima = torch.empty(len(places), query.rows, device=self._device)
        block = self._products.block(query.rows)
        for start in range(0, len(places), block):
            some = places[start : start + block]
            product = self._products(rows, some)[:, :, : query.rows]
            torch.amax(product, 1, out=maxima[start : start + len(some)])
        return maxima
