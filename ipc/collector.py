"""Python's garbage collector, told to leave alone what stays.

A full collection looks at every container there is. After torch has been imported these are half a million, and a
scorer worker was seen to stand still for 150 ms in the middle of a request.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

# new containers less gone ones, before the youngest are looked at, in 0.3 ms; five times as many are looked at again,
# in 1 to 3, and all after a million. Who waits meanwhile does so behind each: ten thousand at a time took 2 ms, and ten
# times as many 14 (by hand). What serves leaves no cycles behind, so this is for the unforeseen.
THRESHOLDS = 2_000, 5, 100
# for who has `IdleCollector`: a full collection stood between a client and its answer for 50 ms, when the entries of a
# scorer worker's store were containers that it counted; its dictionaries are still large
ONLY_WHEN_IDLE = 2_000, 5, 10_000_000
SECONDS_BETWEEN = 300.0


def settle_collector(thresholds: tuple[int, int, int] = THRESHOLDS) -> None:
    """To be called once, when a process has loaded what it needs: none of it will be looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*thresholds)


class IdleCollector:
    """Full collections when there is nothing to do, every five minutes at most.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = clock() + SECONDS_BETWEEN

    def tell_idle(self) -> None:
        """There is nothing to do now."""
        if self._clock() >= self._next:
            gc.collect()
            self._next = self._clock() + SECONDS_BETWEEN
