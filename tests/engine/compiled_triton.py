"""The encoder's Triton kernels compiled for a Hopper GPU, which needs none; `test_attention_triton.py` runs them.

That they compile, use the tensor cores' instructions for warp groups, and copy keys and values while they compute.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.attention_kernel import attend_block, list_blocks
from engine.attention_triton import LONG, SHORT, Config
from engine.linear_kernel import linear_gelu, linear_rotate
from engine.linear_triton import BLOCK_K, BLOCK_M, BLOCK_N, TILES, WIDE_HEADS_TILES
from engine.row_kernels import add_norm, gelu, rotate

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 * 1024  # that a program may have there


def compiled(kernel: Any, types: Mapping[str, str], constants: Mapping[str, object], num_warps: int = 4) -> str:
    """The kernel in PTX; see `compile_for_hopper`."""
    ptx: str = compile_for_hopper(kernel, types, constants, num_warps).asm["ptx"]
    return ptx


def compile_for_hopper(kernel: Any, types: Mapping[str, str], constants: Mapping[str, object], num_warps: int) -> Any:
    """What Triton makes of it.

    Args:
        types: of the arguments that are no constants, in order. All pointers are aligned.
    """
    aligned = {(place,): [["tt.divisibility", 16]] for place, kind in enumerate(types.values()) if kind[0] == "*"}
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    return triton.compile(ASTSource(kernel, signature, constants, aligned), HOPPER, {"num_warps": num_warps})


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("reach", [-1, 64])
@pytest.mark.parametrize(("config", "head_dim"), [(SHORT, 32), (SHORT, 64), (LONG, 32), (LONG, 64), (LONG, 128)])
def test_attention(config: Config, head_dim: int, reach: int, dtype: str) -> None:
    types = {
        "qkv": f"*{dtype}",
        "blocks": "*i32",
        "out": f"*{dtype}",
        "scale": "fp32",
    }
    constants = {
        "HEADS": 12,
        "HEAD_DIM": head_dim,
        "ROWS": config.rows,
        "KEYS": config.keys,
        "REACH": reach,
        "STAGES": config.stages,
    }
    ptx = compiled(attend_block, types, constants, config.num_warps)
    assert ("wgmma.mma_async" in ptx) == (config != SHORT)
    assert "cp.async" in ptx
    assert ".local" not in ptx


def test_list_of_blocks() -> None:
    types = {"cu_seqlens": "*i32", "cu_keys": "*i32", "blocks": "*i32", "num_texts": "i32", "num_blocks": "i32"}
    compiled(list_blocks, types, {"ROWS": 128, "LANES": 128})


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_steps_between_products_read_and_write_16_bytes_at_a_time(dtype: str) -> None:
    rows = f"*{dtype}"
    norm_types = dict.fromkeys(("left", "right", "weight", "bias", "out"), rows)
    rotate_types = {"qkv": rows, "position_ids": "*i64", "cos": "*fp32", "sin": "*fp32", "total": "i32"}
    ptx = [
        compiled(gelu, {"values": rows}, {"BLOCK": 1024}),
        compiled(add_norm, {**norm_types, "epsilon": "fp32"}, {"HIDDEN": 1024, "COLUMNS": 1024}, num_warps=1),
        compiled(rotate, rotate_types, {"HEADS": 32, "HEAD_DIM": 64, "COLUMNS": 1024, "ROWS": 2}),
    ]
    for kernel in ptx:
        assert "st.global.v4.b32" in kernel
        assert "st.global.b16" not in kernel


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_products_copy_while_they_multiply_and_fit_the_device(dtype: str) -> None:
    def blocks(rows: int, columns: int) -> str:
        return f"tensordesc<{dtype}[{rows}, {columns}]>"

    sources = {
        "rows": blocks(BLOCK_M, BLOCK_K),
        "weight": blocks(BLOCK_N, BLOCK_K),
        "bias": f"*{dtype}",
        "out": blocks(BLOCK_M, BLOCK_N),
    }
    angles = {"position_ids": "*i64", "cos": "*fp32", "sin": "*fp32"}
    sizes = {"WIDTH": 3072, "INNER": 1024, "PROGRAMS": 132}
    gelu_types, rotate_types = {**sources, "total": "i32"}, {**sources, **angles, "total": "i32"}
    for kernel, types, constants in (
        (linear_gelu, gelu_types, TILES),
        (linear_rotate, rotate_types, {"HALF": 16, **TILES}),
        (linear_rotate, rotate_types, {"HALF": 32, **TILES}),
        (linear_rotate, rotate_types, {"HALF": 64, **WIDE_HEADS_TILES}),
    ):
        num_warps = constants["num_warps"]
        tiles = {name: value for name, value in constants.items() if name != "num_warps"}
        done = compile_for_hopper(kernel, types, {**sizes, **tiles}, num_warps)
        ptx = done.asm["ptx"]
        assert "wgmma.mma_async" in ptx
        assert "cp.async.bulk.tensor" in ptx
        assert ".local" not in ptx
        assert done.metadata.shared <= SHARED_BYTES
