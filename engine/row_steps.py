"""The host side of `row_kernels`: what an encoder does between its matrix products."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from engine.layer_norm import LayerNorm
from engine.row_kernels import add_norm, gelu, rotate

_ROTATED_ROWS = 2  # of a program
_GELU_BLOCK = 1024  # elements of a program, at most
_COLUMNS_OF_A_WARP = 1024  # of a row that is normalised: it stays in one warp's registers


@dataclass(frozen=True, slots=True)
class Angles:
    """Which row of a batch is turned by how much, where positions are rotary."""

    position_ids: torch.Tensor  # [total_tokens] int64
    cos: torch.Tensor  # [positions, head_dim / 2] float32, contiguous
    sin: torch.Tensor

    def expand(self, rows: int) -> Angles:
        """Those of so many rows like the one there is."""
        return Angles(self.position_ids.expand(rows).contiguous(), self.cos, self.sin)


def rotate_in_place(qkv: torch.Tensor, angles: Angles) -> None:
    """Turn queries and keys by their positions, each even column with the odd one after it; the values are not.

    Args:
        qkv: [total_tokens, 3, num_heads, head_dim], contiguous; head_dim a power of two.
    """
    total, _, num_heads, head_dim = qkv.shape
    rotate[(-(-total // _ROTATED_ROWS),)](
        *(qkv, angles.position_ids, angles.cos, angles.sin, total),
        HEADS=2 * num_heads,
        HEAD_DIM=head_dim,
        COLUMNS=_power_of_two(num_heads * head_dim),
        ROWS=_ROTATED_ROWS,
    )


def add_and_norm(left: torch.Tensor, right: torch.Tensor, norm: LayerNorm) -> torch.Tensor:
    """LayerNorm of a sum that is not rounded before.

    Args:
        left: [n, hidden], contiguous; its memory is that of the result.
        right: likewise, but for its memory.
        norm: with a bias.
    """
    hidden = left.shape[1]
    columns = _power_of_two(hidden)
    assert norm.bias is not None
    add_norm[(len(left),)](
        *(left, right, norm.weight, norm.bias, left, norm.epsilon),
        HIDDEN=hidden,
        COLUMNS=columns,
        num_warps=max(1, columns // _COLUMNS_OF_A_WARP),
    )
    return left


def gelu_in_place(values: torch.Tensor) -> torch.Tensor:
    """The exact GELU.

    Args:
        values: [n, width], contiguous. The wider a power of two that divides the width, the faster.
    """
    width = values.shape[1]
    block = min(width & -width, _GELU_BLOCK)
    gelu[(values.numel() // block,)](values, BLOCK=block)
    return values


def _power_of_two(size: int) -> int:
    """The least one that is not below."""
    return 1 << (size - 1).bit_length()
