"""L1 of the store's recency, against an ordered list that is kept up to date at every use."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scorer_worker.recency import Recency

SIZES = (16, 32, 48)
GROUPS = 3


class RecencyMachine(RuleBasedStateMachine):
    """Entries come and go, are held and let go; each has a name, as slots are used again."""

    def __init__(self) -> None:
        super().__init__()
        self.recency = Recency(GROUPS, some=4)
        self.busy: dict[int, tuple[int, int]] = {}  # slot -> size, group
        self.idle: dict[int, tuple[int, int]] = {}  # likewise, the longest unused first

    @rule(new=st.lists(st.tuples(st.sampled_from(SIZES), st.integers(0, GROUPS - 1)), min_size=1, max_size=8))
    def add(self, new: list[tuple[int, int]]) -> None:
        for size, group in new:
            slot = self.recency.add(size, group)
            assert slot not in self.busy and slot not in self.idle
            self.busy[slot] = size, group

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        slots = data.draw(st.lists(st.sampled_from(sorted(self.busy)), unique=True, min_size=1))
        self.recency.let_go(slots)
        self.idle |= {slot: self.busy.pop(slot) for slot in slots}

    @precondition(lambda self: self.idle)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        slots = data.draw(st.lists(st.sampled_from(sorted(self.idle)), unique=True, min_size=1))
        self.recency.hold(slots)
        self.busy |= {slot: self.idle.pop(slot) for slot in slots}

    @precondition(lambda self: self.idle or self.busy)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from([*self.idle, *self.busy]))
        self.recency.remove(slot)
        self.idle.pop(slot, None)
        self.busy.pop(slot, None)

    @precondition(lambda self: self.idle)
    @rule(count=st.integers(1, 5))
    def evict(self, count: int) -> None:
        for _ in range(min(count, len(self.idle))):
            slot = self.recency.oldest()
            assert slot == next(iter(self.idle))
            self.recency.remove(slot)
            del self.idle[slot]

    @rule(size=st.sampled_from(SIZES))
    def ask_for_a_size(self, size: int) -> None:
        assert self.recency.oldest_of(size) == next((slot for slot in self.idle if self.idle[slot][0] == size), None)

    @rule()
    def ask_for_a_group_that_nobody_holds(self) -> None:
        held = {group for _, group in self.busy.values()}
        expected = next((slot for slot in self.idle if self.idle[slot][1] not in held), None)
        assert self.recency.oldest_unheld() == expected

    @invariant()
    def books_agree(self) -> None:
        assert self.recency.oldest() == next(iter(self.idle), None)
        assert self.recency.num_idle == len(self.idle)
        held = {group for _, group in self.busy.values()}
        assert [self.recency.is_held(group) for group in range(GROUPS)] == [group in held for group in range(GROUPS)]
        times = [self.recency.became_idle(slot) for slot in self.idle]
        assert times == sorted(times) and all(time > 0 for time in times)
        assert all(self.recency.is_idle(slot) for slot in self.idle)
        assert not any(self.recency.is_idle(slot) for slot in self.busy)


TestRecency = RecencyMachine.TestCase
TestRecency.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_of_very_many_the_oldest_are_found_by_a_guess_and_come_in_order() -> None:
    """Where only those are ordered that are older than a sample of all; some are used again meanwhile."""
    choose = random.Random(1)
    recency = Recency(1, some=64)
    slots = [recency.add(16, 0) for _ in range(20_000)]
    choose.shuffle(slots)
    recency.let_go(slots)
    order = dict.fromkeys(slots)  # the longest unused first
    for _ in range(3_000):
        slot = recency.oldest()
        assert slot is not None and slot == next(iter(order))
        recency.remove(slot)
        del order[slot]
        used = choose.sample(slots, 2)
        if used[0] in order and used[1] in order:
            recency.hold(used)
            recency.let_go(used)
            for each in used:
                order[each] = order.pop(each)
