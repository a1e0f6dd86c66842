"""What `row_copier` runs, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["total"])
def copy_rows(arena, source, where, total, DIM: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """
    Args:
        arena: [rows, DIM] of any float dtype.
        source: [rows, DIM] float32.
        where: [2, total] int64: rows of the arena, and the row of `source` that belongs in each.
        COLUMNS: a power of two, at least DIM.
        ROWS: of a program.
    """
    place = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = place < total
    column = tl.arange(0, COLUMNS)
    is_element = is_row[:, None] & (column < DIM)[None, :]
    to = tl.load(where + place, mask=is_row, other=0)
    since = tl.load(where + total + place, mask=is_row, other=0)
    values = tl.load(source + since[:, None] * DIM + column[None, :], mask=is_element, other=0.0)
    tl.store(arena + to[:, None] * DIM + column[None, :], values.to(arena.dtype.element_ty), mask=is_element)
