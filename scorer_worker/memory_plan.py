"""How a CUDA device's memory is divided, once, at start (promise P5).

First the encoder is loaded and runs its largest batches: what that takes is measured, not guessed. The store takes the
rest of what this process may use. Afterwards nothing grows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

SPARE_BYTES = 256 * 2**20  # for scoring: item lists, partial results, embeddings on their way into the store
LEAST_STORE_BYTES = 64 * 2**20


class TooLittleMemory(Exception):
    """The device's memory does not suffice. The text says what was wanted and what there is."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes of the device, by who has them."""

    total: int
    at_start: int  # taken before anything was loaded: other processes, and this one's context
    encoder: int  # weights and working room
    store: int

    def describe(self) -> Iterator[str]:
        """A table for people."""
        left = self.total - self.at_start - self.encoder - self.store
        parts = {
            "other processes and context": self.at_start,
            "weights, encoder's room": self.encoder,
            "embedding store": self.store,
            "left free": left,
            "together": self.total,
        }
        for name, size in parts.items():
            yield f"{name:<28}{size / 2**30:8.2f} GiB"


def used_memory(device: torch.device) -> int:
    """Bytes of the device that anybody has taken."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free


def memory_statistics(device: torch.device) -> dict[str, float]:
    """Bytes that this process's allocator has of a CUDA device, and how many of them are in use; nothing of a CPU."""
    if device.type == "cpu":
        return {}
    # memory_reserved() asks for the same, and makes a flat table of some hundred numbers of it: for milliseconds
    statistics = torch.cuda.memory_stats_as_nested_dict(device)
    return {
        "device_bytes_reserved": float(statistics["reserved_bytes"]["all"]["current"]),
        "device_bytes_allocated": float(statistics["allocated_bytes"]["all"]["current"]),
    }


def plan_memory(device: torch.device, at_start: int, utilization: float, wanted: int | None) -> MemoryPlan:
    """Measure what is taken, after the encoder has run its largest batches, and give the store the rest.

    Args:
        at_start: `used_memory` before anything was loaded.
        utilization: the share of the device's memory that this process may have.
        wanted: bytes of the store; None: all that is left.

    Raises:
        TooLittleMemory: there is no room for a store, or not for the one that is wanted.
    """
    free, total = torch.cuda.mem_get_info(device)
    encoder = max(0, total - free - at_start)
    room = min(int(total * utilization) - encoder, free) - SPARE_BYTES
    if wanted is not None and wanted > room:
        raise TooLittleMemory(
            f"--embedding-cache-size: {wanted / 2**30:.2f} GiB, but {max(0, room) / 2**30:.2f} GiB are left of "
            f"--gpu-memory-utilization {utilization:g} on a device of {total / 2**30:.1f} GiB"
        )
    store = wanted if wanted is not None else room // 2**21 * 2**21
    if store < LEAST_STORE_BYTES:
        raise TooLittleMemory(
            f"--gpu-memory-utilization {utilization:g}: {max(0, room) / 2**20:.0f} MiB are left for the store, "
            f"{LEAST_STORE_BYTES // 2**20} MiB are the least"
        )
    return MemoryPlan(total, at_start, encoder, store)
