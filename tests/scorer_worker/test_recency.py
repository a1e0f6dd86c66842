"""L1 of the store's recency, against an ordered list that is kept up to date at every use."""

from __future__ import annotations

from itertools import islice

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scorer_worker.recency import Recency

SIZES = (16, 32, 48)


class RecencyMachine(RuleBasedStateMachine):
    """Entries come and go, are held and let go; each has a name, as slots are used again."""

    def __init__(self) -> None:
        super().__init__()
        self.recency = Recency(some=4)
        self.busy: dict[int, int] = {}  # slot -> size
        self.idle: dict[int, int] = {}  # likewise, the longest unused first

    @rule(sizes=st.lists(st.sampled_from(SIZES), min_size=1, max_size=8))
    def add(self, sizes: list[int]) -> None:
        for size in sizes:
            slot = self.recency.add(size)
            assert slot not in self.busy and slot not in self.idle
            self.busy[slot] = size

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
            slot = next(self.recency.oldest())
            assert slot == next(iter(self.idle))
            self.recency.remove(slot)
            del self.idle[slot]

    @rule(size=st.sampled_from(SIZES))
    def ask_for_a_size(self, size: int) -> None:
        assert self.recency.oldest_of(size) == next((slot for slot in self.idle if self.idle[slot] == size), None)

    @rule(count=st.integers(0, 10))
    def ask_for_some(self, count: int) -> None:
        assert list(islice(self.recency.oldest(), count)) == list(self.idle)[:count]

    @invariant()
    def order_agrees(self) -> None:
        assert self.recency.num_idle == len(self.idle)
        assert all(self.recency.is_idle(slot) for slot in self.idle)
        assert not any(self.recency.is_idle(slot) for slot in self.busy)


TestRecency = RecencyMachine.TestCase
TestRecency.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
