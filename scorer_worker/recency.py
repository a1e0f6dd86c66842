"""Which idle entries of a store have not been used for the longest time. Pure bookkeeping.

To use a thousand texts is to write a thousand numbers into an array, in one go: nothing is moved in any order. Only who
looks for the oldest pays for an order, and then for the next SOME at a time.

    L1  `oldest` is the idle slot that was let go before all others; `oldest_of` the same of one size, `oldest_unheld`
        of the groups in which every slot is idle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SOME = 4096
SAMPLE = 4096  # slots by which it is guessed how old the oldest SOME are
SURE = 16  # of them
_BUSY = np.iinfo(np.int64).max  # when a slot was used that is not idle, or nobody's

Ints = np.ndarray[Any, np.dtype[np.int64]]


class Recency:
    """See the file's docstring. What is in the store has a slot, a small number, for as long as it is there.

    Args:
        groups: numbers below this may be groups: slabs of the store.
        some: how many are brought into order at a time.
    """

    def __init__(self, groups: int, some: int = SOME) -> None:
        self.num_idle = 0
        self._some = some
        self._used: Ints = np.full(some, _BUSY)  # when each slot became idle
        self._sizes: Ints = np.zeros(some, np.int64)
        self._groups: Ints = np.zeros(some, np.int64)
        self._held: Ints = np.zeros(groups, np.int64)  # slots of each group that are not idle
        self._free = list(range(some))[::-1]
        self._clock = 1  # `became_idle` is above 0, which stands for never
        self._orders: dict[int | None, _Order] = {None: _Order(None, some)}  # by size; None: all

    def add(self, size: int, group: int) -> int:
        """A slot for a new entry, which is not idle."""
        if not self._free:
            count = len(self._used)
            self._used = np.concatenate([self._used, np.full(count, _BUSY)])
            self._sizes, self._groups = (
                np.concatenate([numbers, np.zeros(count, np.int64)]) for numbers in (self._sizes, self._groups)
            )
            self._free = list(range(count, 2 * count))[::-1]
        slot = self._free.pop()
        self._sizes[slot] = size
        self._groups[slot] = group
        self._held[group] += 1
        return slot

    def remove(self, slot: int) -> None:
        """The entry has left; its slot will be another's."""
        if self.is_idle(slot):
            self._used[slot] = _BUSY
            self.num_idle -= 1
        else:
            self._held[self._groups[slot]] -= 1
        self._free.append(slot)

    def size_of(self, slots: Ints) -> int:
        """Of all these together."""
        return int(self._sizes[slots].sum())

    def hold(self, slots: Sequence[int] | Ints) -> None:
        """These, each once, were idle and are not any more."""
        self._used[slots] = _BUSY
        np.add.at(self._held, self._groups[slots], 1)
        self.num_idle -= len(slots)

    def let_go(self, slots: Sequence[int] | Ints) -> None:
        """These, each once, were not idle and are from now on, the first of them the longest."""
        self._used[slots] = np.arange(self._clock, self._clock + len(slots))
        np.subtract.at(self._held, self._groups[slots], 1)
        self._clock += len(slots)
        self.num_idle += len(slots)

    def is_idle(self, slot: int) -> bool:
        return self._used.item(slot) != _BUSY

    def is_held(self, group: int) -> bool:
        """Whether a slot of the group is not idle."""
        return self._held.item(group) > 0

    def became_idle(self, slot: int) -> int:
        """A number above 0 that is larger, the later this idle slot was let go."""
        return self._used.item(slot)

    def oldest(self) -> int | None:
        """The longest unused idle slot."""
        return self._orders[None].first(self._used, self._sizes)

    def oldest_of(self, size: int) -> int | None:
        """The longest unused idle slot of this size."""
        return self._orders.setdefault(size, _Order(size, self._some)).first(self._used, self._sizes)

    def oldest_unheld(self) -> int | None:
        """The longest unused idle slot of a group that is not held. Looks at all slots, 2 ms for half a million."""
        times = np.where(self._held[self._groups] == 0, self._used, _BUSY)
        slot = int(times.argmin())
        return slot if times[slot] != _BUSY else None


class _Order:
    """The oldest slots, of one size or of all, as they were found at some time. What became idle since is younger."""

    def __init__(self, size: int | None, some: int) -> None:
        self._size = size
        self._some = some
        # slots, the oldest last, and when each became idle: not pairs, which the garbage collector would count
        self._slots: list[int] = []
        self._times: list[int] = []
        self._found_until = 0  # when the youngest of them did

    def first(self, used: Ints, sizes: Ints) -> int | None:
        while self._slots or self._find_more(used, sizes):
            slot = self._slots[-1]
            if used.item(slot) == self._times[-1]:
                return slot
            self._slots.pop()  # it has been used meanwhile, or has left
            self._times.pop()
        return None

    def _find_more(self, used: Ints, sizes: Ints) -> bool:
        """The next ones, if there are any."""
        is_wanted = (used > self._found_until) & (used <= self._time_of_enough(used))
        if self._size is not None:
            is_wanted &= sizes == self._size
        slots = np.flatnonzero(is_wanted)
        times = used[slots]
        if len(slots) > self._some:
            first = np.argpartition(times, self._some)[: self._some]
            slots, times = slots[first], times[first]
        order = np.argsort(times)[::-1]
        self._slots, self._times = slots[order].tolist(), times[order].tolist()
        if self._times:
            self._found_until = self._times[0]
        return bool(self._times)

    def _time_of_enough(self, used: Ints) -> int:
        """Before this about twice as many as are wanted became idle. To look at all of them takes twice as long (25 ms
        of a busy core for half a million, by hand)."""
        step = max(1, len(used) // SAMPLE)
        wanted = 2 * self._some // step
        if self._size is None and wanted >= SURE:
            some = used[::step]
            some = some[(some > self._found_until) & (some != _BUSY)]
            if wanted < len(some):
                return int(np.partition(some, wanted)[wanted])
        return _BUSY - 1
