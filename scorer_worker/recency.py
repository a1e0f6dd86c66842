"""Which idle entries of a store have not been used for the longest time. Pure bookkeeping.

To use a thousand texts is to write a thousand numbers into an array, in one go: nothing is moved in any order. Only who
looks for the oldest pays for an order, and then for the next SOME at a time.

    L1  `oldest` yields every idle slot once, by when it became idle; `oldest_of` likewise those of one size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

SOME = 4096  # of half a million 4 ms are enough to find so many
_BUSY = np.iinfo(np.int64).max  # when a slot was used that is not idle, or nobody's

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Recency:
    """See the file's docstring. What is in the store has a slot, a small number, for as long as it is there.

    Args:
        some: how many are brought into order at a time.
    """

    def __init__(self, some: int = SOME) -> None:
        self.num_idle = 0
        self._some = some
        self._used: Ints = np.full(some, _BUSY)  # when each slot became idle
        self._sizes: Ints = np.zeros(some, np.int64)
        self._free = list(range(some))[::-1]
        self._clock = 0
        self._orders: dict[int | None, _Order] = {None: _Order(None, some)}  # by size; None: all

    def add(self, size: int) -> int:
        """A slot for a new entry, which is not idle."""
        if not self._free:
            count = len(self._used)
            self._used = np.concatenate([self._used, np.full(count, _BUSY)])
            self._sizes = np.concatenate([self._sizes, np.zeros(count, np.int64)])
            self._free = list(range(count, 2 * count))[::-1]
        slot = self._free.pop()
        self._sizes[slot] = size
        return slot

    def remove(self, slot: int) -> None:
        """The entry has left; its slot will be another's."""
        if self._used.item(slot) != _BUSY:
            self._used[slot] = _BUSY
            self.num_idle -= 1
        self._free.append(slot)

    def hold(self, slots: Sequence[int]) -> None:
        """These were idle and are not any more."""
        self._used[slots] = _BUSY
        self.num_idle -= len(slots)

    def let_go(self, slots: Sequence[int]) -> None:
        """These were not idle and are from now on, the first of them the longest."""
        self._used[slots] = np.arange(self._clock, self._clock + len(slots))
        self._clock += len(slots)
        self.num_idle += len(slots)

    def is_idle(self, slot: int) -> bool:
        return self._used.item(slot) != _BUSY

    def became_idle(self, slot: int) -> int:
        """A number that is larger, the later this idle slot was let go."""
        return self._used.item(slot)

    def oldest(self) -> Iterator[int]:
        """The idle slots, the longest unused first; to be asked anew when one of them has changed."""
        return self._orders[None].slots(self._used, self._sizes)

    def oldest_of(self, size: int) -> int | None:
        """The longest unused idle slot of this size."""
        order = self._orders.setdefault(size, _Order(size, self._some))
        return next(order.slots(self._used, self._sizes), None)


class _Order:
    """The oldest slots, of one size or of all, as they were found at some time. What became idle since is younger."""

    def __init__(self, size: int | None, some: int) -> None:
        self._size = size
        self._some = some
        self._found: list[tuple[int, int]] = []  # slots, and when each became idle
        self._first = 0  # of these that is not known to be stale: used meanwhile, or gone
        self._found_until = -1  # when the last of them did

    def slots(self, used: Ints, sizes: Ints) -> Iterator[int]:
        self._drop_stale(used)
        position = self._first
        while position < len(self._found) or self._find_more(used, sizes):
            slot, time = self._found[position]
            position += 1
            if used.item(slot) == time:
                yield slot

    def _drop_stale(self, used: Ints) -> None:
        found, first = self._found, self._first
        while first < len(found) and used.item(found[first][0]) != found[first][1]:
            first += 1
        if first > self._some:
            del found[:first]
            first = 0
        self._first = first

    def _find_more(self, used: Ints, sizes: Ints) -> bool:
        """The next ones, if there are any."""
        is_wanted = (used > self._found_until) & (used != _BUSY)
        if self._size is not None:
            is_wanted &= sizes == self._size
        slots = np.flatnonzero(is_wanted)
        times = used[slots]
        if len(slots) > self._some:
            first = np.argpartition(times, self._some)[: self._some]
            slots, times = slots[first], times[first]
        order = np.argsort(times)
        self._found.extend(zip(slots[order].tolist(), times[order].tolist(), strict=True))
        if len(order):
            self._found_until = int(times[order[-1]])
        return len(order) > 0
