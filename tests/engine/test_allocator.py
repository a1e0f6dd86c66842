"""Freed memory stays: blocks that come again cost no page faults."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from engine.allocator import keep_freed_memory

BLOCK_FLOATS, BLOCKS = 2**20, 4  # 16 MiB at a time: glibc by itself returns them to the kernel


def _allocate_and_free() -> int:
    """The page faults of it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        blocks = [torch.empty(BLOCK_FLOATS).fill_(1) for _ in range(BLOCKS)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back in this way")
def test_blocks_that_are_allocated_again_fault_no_pages() -> None:
    assert keep_freed_memory()
    _allocate_and_free()
    assert _allocate_and_free() < 1024, "pages came from the kernel again"
