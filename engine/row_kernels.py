"""What an encoder does between its matrix products, each in one pass over memory, in Triton.

These steps do next to no arithmetic: their time is that of the bytes they read and write. Sums, and what comes before
a rounding, are in float32.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["total"], do_not_specialize_on_alignment=["position_ids"])
def rotate(
    qkv,
    position_ids,
    cos,
    sin,
    total,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Turn queries and keys by their positions, in place: each even column with the odd one after it.

    Args:
        qkv: [total, 3, HEADS / 2, HEAD_DIM], contiguous.
        position_ids: [total] int64.
        cos, sin: [positions, HEAD_DIM / 2] float32.
        HEADS: of queries and keys together.
        COLUMNS: a power of two, at least HEADS * HEAD_DIM / 2.
        ROWS: of a program.
    """
    HALF: tl.constexpr = HEAD_DIM // 2
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    is_row = rows < total
    column = tl.arange(0, COLUMNS)
    is_place = is_row[:, None] & (column < HEADS * HALF)[None, :]
    position = tl.load(position_ids + rows, mask=is_row, other=0)
    angles = position[:, None] * HALF + (column % HALF)[None, :]
    c = tl.load(cos + angles, mask=is_place, other=0.0)
    s = tl.load(sin + angles, mask=is_place, other=0.0)
    columns = tl.arange(0, 2 * COLUMNS)
    places = qkv + rows.to(tl.int64)[:, None] * (3 * HEADS // 2 * HEAD_DIM) + columns[None, :]
    is_both = is_row[:, None] & (columns < HEADS * HEAD_DIM)[None, :]
    pairs = tl.reshape(tl.load(places, mask=is_both, other=0.0).to(tl.float32), [ROWS, COLUMNS, 2])
    first, second = tl.split(pairs)
    turned = tl.reshape(tl.join(first * c - second * s, second * c + first * s), [ROWS, 2 * COLUMNS])
    tl.store(places, turned.to(qkv.dtype.element_ty), mask=is_both)


@triton.jit(do_not_specialize=["epsilon"])
def add_norm(
    left,
    right,
    weight,
    bias,
    out,
    epsilon,
    HIDDEN: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out = LayerNorm(left + right), over the last dimension; one program computes one row.

    Args:
        left, right, out: [grid 0, HIDDEN], contiguous. out may be left or right.
        weight, bias: [HIDDEN].
        COLUMNS: a power of two, at least HIDDEN.
    """
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    column = tl.arange(0, COLUMNS)
    is_column = column < HIDDEN
    values = tl.load(left + row + column, mask=is_column, other=0.0).to(tl.float32)
    values += tl.load(right + row + column, mask=is_column, other=0.0).to(tl.float32)
    mean = tl.sum(values, 0) / HIDDEN
    values = tl.where(is_column, values - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(values * values, 0) / HIDDEN + epsilon)
    w = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32)
    b = tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)
    values = values * inverse * w + b
    tl.store(out + row + column, values.to(out.dtype.element_ty), mask=is_column)


@triton.jit
def exact_gelu(x):
    """x * (1 + erf(x / sqrt(2))) / 2 of float32, off by at most 6e-7: no more than torch's in float32, and less where
    the result is near 0. The device's own erf has three times the instructions, and they take longer than the bytes.

    Source: Abramowitz & Stegun 1964, 7.1.26, for erfc.
    """
    size = tl.abs(x)
    root = tl.rsqrt(1.0 + 0.23164189 * size)  # their p, over sqrt(2)
    t = root * root  # a quotient would be five instructions
    erfc = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erfc *= tl.exp2(-0.7213475204444817 * x * x)  # e ** (-x * x / 2)
    # where x is no number, maximum(x, 0) is 0, but erfc is none either
    return tl.maximum(x, 0.0) - 0.5 * size * erfc


@triton.jit
def gelu(values, BLOCK: tl.constexpr):
    """GELU in place, the exact one, with erf.

    Args:
        values: [grid 0, BLOCK], contiguous. No mask: with one, elements would be read one by one.
    """
    places = values + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(places).to(tl.float32)
    tl.store(places, exact_gelu(x).to(values.dtype.element_ty))
