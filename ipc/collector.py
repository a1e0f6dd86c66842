"""Python's garbage collector, told to leave alone what stays.

A full collection looks at every container there is. After torch has been imported these are half a million, and a
scorer worker was seen to stand still for 150 ms in the middle of a request.
"""

from __future__ import annotations

import gc

# new containers less gone ones, before the youngest are looked at; a full collection comes after a hundred times as
# many. What serves leaves no cycles behind, so this is for the unforeseen.
THRESHOLDS = 10_000, 10, 10


def settle_collector() -> None:
    """To be called once, when a process has loaded what it needs: none of it will be looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
