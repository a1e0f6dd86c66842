"""Linear layers on CUDA with what follows them: GELU, or the turning of queries and keys where positions are rotary.

For batches of many rows both are one own kernel (`linear_kernel`), for others cuBLAS's product and a pass over memory:
cuBLAS chooses among many shapes of tiles, where ours is the one that is best for many rows. On an H100, 16,384 rows of
1024 columns, bfloat16, by hand (decision 0006): 229 us with GELU (4096 columns) and 159 us with rotary positions
(3072), where cuBLAS and the pass take 275 and 198. The own kernel is for Hopper's kind of device, where it was
measured, and Triton's interpreter.

Which way a batch goes depends on its number of rows alone. The two differ by one rounding before what follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.linear_kernel import linear_gelu, linear_rotate
from engine.row_steps import Angles, gelu_in_place, rotate_in_place

BLOCK_M, BLOCK_N, BLOCK_K = 128, 256, 64
TILES = {"BLOCK_M": BLOCK_M, "BLOCK_N": BLOCK_N, "BLOCK_K": BLOCK_K, "GROUP": 8, "STAGES": 3, "num_warps": 8}
WIDE_HEADS_TILES = {**TILES, "STAGES": 2}  # of 128 columns, whose angles take more of the shared memory
MANY_ROWS_GELU, MANY_ROWS_ROTATE = 2048, 4096  # from which the own kernel is the faster one
_HOPPER = 9
_ALIGNED_BYTES = 16  # of a row, for a descriptor


@dataclass(frozen=True, slots=True)
class GeluLinear:
    """GELU(x @ weight.T + bias), the exact one, with erf.

    Args:
        weight: [out, in], float16 or bfloat16 (the interpreter takes float32), on the device.
        bias: [out].
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, in], contiguous -> [n, out]"""
        if len(rows) < MANY_ROWS_GELU or not _can_fuse(self.weight):
            return gelu_in_place(functional.linear(rows, self.weight, self.bias))
        return self.fused(rows)

    def fused(self, rows: torch.Tensor) -> torch.Tensor:
        """The same by the own kernel, whatever the number of rows."""
        out = rows.new_empty(len(rows), len(self.weight))
        programs = _programs(rows.device)
        linear_gelu[(min(programs, _num_tiles(out)),)](
            *(_blocks(rows, BLOCK_M), _blocks(self.weight, BLOCK_N), self.bias),
            *(TensorDescriptor.from_tensor(out, [BLOCK_M, BLOCK_N]), len(rows)),
            WIDTH=len(self.weight),
            INNER=self.weight.shape[1],
            PROGRAMS=programs,
            **TILES,
        )
        return out


@dataclass(frozen=True, slots=True)
class RotaryLinear:
    """x @ weight.T + bias: queries, keys and values of every head, of which queries and keys are turned.

    Args:
        weight: [3 * num_heads * head_dim, in], as `GeluLinear`'s; `in_pairs` has ordered its queries and keys.
        bias: likewise.
        head_dim: 32, 64 or 128.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    head_dim: int

    def __call__(self, rows: torch.Tensor, angles: Angles) -> torch.Tensor:
        """[n, in], contiguous -> [n, 3 * num_heads * head_dim]"""
        if len(rows) < MANY_ROWS_ROTATE or not _can_fuse(self.weight):
            product = functional.linear(rows, self.weight, self.bias)
            rotate_in_place(product.view(len(rows), 3, -1, self.head_dim), angles)
            return product
        return self.fused(rows, angles)

    def fused(self, rows: torch.Tensor, angles: Angles) -> torch.Tensor:
        """The same by the own kernel, whatever the number of rows."""
        out = rows.new_empty(len(rows), len(self.weight))
        programs = _programs(rows.device)
        linear_rotate[(min(programs, _num_tiles(out)),)](
            *(_blocks(rows, BLOCK_M), _blocks(self.weight, BLOCK_N), self.bias),
            *(TensorDescriptor.from_tensor(out, [BLOCK_M, BLOCK_N]), angles.position_ids, angles.cos, angles.sin),
            len(rows),
            WIDTH=len(self.weight),
            INNER=self.weight.shape[1],
            HALF=self.head_dim // 2,
            PROGRAMS=programs,
            **(TILES if self.head_dim < 128 else WIDE_HEADS_TILES),
        )
        return out


def in_pairs(parameter: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Weight or bias of queries or keys, so ordered that what is turned together lies together: in each head the first
    of the first half, the first of the second half, and so on. Attention does not see the order, if both have it.

    Args:
        parameter: [num_heads * head_dim, ...]
    """
    halves = parameter.view(-1, 2, head_dim // 2, *parameter.shape[1:])
    return halves.transpose(1, 2).reshape(parameter.shape)


def rows_of_each_way() -> tuple[int, ...]:
    """Numbers of rows of which every way that a batch may go has one."""
    return 1, MANY_ROWS_GELU, MANY_ROWS_ROTATE


def _can_fuse(weight: torch.Tensor) -> bool:
    is_aligned = all(size * weight.element_size() % _ALIGNED_BYTES == 0 for size in weight.shape)
    return is_aligned and (not weight.is_cuda or _is_hopper(weight.device))


@cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device)[0] == _HOPPER


@cache
def _programs(device: torch.device) -> int:
    """As many as the device computes at the same time."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def _num_tiles(out: torch.Tensor) -> int:
    return -(-out.shape[0] // BLOCK_M) * -(-out.shape[1] // BLOCK_N)


def _blocks(matrix: torch.Tensor, rows: int) -> TensorDescriptor:
    return TensorDescriptor.from_tensor(matrix, [rows, BLOCK_K])
