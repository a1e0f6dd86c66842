"""The device side of `attention_triton`: attention of packed texts, in Triton.

A program computes one block of query rows of one text, for one head. The text's keys and values pass by in tiles, with
a running softmax (Milakov & Gimelshein 2018; Dao et al. 2022, FlashAttention). Nothing is read from another text, not
even to be masked: a value there that is not finite would not stay where it is.

Which block of which text a program has is looked up in a list that the device makes itself, by `list_blocks`: the
host knows the number of texts and of rows, and no more, so that a CUDA graph serves any lengths. Text i, which begins
at row c, owns the places from c // ROWS + i on: never fewer than it has blocks, and no place needs the sum of all
before it. What remains free is a program that ends at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

BLOCK_FIELDS = 4  # of one entry of the list of blocks: int32 each
NO_REACH = -1


@triton.jit(do_not_specialize=["num_texts", "num_blocks"], do_not_specialize_on_alignment=["cu_seqlens", "cu_keys"])
def list_blocks(cu_seqlens, cu_keys, blocks, num_texts, num_blocks, ROWS: tl.constexpr, LANES: tl.constexpr):
    """What `attend_block`'s programs compute.

    Args:
        cu_seqlens: [num_texts + 1] int32, where each text begins; texts without rows are allowed.
        cu_keys: [num_texts + 1] int32, the same of its attended rows alone.
        blocks: [num_blocks, BLOCK_FIELDS] int32, all written: the text's first row, the block's first row in the text,
            the text's rows and its attended rows. Free places have a first row that the text does not have.
        num_blocks: total rows // ROWS + num_texts.
        LANES: entries that a program writes.
    """
    places = tl.program_id(0) * LANES + tl.arange(0, LANES)
    low = tl.zeros([LANES], tl.int32)  # the last text whose places begin at or before ours lies in [low, high)
    high = low + num_texts
    distance = num_texts
    while distance > 1:
        middle = (low + high) // 2
        is_before = tl.load(cu_seqlens + middle) // ROWS + middle <= places
        low = tl.where(is_before, middle, low)
        high = tl.where(is_before, high, middle)
        distance = (distance + 1) // 2
    start = tl.load(cu_seqlens + low)
    fields = blocks + places * 4
    is_place = places < num_blocks
    tl.store(fields, start, mask=is_place)
    tl.store(fields + 1, (places - (start // ROWS + low)) * ROWS, mask=is_place)
    tl.store(fields + 2, tl.load(cu_seqlens + low + 1) - start, mask=is_place)
    tl.store(fields + 3, tl.load(cu_keys + low + 1) - tl.load(cu_keys + low), mask=is_place)


@triton.jit
def attend_block(
    qkv,
    blocks,
    out,
    scale,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    REACH: tl.constexpr,
    STAGES: tl.constexpr,
):
    """One program computes one block for one head; see the file's docstring.

    Args:
        qkv: [total_tokens, 3, HEADS, HEAD_DIM] float16 or bfloat16, contiguous.
        blocks: [grid 0, BLOCK_FIELDS], by `list_blocks` with the same ROWS. Grid 1 are the heads.
        out: [total_tokens, HEADS, HEAD_DIM], of qkv's dtype.
        scale: of the scores, times log2(e): exponentials are of base 2.
        REACH: rows attend to rows at most so far away; NO_REACH: to all of their text.
    """
    fields = blocks + tl.program_id(0) * 4
    head = tl.program_id(1)
    start = tl.load(fields).to(tl.int64)  # from rows to elements in 64 bits; what is added stays within a text
    offset = tl.load(fields + 1)
    length = tl.load(fields + 2)
    keys = tl.load(fields + 3)
    if offset < length:
        STRIDE: tl.constexpr = 3 * HEADS * HEAD_DIM
        text = qkv + start * STRIDE + head * HEAD_DIM
        out += start * (HEADS * HEAD_DIM) + head * HEAD_DIM
        rows = offset + tl.arange(0, ROWS)
        is_row = rows < length
        columns = tl.arange(0, HEAD_DIM)
        q = tl.load(text + rows[:, None] * STRIDE + columns[None, :], mask=is_row[:, None], other=0.0)
        low = 0
        high = keys
        if REACH >= 0:
            low = tl.maximum(0, offset - REACH)
            high = tl.minimum(keys, offset + ROWS + REACH)
        highest = tl.full([ROWS], float("-inf"), tl.float32)  # scaled score of each row so far
        total = tl.zeros([ROWS], tl.float32)  # of the weights
        context = tl.zeros([ROWS, HEAD_DIM], tl.float32)
        for first in tl.range(low, high, KEYS, num_stages=STAGES):
            numbers = first + tl.arange(0, KEYS)
            is_key = (numbers < high)[:, None]
            places = text + numbers[:, None] * STRIDE + columns[None, :]
            k = tl.load(places + HEADS * HEAD_DIM, mask=is_key, other=0.0)
            scores = tl.dot(q, tl.trans(k))
            if REACH >= 0:
                is_near = tl.abs(rows[:, None] - numbers[None, :]) <= REACH
                scores = tl.where(is_near & (numbers < high)[None, :], scores, float("-inf"))
            elif first + KEYS > high:
                scores = tl.where((numbers < high)[None, :], scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, 1) * scale)
            shift = higher
            if REACH >= 0:  # a row may see none of these keys
                shift = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp2(scores * scale - shift[:, None])
            shrink = tl.exp2(highest - shift)
            total = total * shrink + tl.sum(weights, 1)
            context = context * shrink[:, None]
            v = tl.load(places + 2 * HEADS * HEAD_DIM, mask=is_key, other=0.0)
            context = tl.dot(weights.to(v.dtype), v, context)
            highest = higher
        # a row that saw nobody has zeros; one with a score that is no number stays no number
        context = context / tl.where(total == 0.0, 1.0, total)[:, None]
        places = out + rows[:, None] * (HEADS * HEAD_DIM) + columns[None, :]
        tl.store(places, context.to(out.dtype.element_ty), mask=is_row[:, None])
