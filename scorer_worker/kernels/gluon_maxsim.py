"""MaxSim of long queries on a Hopper GPU, in Gluon. `gluon_packed` is its host side; `triton_maxsim` says what makes
a pair's score bitwise the same there and here.

Triton's own kernel for them multiplies, waits, and takes maxima, in turns, and reads each document once for every 128
query rows. Here a program has four parts that run side by side:

- the loader streams tiles of documents and blocks of queries into shared memory, ahead of all others;
- two consumers multiply, each half of a block of 256 query rows with the same tile, and take the maximum of one product
  while the tensor cores compute the next;
- the finisher brings the maxima to global memory, and sums them where it is the last of a pair, so that no consumer
  waits for global memory.

The work of a launch is a line of tiles: by pair, by block of the pair's query, by tile of its document. It is cut into
equal shares, one for each processor, wherever that cuts; a stretch of a share that is of one pair and one block is a
segment.

A tile is never read past its document, whose rows its neighbours follow: a last tile starts early enough to end with
its document, since a row that is read twice changes no maximum. Only a document shorter than a tile is masked.

Tried on an H100, by hand: consumers that finish segments themselves (218 us for 500 documents x 1024 with a query of
1024 rows, 199 as it is); tiles of half the rows at the end of a document (wrong products).
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # its name before Triton 3.7

GRAIN = gl.constexpr(16)  # rows, as `store.ROW_GRAIN`
BLOCK_Q = gl.constexpr(256)
BLOCK_D = gl.constexpr(128)
PART = gl.constexpr(64)  # query rows of one product
PARTS = gl.constexpr(4)  # of a block
RECORD = gl.constexpr(4)  # numbers of 64 bits
SUM_ROWS = gl.constexpr(1024)  # query rows that are summed at a time
STAGES = gl.constexpr(3)  # tiles in shared memory


@gluon.jit
def _sum_rows(values):
    """As `triton_maxsim._sum_rows`: the same tree, so the same bits."""
    size: gl.constexpr = values.shape[0]
    if size > 2:
        return _sum_rows(gl.sum(gl.reshape(values, [size // 2, 2]), axis=1))
    else:
        return gl.sum(values, axis=0)


@gluon.jit
def _fold(product):
    """[PART, BLOCK_D] -> [PART, 8]: the maximum over what one thread holds."""
    return gl.max(gl.reshape(product, [PART, BLOCK_D // 8, 8]), axis=1)


@gluon.jit
def _segment(records, number, tile, stop):
    """The segment that starts at this tile of the line, in the pair of this record.

    Returns:
        The pair; first row and rows of its document and of its query; the pair's first row of scratch and its tiles,
        over all blocks; the segment's first query row, its first tile within the document, and its tiles; the record of
        the next segment's pair.
    """
    record = records + RECORD * number
    d_place = gl.load(record)
    q_place = gl.load(record + 1)
    pair_and_scratch = gl.load(record + 2)
    first_and_next = gl.load(record + 3)
    d_rows = (d_place >> 32).to(gl.int32)
    q_rows = (q_place >> 32).to(gl.int32)
    tiles = gl.maximum((d_rows + BLOCK_D - 1) // BLOCK_D, 1)
    blocks = gl.maximum((q_rows + BLOCK_Q - 1) // BLOCK_Q, 1)
    within = tile - first_and_next.to(gl.int32)
    first = within % tiles
    count = gl.minimum(tiles - first, stop - tile)
    number = gl.where(within + count == tiles * blocks, (first_and_next >> 32).to(gl.int32), number)
    return (
        pair_and_scratch.to(gl.int32),
        d_place.to(gl.int32) * GRAIN,
        d_rows,
        q_place.to(gl.int32) * GRAIN,
        q_rows,
        (pair_and_scratch >> 32).to(gl.int32),
        tiles * blocks,
        within // tiles * BLOCK_Q,
        first,
        count,
        number,
    )


@gluon.jit
def _load(rows_d, rows_q, records, start, stop, d_tiles, q_parts, d_full, d_empty, q_full, q_empty):
    tile = start
    number = gl.program_id(0)
    turn = 0
    segment = 0
    while tile < stop:
        _, d_row, d_rows, q_row, _, _, _, q_first, first, count, number = _segment(records, number, tile, stop)
        q_slot = segment % 2
        mbarrier.wait(q_empty.index(q_slot), (segment // 2 & 1) ^ 1)
        mbarrier.expect(q_full.index(q_slot), PARTS * rows_q.block_type.nbytes)
        for part in gl.static_range(PARTS):
            tma.async_copy_global_to_shared(
                rows_q, [q_row + q_first + part * PART, 0], q_full.index(q_slot), q_parts.index(q_slot * PARTS + part)
            )
        for which in range(first, first + count):
            slot = turn % STAGES
            row = gl.minimum(which * BLOCK_D, gl.maximum(d_rows - BLOCK_D, 0))
            mbarrier.wait(d_empty.index(slot), (turn // STAGES & 1) ^ 1)
            mbarrier.expect(d_full.index(slot), rows_d.block_type.nbytes)
            tma.async_copy_global_to_shared(rows_d, [d_row + row, 0], d_full.index(slot), d_tiles.index(slot))
            turn += 1
        segment += 1
        tile += count


@gluon.jit
def _consume(
    records,
    start,
    stop,
    d_tiles,
    q_parts,
    maxima,
    d_full,
    d_empty,
    q_full,
    q_empty,
    m_full,
    m_empty,
    WHICH: gl.constexpr,
):
    layout: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_D, 16]
    )
    columns = gl.arange(0, BLOCK_D, layout=gl.SliceLayout(0, layout))
    nothing = gl.full([PART, BLOCK_D], float("-inf"), gl.float32, layout=layout)
    tile = start
    turn = 0
    segment = 0
    _, _, d_rows, _, _, _, _, _, _, count, number = _segment(records, gl.program_id(0), tile, stop)
    while tile < stop:
        # early, so that it is there when this segment ends
        _, _, d_rows_after, _, _, _, _, _, _, count_after, number = _segment(records, number, tile + count, stop)
        slot_of_segment = segment % 2
        part = slot_of_segment * PARTS + 2 * WHICH
        best0 = _fold(nothing)
        best1 = _fold(nothing)
        mbarrier.wait(q_full.index(slot_of_segment), segment // 2 & 1)
        for _ in range(count):
            slot = turn % STAGES
            mbarrier.wait(d_full.index(slot), turn // STAGES & 1)
            d = d_tiles.index(slot).permute((1, 0))
            product0 = warpgroup_mma(q_parts.index(part), d, nothing, use_acc=False, is_async=True)
            product1 = warpgroup_mma(q_parts.index(part + 1), d, nothing, use_acc=False, is_async=True)
            product0 = warpgroup_mma_wait(1, deps=(product0,))
            if d_rows < BLOCK_D:
                product0 = gl.where(columns[None, :] < d_rows, product0, float("-inf"))
            best0 = gl.maximum(best0, _fold(product0))
            product1 = warpgroup_mma_wait(0, deps=(product1,))
            mbarrier.arrive(d_empty.index(slot))
            if d_rows < BLOCK_D:
                product1 = gl.where(columns[None, :] < d_rows, product1, float("-inf"))
            best1 = gl.maximum(best1, _fold(product1))
            turn += 1
        mbarrier.arrive(q_empty.index(slot_of_segment))
        mbarrier.wait(m_empty.index(slot_of_segment), (segment // 2 & 1) ^ 1)
        maxima.index(part).store(gl.max(best0, axis=1))
        maxima.index(part + 1).store(gl.max(best1, axis=1))
        mbarrier.arrive(m_full.index(slot_of_segment))
        segment += 1
        tile += count
        d_rows = d_rows_after
        count = count_after


@gluon.jit
def _finish(records, start, stop, scratch, arrivals, scores, maxima, m_full, m_empty):
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [2], [0])
    sum_layout: gl.constexpr = gl.BlockedLayout([8], [32], [2], [0])
    tile = start
    number = gl.program_id(0)
    segment = 0
    while tile < stop:
        pair, _, d_rows, _, q_rows, scratch_row, tiles, q_first, _, count, number = _segment(
            records, number, tile, stop
        )
        mine = scratch + scratch_row
        slot = segment % 2
        mbarrier.wait(m_full.index(slot), segment // 2 & 1)
        for part in gl.static_range(PARTS):
            numbers = q_first + part * PART + gl.arange(0, PART, layout=layout)
            some = maxima.index(slot * PARTS + part).load(layout)
            gl.atomic_max(mine + numbers, some, mask=numbers < q_rows, sem="relaxed")
        mbarrier.arrive(m_empty.index(slot))
        _barrier()  # all threads' maxima come before the arrival that announces them
        if gl.atomic_add(arrivals + pair, count, sem="acq_rel") + count == tiles:
            total = 0.0
            for first in range(0, q_rows, SUM_ROWS):
                rows = first + gl.arange(0, SUM_ROWS, layout=sum_layout)
                is_row = rows < q_rows
                # past the first-level cache, which does not see what other processors have written
                values = gl.load(mine + rows, mask=is_row, other=0.0, cache_modifier=".cg")
                gl.store(mine + rows, gl.full([SUM_ROWS], float("-inf"), gl.float32, layout=sum_layout), mask=is_row)
                total += _sum_rows(values)
            gl.store(scores + pair, gl.where(d_rows > 0, total, 0.0))
            gl.store(arrivals + pair, 0)
        segment += 1
        tile += count


@gluon.jit(do_not_specialize=["share", "tiles"], do_not_specialize_on_alignment=["records", "scores"])
def maxsim_long(rows_d, rows_q, records, scratch, arrivals, scores, share, tiles):
    """One program computes one share of the line of tiles; see the file's docstring.

    Args:
        rows_d, rows_q: the arena, read BLOCK_D and PART rows at a time.
        records: [programs + pairs + 1, RECORD] int64; each two numbers, the first in the low half: first grain and rows
            of the document; of the query; the pair, and where in `scratch` its maxima are, one a query row; the pair's
            first tile of the line, and the record of the pair after it. The first `programs` are copies of the records
            with which the shares start, the last one is read and not used.
        scratch: float32, all -inf before and after.
        arrivals: [pairs] int32, all 0 before and after: tiles of the pair that are done.
        scores: [pairs] float32, every one is written.
        share: tiles of a share.
        tiles: of the line.
    """
    start = gl.minimum(gl.program_id(0) * share, tiles)
    stop = gl.minimum(start + share, tiles)
    width: gl.constexpr = rows_d.block_type.shape[1]
    d_tiles = gl.allocate_shared_memory(rows_d.dtype, [STAGES, BLOCK_D, width], rows_d.layout)
    q_parts = gl.allocate_shared_memory(rows_d.dtype, [2 * PARTS, PART, width], rows_d.layout)
    maxima = gl.allocate_shared_memory(gl.float32, [2 * PARTS, PART], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    d_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    d_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    q_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    m_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    m_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(d_full.index(slot), count=1)
        mbarrier.init(d_empty.index(slot), count=2)  # both consumers
    for slot in gl.static_range(2):
        mbarrier.init(q_full.index(slot), count=1)
        mbarrier.init(q_empty.index(slot), count=2)
        mbarrier.init(m_full.index(slot), count=2)
        mbarrier.init(m_empty.index(slot), count=1)
    fence_async_shared()
    upper: gl.constexpr = 0
    lower: gl.constexpr = 1
    gl.warp_specialize(
        [
            (
                _consume,
                (
                    records,
                    start,
                    stop,
                    d_tiles,
                    q_parts,
                    maxima,
                    d_full,
                    d_empty,
                    q_full,
                    q_empty,
                    m_full,
                    m_empty,
                    upper,
                ),
            ),
            (
                _consume,
                (
                    records,
                    start,
                    stop,
                    d_tiles,
                    q_parts,
                    maxima,
                    d_full,
                    d_empty,
                    q_full,
                    q_empty,
                    m_full,
                    m_empty,
                    lower,
                ),
            ),
            (_finish, (records, start, stop, scratch, arrivals, scores, maxima, m_full, m_empty)),
            (_load, (rows_d, rows_q, records, start, stop, d_tiles, q_parts, d_full, d_empty, q_full, q_empty)),
        ],
        [4, 2, 1],  # warps of all but the first, which has the launch's
        [216, 56, 56],  # their registers a thread
    )
