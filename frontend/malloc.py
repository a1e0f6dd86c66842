"""What glibc's malloc does with freed memory in an API server, as its environment: it keeps some.

glibc gives what is free at the end of its heap back to the kernel, beyond a limit that follows the largest block so
far: whether a body of 1.4 MB is 490 page faults or none was a matter of what else lay there, from one start to the
next, and 1.1 ms of a request's 4 (by hand, two cores). Other C libraries know none of these names.
"""

from __future__ import annotations

from collections.abc import Mapping

KEPT_BYTES = 32 * 2**20  # free ones at the end of the heap; glibc itself comes to 64 MiB after bodies of 32
LARGEST_REUSED_BYTES = 32 * 2**20  # larger blocks come from the kernel and go back to it; the most that glibc takes

ENVIRONMENT: Mapping[str, str] = {
    "MALLOC_ARENA_MAX": "2",  # two arenas in place of eight per core: resident memory stays small
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(LARGEST_REUSED_BYTES),
}
