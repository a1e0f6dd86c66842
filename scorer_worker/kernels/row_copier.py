"""Embeddings to their rows of the arena on CUDA, whichever rows those are, in one launch.

torch takes five for it, and hands Python's lock over in each of them: where the worker's other threads are busy, that
was half of what starting a small batch took.

Under Triton's interpreter (TRITON_INTERPRET=1 before triton is imported) the same code runs on a CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from triton.runtime import driver

from scorer_worker.kernels.row_kernel import copy_rows

ROWS = 8  # of a program


class RowCopier:
    """Compiled and loaded when it is made.

    Args:
        arena: [rows, dim] of any float dtype.
    """

    def __init__(self, arena: torch.Tensor) -> None:
        self._arena = arena
        self._address = arena.data_ptr()
        dim = arena.shape[1]
        self._constants = dim, triton.next_power_of_2(dim), ROWS
        row = torch.zeros(1, dim, device=arena.device)
        where = torch.zeros(2, 1, dtype=torch.int64, device=arena.device)
        self._compiled: Any = copy_rows[(1,)](arena, row, where, 0, *self._constants)

    def __call__(self, where: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Start it on the current stream.

        Args:
            where: [2, n] int64: rows of the arena, no two the same, and of `embeddings`. On the arena's device.
            embeddings: [rows, dim] float32, there too.
        """
        assert embeddings.dtype == torch.float32 and embeddings.is_contiguous() and where.is_contiguous()
        total = where.shape[1]
        programs = triton.cdiv(total, ROWS)
        if not total:
            return
        if self._compiled is None:  # under Triton's interpreter, which compiles nothing
            copy_rows[(programs,)](self._arena, embeddings, where, total, *self._constants)
            return
        stream = driver.active.get_current_stream(self._arena.device.index)
        pointers = self._address, embeddings.data_ptr(), where.data_ptr()
        self._compiled[(programs, 1, 1)](*pointers, total, *self._constants, stream=stream)
