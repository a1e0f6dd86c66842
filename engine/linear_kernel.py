"""The device side of `linear_triton`: a matrix product, and what follows it, in one Triton kernel.

A program computes one tile after the other: as many programs as the device has processors, so that the next tile's
first rows and weights are copied while this one is finished. Tiles that follow each other share rows or weights.
Copies go through tensor descriptors (the device's TMA), which also leave out what lies past an end.

A value depends on its row and its column of weights alone, summed in steps of BLOCK_K: not on the other rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.row_kernels import exact_gelu


@triton.jit
def _place_of(tile, m_tiles, N_TILES: tl.constexpr, GROUP: tl.constexpr):
    """Row and column of a tile, in tiles: bands of GROUP tiles' height, one after the other."""
    first = tile // (GROUP * N_TILES) * GROUP
    height = tl.minimum(m_tiles - first, GROUP)
    within = tile % (GROUP * N_TILES)
    return first + within % height, within // height


@triton.jit
def _multiply_tile(
    rows,
    weight,
    bias,
    row,
    column,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
):
    """[BLOCK_M, BLOCK_N] float32 of rows @ weight.T + bias, from this row and column on."""
    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for step in tl.range(0, INNER, BLOCK_K, num_stages=STAGES):
        total = tl.dot(rows.load([row, step]), weight.load([column, step]).T, total)
    columns = column + tl.arange(0, BLOCK_N)
    return total + tl.load(bias + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)[None, :]


@triton.jit(do_not_specialize=["total"])
def linear_gelu(
    rows,
    weight,
    bias,
    out,
    total,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out = GELU(rows @ weight.T + bias), the exact one; nothing is rounded in between.

    Args:
        rows: descriptor of [total, INNER], in blocks of [BLOCK_M, BLOCK_K].
        weight: of [WIDTH, INNER], in blocks of [BLOCK_N, BLOCK_K].
        bias: [WIDTH].
        out: descriptor of [total, WIDTH], in blocks of [BLOCK_M, BLOCK_N].
        PROGRAMS: grid 0, or more.
    """
    m_tiles = tl.cdiv(total, BLOCK_M)
    N_TILES: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    for tile in tl.range(tl.program_id(0), m_tiles * N_TILES, PROGRAMS, flatten=True):
        m, n = _place_of(tile, m_tiles, N_TILES, GROUP)
        row, column = m * BLOCK_M, n * BLOCK_N
        values = _multiply_tile(rows, weight, bias, row, column, WIDTH, INNER, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)
        out.store([row, column], exact_gelu(values).to(out.dtype))


@triton.jit(do_not_specialize=["total"], do_not_specialize_on_alignment=["position_ids"])
def linear_rotate(
    rows,
    weight,
    bias,
    out,
    position_ids,
    cos,
    sin,
    total,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    HALF: tl.constexpr,
    PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
    STAGES: tl.constexpr,
):
    """out = rows @ weight.T + bias, whose first two thirds (queries and keys) are turned by their positions: each even
    column with the odd one after it. As `linear_gelu`, but for:

    Args:
        position_ids: [total] int64.
        cos, sin: [positions, HALF] float32.
        HALF: of a head's width. BLOCK_N is a multiple of 2 * HALF.
    """
    TURNED: tl.constexpr = 2 * WIDTH // 3
    HEADS: tl.constexpr = BLOCK_N // (2 * HALF)
    m_tiles = tl.cdiv(total, BLOCK_M)
    N_TILES: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    for tile in tl.range(tl.program_id(0), m_tiles * N_TILES, PROGRAMS, flatten=True):
        m, n = _place_of(tile, m_tiles, N_TILES, GROUP)
        row, column = m * BLOCK_M, n * BLOCK_N
        values = _multiply_tile(rows, weight, bias, row, column, WIDTH, INNER, BLOCK_M, BLOCK_N, BLOCK_K, STAGES)
        if column < TURNED:
            numbers = row + tl.arange(0, BLOCK_M)
            position = tl.load(position_ids + numbers, mask=numbers < total, other=0)
            angles = position[:, None] * HALF + tl.arange(0, HALF)[None, :]
            c = tl.load(cos + angles)[:, None, :]
            s = tl.load(sin + angles)[:, None, :]
            if TURNED % BLOCK_N != 0:  # some tile has heads of both kinds
                is_turned = (column + tl.arange(0, HEADS) * 2 * HALF < TURNED)[None, :, None]
                c = tl.where(is_turned, c, 1.0)
                s = tl.where(is_turned, s, 0.0)
            first, second = tl.split(tl.reshape(values, [BLOCK_M, HEADS, HALF, 2]))
            turned = tl.join(first * c - second * s, second * c + first * s)
            values = tl.reshape(turned, [BLOCK_M, BLOCK_N])
        out.store([row, column], values.to(out.dtype))
