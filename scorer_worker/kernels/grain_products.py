"""Products of a query with gathered grains (16 rows of documents each), in few shapes.

oneDNN compiles a product for every new shape, [grains * 16, dim] x [dim, Lq]: 4 to 8 ms and 0.6 MB each, of which
torch keeps the last thousand. What is asked for in real traffic has ever another shape, and each took longer to compile
than to compute. So on a CPU the grains are filled up to one of few numbers, by gathering the last one again, and a
query is read to the end of its own last grain, where the store repeats its last row. Whoever asks leaves out what was
added.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable

import torch

from engine.linear import multiply
from scorer_worker.store import ROW_GRAIN

MAX_PRODUCT = 2**20  # elements of one product, 4 MiB: long queries take smaller blocks
FEW_SHAPES = ((1, 1), (10, 2), (64, 2), (4, 32))  # grains of documents and of the query, of small products

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # [n, dim], [Lq, dim] -> [n, Lq]


class GrainProducts:
    """See the file's docstring.

    Args:
        arena: [rows, dim] of any float dtype; rows are whole grains.
        most_grains: that are multiplied at once.
    """

    def __init__(self, arena: torch.Tensor, most_grains: int) -> None:
        rows, dim = arena.shape
        self._arena = arena
        self._grains = arena.view(rows // ROW_GRAIN, ROW_GRAIN * dim)
        self._dim = dim
        self._sizes = sizes_up_to(most_grains)
        self._scratch = torch.empty(most_grains, ROW_GRAIN * dim, dtype=arena.dtype, device=arena.device)

    @property
    def most_grains(self) -> int:
        return self._sizes[-1]

    def query(self, start: int, rows: int) -> torch.Tensor:
        """Rows of the arena from `start`, a grain's first: [whole grains, dim], float32 also where they are halves."""
        return self._arena[start : start + whole_grains(rows)].float().contiguous()

    def filled(self, grains: int) -> int:
        """The number that so many grains are filled up to."""
        return self._sizes[bisect_left(self._sizes, grains)] if self._arena.device.type == "cpu" else grains

    def block(self, query_rows: int) -> int:
        """How many grains may be multiplied with a query of so many rows at once."""
        most = MAX_PRODUCT // (whole_grains(query_rows) * ROW_GRAIN)
        return self._sizes[max(0, bisect_right(self._sizes, most) - 1)]

    def gather(self, places: torch.Tensor) -> torch.Tensor:
        """[n] int64, grains of the arena -> [n * 16, dim] float32, valid until the next call."""
        gathered = torch.index_select(self._grains, 0, places, out=self._scratch[: len(places)])
        return gathered.view(-1, self._dim).float()

    def __call__(self, query: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """[whole grains of Lq, dim] float32, [n] int64 -> [n, 16, whole grains of Lq] float32."""
        count = len(places)
        missing = self.filled(count) - count
        if missing:
            places = torch.cat([places, places[-1:].expand(missing)])
        return multiply(self.gather(places), query).view(-1, ROW_GRAIN, len(query))[:count]


def few_product(arena: torch.Tensor) -> Product:
    """What multiplies a few grains with a query: to the last bit as `multiply` does, for less, where it can.

    MKL needs 8 to 20 us for what takes oneDNN 20 to 35 at these sizes. Both add up a product's elements in order as
    long as a row is short enough to be read in one go: on the machine where this was seen rows of 128 are, rows of 384
    are not. So they are compared here, at the arena's width.
    """
    if arena.device.type != "cpu":
        return multiply
    generator = torch.Generator().manual_seed(0)
    dim = arena.shape[1]
    for grains, query_grains in FEW_SHAPES:
        rows, query = (
            torch.nn.functional.normalize(torch.randn(count * ROW_GRAIN, dim, generator=generator))
            for count in (grains, query_grains)
        )
        if not torch.equal(multiply(rows, query), _plain_product(rows, query)):
            return multiply
    return _plain_product


def _plain_product(rows: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    return torch.mm(rows, query.T)


def whole_grains(rows: int) -> int:
    """Rows, rounded up to whole grains."""
    return -(-rows // ROW_GRAIN) * ROW_GRAIN


def sizes_up_to(most: int) -> list[int]:
    """Four in each doubling, so that filling up costs a tenth on average; the last one is `most`."""
    sizes, size = [], 1
    while size < most:
        sizes.append(size)
        size += 1 << max(0, size.bit_length() - 3)
    return [*sizes, most]
