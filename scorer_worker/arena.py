"""The rows themselves: one tensor on the device, allocated once, and how embeddings get into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.pinned import pinned
from scorer_worker.store import ROW_GRAIN, Entry, StoreDirectory, slab_rows_for

if TYPE_CHECKING:
    from scorer_worker.kernels.row_copier import RowCopier


class Arena:
    """Embeddings by row, with the directory that says whose they are.

    Args:
        cache_bytes: size of the arena.
        dim: width of an embedding.
        dtype: float32 on a CPU, float16 on CUDA.
        device: where the rows live.

    Raises:
        TooLarge: `cache_bytes` is too small for this `dim`.
    """

    def __init__(self, cache_bytes: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        row_bytes = dim * dtype.itemsize
        total_rows = cache_bytes // row_bytes
        self.directory = StoreDirectory(total_rows, slab_rows_for(total_rows, row_bytes))
        # empty, not zeros: the system gives memory when a row is first written, so an idle store costs next to nothing
        self.rows = torch.empty(self.directory.capacity_rows, dim, dtype=dtype, device=device)
        self._copy_rows = _row_copier(self.rows) if device.type == "cuda" else None

    @property
    def num_bytes(self) -> int:
        return self.rows.numel() * self.rows.element_size()

    def write(self, entry: Entry, embeddings: torch.Tensor) -> None:
        """Fill a reserved entry.

        Its extent's last grain is padded with the last row again, so that the maximum over whole grains is the maximum
        over the document, and kernels need no mask.

        Args:
            embeddings: [entry.rows, dim], any float dtype, finite.
        """
        self._copy(entry, embeddings)
        self.directory.fill(entry)

    def copy_batch(self, entries: Sequence[Entry], firsts: Sequence[int], embeddings: torch.Tensor) -> None:
        """Bring the embeddings of a batch to their entries' rows; on CUDA in one launch.

        For any thread, on its own stream: it neither reads nor writes the directory. Whoever marks the entries as
        filled knows that the device has done it.

        Args:
            entries: reserved, and held.
            firsts: [n], the row of `embeddings` with which each entry's rows begin.
            embeddings: [rows, dim] float32, on the arena's device; the current stream may use them.
        """
        if self._copy_rows is None:
            for entry, first in zip(entries, firsts, strict=True):
                self._copy(entry, embeddings[first : first + entry.rows])
            return
        where = _padded_places(entries, firsts).to(self.rows.device, non_blocking=True)
        self._copy_rows(where, embeddings)

    def _copy(self, entry: Entry, embeddings: torch.Tensor) -> None:
        end = entry.start + entry.rows
        self.rows[entry.start : end] = embeddings
        padding = -entry.rows % ROW_GRAIN
        if entry.rows and padding:
            self.rows[end : end + padding] = embeddings[-1]


def _row_copier(rows: torch.Tensor) -> RowCopier:
    # Triton is no part of torch for a CPU
    from scorer_worker.kernels.row_copier import RowCopier

    return RowCopier(rows)


def _padded_places(entries: Sequence[Entry], firsts: Sequence[int]) -> torch.Tensor:
    """[2, n] int64, pinned: rows of the arena, padding included, and the row of the batch that belongs in each."""
    rows = np.array([entry.rows for entry in entries], np.int64)
    padded = (rows + (ROW_GRAIN - 1)) // ROW_GRAIN * ROW_GRAIN
    ends = np.cumsum(padded)
    total = int(ends[-1]) if len(ends) else 0
    within = np.arange(total) - np.repeat(ends - padded, padded)
    where, both = pinned((2, total), torch.int64)
    both[0] = np.repeat(np.array([entry.start for entry in entries], np.int64), padded) + within
    both[1] = np.repeat(np.array(firsts, np.int64), padded) + np.minimum(within, np.repeat(rows - 1, padded))
    return where


def as_tensor(data: memoryview, dtype: str, rows: int, dim: int) -> torch.Tensor:
    """A [rows, dim] view of received bytes, without a copy. Read-only by agreement."""
    if not rows:
        return torch.empty(0, dim, dtype=_DTYPES[dtype])
    return torch.frombuffer(data, dtype=_DTYPES[dtype]).view(rows, dim)


def is_finite(embeddings: torch.Tensor) -> bool:
    """Whether there is neither NaN nor infinity in it.

    The sum of finite values of sane size is finite, and one pass of it is the cheapest check; only where it is not,
    every element is looked at.
    """
    total = embeddings.sum(dtype=torch.float32)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(embeddings).all())


_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
