"""The host side of `gluon_maxsim`. `triton_packed` uses it where a call has long queries.

Gluon is an experimental part of Triton: whether the installed one is known to work is asked before this is imported,
and what it computes is compared with torch's own products before it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from triton.experimental.gluon import language
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from scorer_worker.kernels.gluon_maxsim import BLOCK_D, BLOCK_Q, PART, RECORD, maxsim_long
from scorer_worker.pairs import PairGroup
from scorer_worker.store import Entry, whole_grains

CHECKED_QUERIES = (129, 300, 1025)  # rows; one block that is not full, two blocks, five
CHECKED_DOCUMENTS = (1, 127, 128, 300, 1000)
MOST_ERROR = 1e-5  # of a row's product: what is multiplied is the same, and sums are of 32 bits

_log = logging.getLogger("maxsimd.worker")


class LongQueries:
    """`maxsim_long`, compiled and loaded, for pairs of one launch after the other.

    Args:
        arena: [rows, dim] float16 or bfloat16, on CUDA.
        table, scores: any, of the types of a launch's.
        most_pairs: of a launch.
        scratch_rows: query rows of a launch, over all its pairs; one pair may have more.
    """

    def __init__(
        self, arena: torch.Tensor, table: torch.Tensor, scores: torch.Tensor, most_pairs: int, scratch_rows: int
    ) -> None:
        self._programs = torch.cuda.get_device_properties(arena.device).multi_processor_count
        self._rows = _tiles_of(arena)
        self._scratch = torch.full((scratch_rows,), float("-inf"), device=arena.device)
        self._arrivals = torch.zeros(most_pairs, dtype=torch.int32, device=arena.device)
        self._side = torch.cuda.Stream(arena.device, priority=-1)  # type: ignore[no-untyped-call]  # as scoring has
        self._before, self._after = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]
        pointers = (table.view(torch.int64), self._scratch, self._arrivals, scores)
        self._compiled: Any = maxsim_long[(1,)](*self._rows, *pointers, 0, 0, num_warps=4)

    @contextmanager
    def beside(self, stream: torch.cuda.Stream) -> Iterator[torch.cuda.Stream]:
        """A stream beside this one, which waits for it at the end, whatever ends it."""
        self._before.record(stream)
        self._side.wait_event(self._before)
        try:
            yield self._side
        finally:
            self._after.record(self._side)
            stream.wait_event(self._after)

    def cut(self, groups: Sequence[PairGroup]) -> tuple[bytes, int, int]:
        """The work of these pairs, cut into equal shares.

        Returns:
            Records, the tiles of a share, and all tiles, as `maxsim_long` takes them.
        """
        places = np.empty((2, sum([len(group.documents) for group in groups])), np.int64)
        places[0] = np.frombuffer(b"".join([group.places for group in groups]), np.int64)
        places[1] = np.frombuffer(b"".join([group.query.place * len(group.documents) for group in groups]), np.int64)
        d_rows, q_rows = places >> 32
        tiles = np.maximum(-(-d_rows // BLOCK_D.value), 1)
        tiles *= np.maximum(-(-q_rows // BLOCK_Q.value), 1)
        ends = np.cumsum(tiles)
        share = -(-int(ends[-1]) // self._programs)
        pairs = np.arange(len(tiles))
        scratch_rows = np.cumsum(q_rows) - q_rows
        self._reserve_scratch(int(q_rows.sum()))
        after = pairs + (self._programs + 1)
        records = np.zeros((len(pairs) + 1, RECORD.value), np.int64)
        records[:-1] = np.stack([*places, pairs | scratch_rows << 32, (ends - tiles) | after << 32], axis=1)
        starts = np.searchsorted(ends, np.arange(self._programs) * share, side="right")
        return records[starts].tobytes() + records.tobytes(), share, int(ends[-1])

    def launch(
        self,
        table: int,
        scores: int,
        share: int,
        tiles: int,
        stream: torch.cuda.Stream,
        rows: Sequence[TensorDescriptor] | None = None,
    ) -> None:
        """Compute what `cut` has cut.

        Args:
            table, scores: addresses.
            rows: `_tiles_of` another arena than the usual one.
        """
        pointers = (table, self._scratch.data_ptr(), self._arrivals.data_ptr(), scores)
        grid = (-(-tiles // share), 1, 1)  # the processors for which there is a share
        self._compiled[grid](*(rows or self._rows), *pointers, share, tiles, stream=stream.cuda_stream)

    def is_right(self, dim: int, dtype: torch.dtype) -> bool:
        """Whether the scores of random texts are what torch's products add up to. If not, the log says so."""
        device = self._scratch.device
        starts = np.cumsum([0, *(whole_grains(rows) for rows in CHECKED_QUERIES + CHECKED_DOCUMENTS)]).tolist()
        random = torch.Generator(device).manual_seed(0)
        arena = torch.nn.functional.normalize(torch.randn(starts[-1], dim, generator=random, device=device), dim=1)
        arena = arena.to(dtype)
        texts = [
            Entry(b"", start, rows, whole_grains(rows), 0, False, 0, 0)
            for start, rows in zip(starts[:-1], CHECKED_QUERIES + CHECKED_DOCUMENTS, strict=True)
        ]
        queries, documents = texts[: len(CHECKED_QUERIES)], texts[len(CHECKED_QUERIES) :]
        records, share, tiles = self.cut([PairGroup(query, documents) for query in queries])
        table = torch.frombuffer(bytearray(records), dtype=torch.int64).to(device)
        scores = torch.zeros(len(queries) * len(documents), device=device)
        stream = torch.cuda.current_stream(device)
        self.launch(table.data_ptr(), scores.data_ptr(), share, tiles, stream, _tiles_of(arena))

        def rows_of(text: Entry) -> torch.Tensor:
            return arena[text.start : text.start + text.rows].float()

        expected = [(rows_of(q) @ rows_of(d).T).amax(1).sum().item() for q in queries for d in documents]
        found = scores.tolist()
        rows = [query.rows for query in queries for _ in documents]
        error = max(abs(a - b) / count for a, b, count in zip(found, expected, rows, strict=True))
        if not error <= MOST_ERROR:  # also where it is no number
            _log.warning("the kernel for long queries is off by %s a row here: the general one takes its place", error)
        return bool(error <= MOST_ERROR)

    def _reserve_scratch(self, rows: int) -> None:
        if rows > len(self._scratch):  # one pair with a query of a million rows
            self._scratch = torch.full((rows,), float("-inf"), device=self._scratch.device)
            torch.cuda.current_stream().synchronize()  # which the kernel may run beside


def make_long_queries(
    arena: torch.Tensor, table: torch.Tensor, scores: torch.Tensor, most_pairs: int, scratch_rows: int
) -> LongQueries | None:
    """As `LongQueries`; None, and the log says why, where it cannot be compiled or loaded or is not right."""
    try:
        long = LongQueries(arena, table, scores, most_pairs, scratch_rows)
        return long if long.is_right(arena.shape[1], arena.dtype) else None
    except Exception:  # noqa: BLE001 - a compiler's, a driver's; an error of the device stays, and ends the next call
        _log.warning("the kernel for long queries cannot be had here: the general one takes its place", exc_info=True)
        return None


def _tiles_of(arena: torch.Tensor) -> list[TensorDescriptor]:
    """How the kernel reads these rows: of documents, and of queries."""
    width = 64 if arena.shape[1] <= 64 else 128  # of a tile; columns past the last are 0
    element = getattr(language, str(arena.dtype).removeprefix("torch."))
    return [
        TensorDescriptor(
            arena,
            list(arena.shape),
            list(arena.stride()),
            [rows, width],
            language.NVMMASharedLayout.get_default_for([rows, width], element),
        )
        for rows in (BLOCK_D.value, PART.value)
    ]
