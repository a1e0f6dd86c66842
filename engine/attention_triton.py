"""Attention of all texts of a batch in one launch of an own Triton kernel; `attention_kernel` says how it computes.

Configurations are fixed, chosen by the mean length of a batch's texts: short texts want small blocks, so that few rows
are computed that nobody has; long ones want large blocks, which read keys and values less often. Nothing is tuned or
compiled while serving once `compile_kernels` has run: no argument that varies is specialised on.

The results do not depend on how programs are scheduled. They depend, by rounding, on the batch's mean length.

Under Triton's interpreter (TRITON_INTERPRET=1 before triton is imported) the same code runs on a CPU, for tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from engine.attention_kernel import BLOCK_FIELDS, NO_REACH, attend_block, list_blocks
from engine.packing import DeviceLengths, PackedBatch

HEAD_DIMS = (32, 64, 128)
_LANES = 128  # entries of the list of blocks that one program writes


@dataclass(frozen=True, slots=True)
class Config:
    """How blocks are computed."""

    rows: int  # of a block of queries
    keys: int  # of a tile of keys and values
    stages: int  # tiles on their way at a time
    num_warps: int


SHORT = Config(rows=32, keys=32, stages=2, num_warps=2)
LONG = Config(rows=64, keys=64, stages=3, num_warps=4)
SHORT_MEAN = 32  # rows of a text, up to which a batch's texts are short


def choose_config(mean_length: float) -> Config:
    """The configuration for texts of this mean length. Others were measured on an H200, from 16 to 128 rows and from 32
    to 128 keys: for texts of 100 to 1380 tokens none was faster."""
    return SHORT if mean_length <= SHORT_MEAN else LONG


def can_attend(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernel is for such heads."""
    return head_dim in HEAD_DIMS and dtype in (torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Which rows of which text each program computes. Made once for a batch, used by every layer."""

    fields: torch.Tensor  # [num_blocks, BLOCK_FIELDS] int32, on the device
    config: Config


def make_blocks(batch: PackedBatch, config: Config | None = None) -> Blocks:
    """The blocks of a batch whose lengths are on the device. One small launch; nothing waits for the device.

    Args:
        config: instead of the one chosen by the mean length; for benchmarks.
    """
    where = batch.on_device
    assert where is not None
    config = config or choose_config(len(batch.token_ids) / len(batch.lengths))
    return Blocks(_list_blocks(where, len(batch.token_ids), config.rows), config)


def _list_blocks(where: DeviceLengths, total: int, rows: int) -> torch.Tensor:
    num_texts = len(where.cu_seqlens) - 1
    num_blocks = total // rows + num_texts
    fields = torch.empty(num_blocks, BLOCK_FIELDS, dtype=torch.int32, device=where.cu_seqlens.device)
    grid = (-(-num_blocks // _LANES),)
    list_blocks[grid](where.cu_seqlens, where.cu_keys, fields, num_texts, num_blocks, ROWS=rows, LANES=_LANES)
    return fields


def attend_blocks(qkv: torch.Tensor, blocks: Blocks, reach: int | None = None) -> torch.Tensor:
    """Bidirectional attention inside each text, scaled by 1 / sqrt(head_dim).

    Args:
        qkv: [total_tokens, 3, num_heads, head_dim] float16 or bfloat16, contiguous; `can_attend` says which heads.
        reach: rows attend to rows at most so many positions away, before and after; None: to the whole text.

    Returns:
        [total_tokens, num_heads * head_dim]. Rows that find nobody have zeros.
    """
    total, _, num_heads, head_dim = qkv.shape
    assert qkv.is_contiguous()
    out = qkv.new_empty(total, num_heads * head_dim)
    config = blocks.config
    attend_block[len(blocks.fields), num_heads](
        *(qkv, blocks.fields, out, math.log2(math.e) / math.sqrt(head_dim)),
        HEADS=num_heads,
        HEAD_DIM=head_dim,
        ROWS=config.rows,
        KEYS=config.keys,
        REACH=NO_REACH if reach is None else reach,
        STAGES=config.stages,
        num_warps=config.num_warps,
    )
    return out


def attend_triton(qkv: torch.Tensor, batch: PackedBatch, reach: int | None = None) -> torch.Tensor:
    """As `Attention`; and with `reach` as `attend_in_window`, but for all texts at once."""
    return attend_blocks(qkv.contiguous(), make_blocks(batch), reach)


def compile_kernels(qkv: torch.Tensor, reach: int | None = None) -> None:
    """Compile and load every configuration for such heads, by attending to a text of one row.

    Args:
        qkv: [1, 3, num_heads, head_dim].
        reach: as `attend_blocks` will get it.
    """
    ends = torch.tensor([0, 1], dtype=torch.int32, device=qkv.device)
    where = DeviceLengths(ends, ends, None, 1, 1)
    for config in (SHORT, LONG):
        attend_blocks(qkv, Blocks(_list_blocks(where, 1, config.rows), config), reach)
