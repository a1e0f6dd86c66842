"""The host side of `gluon_maxsim`. `triton_packed` uses it where a call has long queries.

Gluon is an experimental part of Triton: whether the installed one is known to work is asked before this is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from triton.experimental.gluon import language
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from scorer_worker.kernels.gluon_maxsim import BLOCK_D, BLOCK_Q, PART, RECORD, maxsim_long
from scorer_worker.pairs import PairGroup


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
        width = 64 if arena.shape[1] <= 64 else 128  # of a tile; columns past the last are 0
        element = getattr(language, str(arena.dtype).removeprefix("torch."))
        self._rows = [
            TensorDescriptor(
                arena,
                list(arena.shape),
                list(arena.stride()),
                [rows, width],
                language.NVMMASharedLayout.get_default_for([rows, width], element),
            )
            for rows in (BLOCK_D.value, PART.value)
        ]
        self._scratch = torch.full((scratch_rows,), float("-inf"), device=arena.device)
        self._arrivals = torch.zeros(most_pairs, dtype=torch.int32, device=arena.device)
        self._side = torch.cuda.Stream(arena.device, priority=-1)  # type: ignore[no-untyped-call]  # as scoring has
        self._before, self._after = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]
        pointers = (table.view(torch.int64), self._scratch, self._arrivals, scores)
        self._compiled: Any = maxsim_long[(1,)](*self._rows, *pointers, 0, 0, num_warps=4)

    @contextmanager
    def beside(self, stream: torch.cuda.Stream) -> Iterator[torch.cuda.Stream]:
        """A stream beside this one, which waits for it at the end."""
        self._before.record(stream)
        self._side.wait_event(self._before)
        yield self._side
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

    def launch(self, table: int, scores: int, share: int, tiles: int, stream: torch.cuda.Stream) -> None:
        """Compute what `cut` has cut. The table and the scores are addresses."""
        pointers = (table, self._scratch.data_ptr(), self._arrivals.data_ptr(), scores)
        grid = (self._programs, 1, 1)
        self._compiled[grid](*self._rows, *pointers, share, tiles, stream=stream.cuda_stream)

    def _reserve_scratch(self, rows: int) -> None:
        if rows > len(self._scratch):  # one pair with a query of a million rows
            self._scratch = torch.full((rows,), float("-inf"), device=self._scratch.device)
            torch.cuda.current_stream().synchronize()  # which the kernel may run beside
