"""What malloc does with freed memory in the processes that compute: keep it.

glibc gives freed memory back to the kernel as soon as it lies at the end of its heap, or was more than 128 KiB: every
intermediate result of a matmul is then new pages, each of them a page fault. The same 45 products of 4,096 x 32 floats
took 4 ms or 38 ms, by the process, depending on what else lay at the end of the heap.
"""

from __future__ import annotations

import ctypes

KEPT_BYTES = 256 * 2**20  # of freed memory at the end of the heap
LARGEST_REUSED_BYTES = 32 * 2**20  # larger blocks come from the kernel and go back to it; the most that glibc takes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def keep_freed_memory() -> bool:
    """Blocks of up to 32 MiB are reused instead of being returned to the kernel, up to 256 MiB of them.

    Returns:
        False where the C library has no such setting (musl, macOS): nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, LARGEST_REUSED_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
