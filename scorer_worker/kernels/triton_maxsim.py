"""The device side of `triton_packed`: MaxSim of one work item, in Triton.

An item is a block of query rows of one pair, and a chunk of its document's rows. The document passes by in tiles; each
tile is multiplied with the query block on the tensor cores and folded into a running elementwise maximum, which stays
in registers and is reduced over the document's rows once, at the end. An item reads what it needs from the store in
place: queries are entries of it too.

Row numbers past an end are clamped to the last row instead of masked: a row that is read twice changes no maximum,
costs no memory traffic, and no value is invented that could win.

What makes a pair's score bitwise the same in any batch: a product's bits depend on the two rows alone; a maximum has
no order, so chunks may be cut and may arrive as they like; and the sum over query rows is the tree of `_sum_rows`,
which is fixed by a row's number alone. Of several items of a pair, whoever arrives last sums the maxima that all have
left.

Tried on an H200 and left: tiles of 32 or 128 document rows; 8 warps for short queries; two stages, or five; chunks of
less than 1024 rows, also for few pairs (each item costs 2 us of waiting for its places, its query and its first tile);
a prefetch of the first tiles before the query is read (0.3 us of 8 for few pairs, a loss for many); for long queries
tiles of 128, blocks of 64 or 256, the query in registers, and the maximum one tile behind the product.

On an H100: a single row with a single row takes 5.3 us, which is what any call takes; few pairs take this and the time
of their bytes. Tried there, by hand: for long queries every tile's maximum over its rows at once, in place of
elementwise (no faster but for blocks of 256 rows, which are half empty for queries of 128); for a few pairs of long
texts beside many others a launch of their own (slower); documents in the order of their addresses (a fiftieth, which
sorting would eat); two stages, so that one more program has room (no faster anywhere); a record as eight numbers of 32
bits, or as one vector (no faster; long queries 20 us slower).

What bounds 64 documents x 8192 there, by hand: a kernel that only reads these rows takes 48.6 us, this one 50.7 with
its records on the device, 48.9 without bringing maxima together. In chunks of 1024 rows it took 54.8: that makes 544
items, and 528 have room.
"""

from __future__ import annotations

import triton
import triton.language as tl

GRAIN = tl.constexpr(16)  # rows, as `store.ROW_GRAIN`
SUM_ROWS = tl.constexpr(1024)  # query rows that the last item of a pair sums at a time


@triton.jit
def _sum_rows(values):
    """[n] -> the sum of neighbours, then of neighbouring sums, and so on; n a power of two.

    Every addition has two operands, so the bits depend neither on how the values lie in registers nor on the zeros that
    fill up a block: blocks of any power of two are parts of the same tree.
    """
    size: tl.constexpr = values.shape[0]
    if size > 2:
        return _sum_rows(tl.sum(tl.reshape(values, [size // 2, 2]), axis=1))
    else:  # Triton compiles one branch of a constant, and nothing after a return
        return tl.sum(values, axis=0)


@triton.jit
def _load(base, rows, step, DIM: tl.constexpr, BLOCK_K: tl.constexpr):
    """[len(rows), BLOCK_K]: columns `step * BLOCK_K` and on of these rows after `base`; 0 past the last column."""
    columns = step * BLOCK_K + tl.arange(0, BLOCK_K)
    places = base + rows[:, None] * DIM + columns[None, :]
    if DIM % BLOCK_K == 0:
        return tl.load(places)
    else:
        return tl.load(places, mask=columns[None, :] < DIM, other=0.0)


@triton.jit
def _multiply(q, d, total, QUERY_ON_M: tl.constexpr, PRECISION: tl.constexpr):
    """total + the products of rows: [Lq, Ld] if QUERY_ON_M, else [Ld, Lq]."""
    if QUERY_ON_M:
        return tl.dot(q, tl.trans(d), total, input_precision=PRECISION)
    else:
        return tl.dot(d, tl.trans(q), total, input_precision=PRECISION)


# Parts of a launch's table start where they start, and the configurations compiled once must serve all.
@triton.jit(do_not_specialize_on_alignment=["d_places", "q_places", "records", "scores"], do_not_specialize=["chunk"])
def maxsim_items(
    arena,
    d_places,
    q_places,
    records,
    scratch,
    arrivals,
    scores,
    chunk,
    DIM: tl.constexpr,
    BLOCK_K: tl.constexpr,
    K_STEPS: tl.constexpr,
    HOLD_QUERY: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    QUERY_ON_M: tl.constexpr,
    IS_CUT: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program computes one item; see the file's docstring.

    Args:
        arena: [rows, DIM], any float dtype.
        d_places, q_places: [pairs, 2] int32: number of the first grain, and rows. Read where every pair is one item.
        records: [items, 4] int64, of the pair of each item, and each two numbers, the first in the low half: first
            grain and rows of the document; of the query; the pair and its first item; where in `scratch` its maxima
            are, one a query row. An item's number within its pair is its query block plus the number of query blocks
            times its chunk. Read where pairs are cut: it lies in the host's memory, so one place, not two in turn.
        scratch: float32, all -inf before and after. Untouched by pairs that are one item.
        arrivals: [pairs] int32, all 0 before and after. Likewise.
        scores: [pairs] float32, every one is written.
        HOLD_QUERY: all of a query block's columns stay in shared memory; else they are read again for each tile.
        IS_CUT: a pair may be several items; else every pair is one, item i pair i.
        chunk: most rows of a document in one item, a multiple of BLOCK_D; a document is cut into equal ones.
    """
    item = tl.program_id(0)
    # 64 bits from grains to elements; what is added to a base stays within an item
    if IS_CUT:
        d_place = tl.load(records + 4 * item)
        q_place = tl.load(records + 4 * item + 1)
        pair_and_first = tl.load(records + 4 * item + 2)
        scratch_row = tl.load(records + 4 * item + 3)
        d_grain = d_place & 0xFFFFFFFF
        d_rows = (d_place >> 32).to(tl.int32)
        q_grain = q_place & 0xFFFFFFFF
        q_rows = (q_place >> 32).to(tl.int32)
        pair = pair_and_first.to(tl.int32)
        within = item - (pair_and_first >> 32).to(tl.int32)
        q_blocks = tl.maximum(tl.cdiv(q_rows, BLOCK_Q), 1)
        q_first = within % q_blocks * BLOCK_Q
        chunks = tl.maximum(tl.cdiv(d_rows, chunk), 1)
        chunk_rows = tl.cdiv(d_rows, chunks * BLOCK_D) * BLOCK_D
        d_first = within // q_blocks * chunk_rows
        d_base = arena + (d_grain * GRAIN + d_first) * DIM
        d_last = tl.minimum(d_rows - d_first, chunk_rows) - 1
        num_items = q_blocks * chunks
    else:
        pair = item
        d_grain = tl.load(d_places + 2 * pair).to(tl.int64)
        d_rows = tl.load(d_places + 2 * pair + 1)
        q_grain = tl.load(q_places + 2 * pair).to(tl.int64)
        q_rows = tl.load(q_places + 2 * pair + 1)
        scratch_row = 0
        q_first = 0
        d_base = arena + d_grain * (GRAIN * DIM)
        d_last = d_rows - 1
        num_items = 1
    q_base = arena + (q_grain * GRAIN + q_first) * DIM
    q_numbers = q_first + tl.arange(0, BLOCK_Q)
    q_within = tl.maximum(tl.minimum(tl.arange(0, BLOCK_Q), q_rows - 1 - q_first), 0)
    if QUERY_ON_M:
        best = tl.full([BLOCK_Q, BLOCK_D], float("-inf"), tl.float32)
    else:
        best = tl.full([BLOCK_D, BLOCK_Q], float("-inf"), tl.float32)
    if HOLD_QUERY:
        q_parts = ()
        for step in tl.static_range(K_STEPS):
            q_parts = q_parts + (_load(q_base, q_within, step, DIM, BLOCK_K),)
        for first in tl.range(0, d_last + 1, BLOCK_D, num_stages=STAGES):
            d_within = tl.minimum(first + tl.arange(0, BLOCK_D), d_last)
            product = tl.zeros_like(best)
            for step in tl.static_range(K_STEPS):
                d = _load(d_base, d_within, step, DIM, BLOCK_K)
                product = _multiply(q_parts[step], d, product, QUERY_ON_M, PRECISION)
            best = tl.maximum(best, product)
    else:
        product = tl.zeros_like(best)
        # one loop over tiles and steps, since Triton pipelines only the innermost
        for turn in tl.range(0, tl.cdiv(d_last + 1, BLOCK_D) * K_STEPS, num_stages=STAGES):
            step = turn % K_STEPS
            d_within = tl.minimum(turn // K_STEPS * BLOCK_D + tl.arange(0, BLOCK_D), d_last)
            q = _load(q_base, q_within, step, DIM, BLOCK_K)
            d = _load(d_base, d_within, step, DIM, BLOCK_K)
            product = _multiply(q, d, product, QUERY_ON_M, PRECISION)
            is_whole = step == K_STEPS - 1
            best = tl.where(is_whole, tl.maximum(best, product), best)
            product = tl.where(is_whole, 0.0, product)
    maxima = tl.max(best, axis=1 if QUERY_ON_M else 0)  # [BLOCK_Q]
    if num_items == 1:
        total = _sum_rows(tl.where(q_numbers < q_rows, maxima, 0.0))
        tl.store(scores + pair, tl.where(d_rows > 0, total, 0.0))
    else:
        mine = scratch + scratch_row
        tl.atomic_max(mine + q_numbers, maxima, mask=q_numbers < q_rows, sem="relaxed")
        tl.debug_barrier()  # all threads' maxima come before the arrival that announces them
        if tl.atomic_add(arrivals + pair, 1, sem="acq_rel") == num_items - 1:
            total = 0.0
            for first in range(0, q_rows, SUM_ROWS):
                numbers = first + tl.arange(0, SUM_ROWS)
                is_row = numbers < q_rows
                # past the first-level cache, which does not see what other processors have written
                values = tl.load(mine + numbers, mask=is_row, other=0.0, cache_modifier=".cg")
                tl.store(mine + numbers, float("-inf"), mask=is_row)
                total += _sum_rows(values)
            tl.store(scores + pair, tl.where(d_rows > 0, total, 0.0))
            tl.store(arrivals + pair, 0)
