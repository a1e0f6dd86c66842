"""S1 to S5 of the store, against a model that knows nothing of slabs: what each row holds."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scorer_worker.recency import SOME
from scorer_worker.store import (
    MIN_SLABS,
    ROW_GRAIN,
    Entry,
    EntryState,
    NewEntry,
    StoreDirectory,
    TooLarge,
    slab_rows_for,
    whole_grains,
)

SLAB_ROWS = 64
TOTAL_ROWS = SLAB_ROWS * 12


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def admit(directory: StoreDirectory, number: int, rows: int, keep: bool = True) -> Entry:
    """One new entry, filled and pinned."""
    admitted = directory.admit([], [NewEntry(key(number), rows, rows, keep)])
    assert admitted is not None
    directory.fill(admitted[0])
    return admitted[0]


def test_entry_is_found_until_it_is_evicted() -> None:
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    entry = admit(directory, 1, 20)
    directory.unpin([entry])
    assert directory.lookup(key(1)) is entry
    directory.clear()
    assert directory.lookup(key(1)) is None
    assert entry.state is EntryState.GONE
    directory.check_integrity()


def test_longest_unused_entry_of_the_size_goes_first() -> None:
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    per_store = TOTAL_ROWS // 16
    for number in range(per_store):
        directory.unpin([admit(directory, number, 16)])
    first = directory.lookup(key(0))
    assert first is not None
    directory.admit([first], [])
    directory.unpin([first])  # used again: number 1 is the oldest now
    directory.unpin([admit(directory, 1000, 16)])
    assert directory.lookup(key(0)) is first
    assert directory.lookup(key(1)) is None
    directory.check_integrity()


def test_another_size_takes_over_a_whole_slab() -> None:
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    for number in range(TOTAL_ROWS // 16):
        directory.unpin([admit(directory, number, 16)])
    directory.unpin([admit(directory, 1000, 60)])
    assert directory.lookup(key(1000)) is not None
    assert sum(directory.lookup(key(number)) is None for number in range(TOTAL_ROWS // 16)) == SLAB_ROWS // 16
    directory.check_integrity()


def test_large_entry_takes_free_slabs_before_it_evicts_anything() -> None:
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    first = admit(directory, 1, 16)
    directory.unpin([first])
    directory.unpin([admit(directory, 2, 2 * SLAB_ROWS)])
    assert directory.lookup(key(1)) is first


def test_where_a_part_of_the_oldest_slab_is_held_another_one_goes() -> None:
    """And where of every slab somebody holds a part, nothing does."""
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    per_slab = SLAB_ROWS // 16
    entries = [admit(directory, number, 16) for number in range(TOTAL_ROWS // 16)]
    directory.unpin(entries)
    by_slab = [[entry for entry in entries if entry.slab == slab] for slab in sorted({e.slab for e in entries})]
    oldest = min(by_slab, key=lambda slab: entries.index(slab[0]))
    directory.admit(oldest[1:2], [])
    directory.unpin([admit(directory, 1000, 60)])
    assert all(directory.lookup(entry.key) is entry for entry in oldest)
    assert sum(directory.lookup(entry.key) is None for entry in entries) == per_slab
    rest = [slab[1] for slab in by_slab if slab is not oldest and slab[1].state is EntryState.FILLED]
    directory.admit(rest, [])
    directory.admit([entry for entry in [directory.lookup(key(1000))] if entry is not None], [])
    assert directory.admit([], [NewEntry(key(1001), 40, 0)]) is None
    directory.check_integrity()


def test_large_entries_replace_each_other() -> None:
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    for number in range(20):
        entry = admit(directory, number, 3 * SLAB_ROWS - 5)
        assert entry.start % SLAB_ROWS == 0
        directory.unpin([entry])
        directory.check_integrity()
    assert directory.statistics().entries == 4


def test_pinned_entries_are_not_evicted_and_who_finds_no_room_holds_nothing() -> None:
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    pinned = [admit(directory, number, SLAB_ROWS) for number in range(12)]
    before = directory.statistics()
    assert directory.admit([], [NewEntry(key(100), 16, 0), NewEntry(key(101), 16, 0)]) is None
    assert directory.statistics() == before
    assert not directory.is_unheld
    directory.unpin(pinned)
    assert directory.is_unheld
    assert directory.admit([], [NewEntry(key(100), 16, 0)]) is not None
    directory.check_integrity()


def test_half_of_a_job_is_not_admitted() -> None:
    """S4: the first two would fit, the third does not."""
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    pinned = [admit(directory, number, SLAB_ROWS) for number in range(10)]
    wanted = [NewEntry(key(100 + number), SLAB_ROWS, 0) for number in range(3)]
    assert directory.admit([], wanted) is None
    assert all(directory.lookup(new.key) is None for new in wanted)
    directory.check_integrity()
    directory.unpin(pinned[:1])
    assert directory.admit([], wanted) is not None


def test_what_a_job_that_is_not_admitted_has_in_the_store_is_not_held() -> None:
    """S4: else it could never leave again."""
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    resident = [admit(directory, number, SLAB_ROWS) for number in range(2)]
    directory.unpin(resident[:1])
    pinned = [admit(directory, 10 + number, SLAB_ROWS) for number in range(10)]
    assert directory.admit(resident, [NewEntry(key(100), SLAB_ROWS, 0)]) is None
    assert [directory.pins(entry) for entry in resident] == [0, 1]
    directory.unpin([*pinned, resident[1]])
    assert directory.is_unheld
    directory.check_integrity()


def test_more_rows_than_a_job_may_have_are_refused() -> None:
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    with pytest.raises(TooLarge, match="192"):
        directory.admit([], [NewEntry(key(1), TOTAL_ROWS // 4 + 1, 0)])


def test_what_fits_in_whole_grains_is_taken_though_its_extents_are_larger() -> None:
    """S5: an extent may be larger than its rows' grains, and then they are looked at closely."""
    directory = StoreDirectory(ROW_GRAIN * 4 * 40, ROW_GRAIN * 40)
    rows = ROW_GRAIN * 17  # its extent is of 18 grains
    entries = [admit(directory, number, rows) for number in range(2)]
    assert entries[0].extent > rows
    directory.unpin(entries)
    room = directory.max_job_rows - 2 * rows
    slots = directory.pin(entries)
    directory.unpin_slots(slots)
    assert sum(entry.extent for entry in entries) + room > directory.max_job_rows
    admitted = directory.admit(entries, [NewEntry(key(9), room, 0)])
    assert admitted is not None
    directory.unpin([*entries, *admitted])
    with pytest.raises(TooLarge):
        directory.admit(entries, [NewEntry(key(10), room + 1, 0)])
    directory.check_integrity()


def test_entry_of_one_job_leaves_with_its_last_pin() -> None:
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    entry = admit(directory, 1, 20, keep=False)
    directory.hold(entry)
    directory.unpin([entry])
    assert directory.lookup(key(1)) is entry
    directory.unpin([entry])
    assert directory.lookup(key(1)) is None


def test_reservation_that_was_never_filled_leaves_with_its_last_pin() -> None:
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    reserved = directory.admit([], [NewEntry(key(1), 20, 0)])
    assert reserved is not None
    directory.unpin(reserved)
    assert directory.lookup(key(1)) is None
    directory.check_integrity()


def test_more_entries_than_there_is_room_for_at_first_keep_their_numbers() -> None:
    count = 2 * SOME + 1
    directory = StoreDirectory(ROW_GRAIN * count + SLAB_ROWS, SLAB_ROWS)
    entries = [admit(directory, number, 1 + number % ROW_GRAIN) for number in range(count)]
    directory.unpin(entries[1:])
    slots = directory.pin(entries[::100])
    assert directory.places(slots) == b"".join(entry.place for entry in entries[::100])
    assert directory.prompt_tokens(slots).tolist() == [entry.rows for entry in entries[::100]]
    assert [directory.pins(entry) for entry in entries[:101]] == [2, *[0] * 99, 1]
    directory.unpin_slots(slots)
    directory.check_integrity()


def test_room_comes_back_only_after_the_device_is_done() -> None:
    """S3: every slab is in use by a launched operation; nothing is handed out before it has completed."""
    directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
    entries = [admit(directory, number, SLAB_ROWS, keep=False) for number in range(12)]
    earlier, ticket = directory.launched(), directory.launched()
    directory.unpin(entries)
    directory.completed(earlier)
    assert directory.statistics().retired_rows == TOTAL_ROWS
    assert directory.admit([], [NewEntry(key(100), 16, 0)]) is None
    directory.check_integrity()
    directory.completed(ticket)
    assert directory.statistics().retired_rows == 0
    assert directory.admit([], [NewEntry(key(100), 16, 0)]) is not None
    directory.check_integrity()


@pytest.mark.parametrize("row_bytes", [32, 512, 1536, 4096])
def test_small_arenas_get_small_slabs(row_bytes: int) -> None:
    rows = slab_rows_for(8 * 2**20 // row_bytes, row_bytes)
    assert rows % ROW_GRAIN == 0 and 8 * 2**20 // row_bytes // rows >= MIN_SLABS


def test_arena_below_the_least_is_refused() -> None:
    with pytest.raises(TooLarge, match="too small"):
        slab_rows_for(MIN_SLABS * ROW_GRAIN - 1, 4)


@settings(max_examples=30)
@given(st.integers(0, 2**32))
def test_any_job_fits_an_empty_store(seed: int) -> None:
    """S5: whatever mixture of sizes is within max_job_rows."""
    choose = random.Random(seed)
    total = choose.randrange(MIN_SLABS * ROW_GRAIN, 200_000)
    directory = StoreDirectory(total, slab_rows_for(total, choose.choice([64, 512, 1536])))
    left = directory.max_job_rows
    wanted: list[NewEntry] = []
    sizes = choose.choice([[0, 1], [17], [0, 1, 16, 17, 100, 200, 500, 1000, 5000, choose.randrange(1, left + 1)]])
    while left >= ROW_GRAIN:
        rows = min(left // ROW_GRAIN * ROW_GRAIN, choose.choice(sizes))
        wanted.append(NewEntry(key(len(wanted)), rows, 0))
        left -= whole_grains(rows)
    entries = directory.admit([], wanted)
    assert entries is not None
    directory.check_integrity()
    directory.unpin(entries)
    with pytest.raises(TooLarge):  # not even one without rows fits in what is left
        directory.admit([], [*wanted, NewEntry(key(len(wanted)), 0, 0)])


class StoreMachine(RuleBasedStateMachine):
    """Jobs come and go, the device lags behind, entries are filled late or never; contents are tags per row."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = StoreDirectory(TOTAL_ROWS, SLAB_ROWS)
        self.rows: list[bytes | None] = [None] * TOTAL_ROWS
        self.jobs: list[list[Entry]] = []
        self.unfilled: list[Entry] = []
        self.reading: list[tuple[int, Entry]] = []  # what launched operations read

    def write(self, entry: Entry) -> None:
        for row in range(entry.start, entry.start + entry.rows):
            self.rows[row] = entry.key
        self.directory.fill(entry)

    @rule(
        numbers=st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.booleans()), min_size=1, max_size=5),
        size=st.integers(1, 170),
    )
    def admit(self, numbers: list[tuple[int, bool, bool]], size: int) -> None:
        resident, new = [], {}
        for number, keep, _ in numbers:
            rows = 1 + (number * 37 + size) % 90 if number % 7 else 70 + number
            entry = self.directory.lookup(key(number))
            if entry is not None:
                if entry not in resident:
                    resident.append(entry)
            else:
                new[number] = NewEntry(key(number), rows, number, keep)
        before = self.directory.statistics().entries
        try:
            reserved = self.directory.admit(resident, list(new.values()))
        except TooLarge:
            return
        if reserved is None:
            assert self.directory.statistics().entries <= before
            return
        self.jobs.append([*resident, *reserved])
        late = {number for number, _, is_late in numbers if is_late}
        for entry in reserved:
            if int.from_bytes(entry.key, "little") in late:
                self.unfilled.append(entry)
            else:
                self.write(entry)

    @rule(numbers=st.sets(st.integers(0, 40), min_size=1, max_size=5))
    def pin(self, numbers: set[int]) -> None:
        found = self.directory.lookup_all(key(number) for number in numbers)
        entries = [entry for entry in found if entry is not None]
        try:
            slots = self.directory.pin(entries)
        except TooLarge:
            return
        self.jobs.append(entries)
        assert self.directory.places(slots) == b"".join(entry.place for entry in entries)
        assert self.directory.prompt_tokens(slots).tolist() == [entry.prompt_tokens for entry in entries]
        reserved = [entry for entry in entries if entry.state is EntryState.RESERVED]
        assert self.directory.unfilled(slots) == reserved

    @precondition(lambda self: self.unfilled)
    @rule(data=st.data())
    def fill_late(self, data: st.DataObject) -> None:
        entry = self.unfilled.pop(data.draw(st.integers(0, len(self.unfilled) - 1)))
        if entry.state is EntryState.RESERVED:
            self.write(entry)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def launch(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        ticket = self.directory.launched()
        self.reading += [(ticket, entry) for entry in job if entry.state is EntryState.FILLED]

    @precondition(lambda self: self.reading)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from([ticket for ticket, _ in self.reading]))
        self.reading = [item for item in self.reading if item[0] > ticket]
        self.directory.completed(ticket)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """Whatever ended the job: its operations may still be running."""
        job = self.jobs.pop(data.draw(st.integers(0, len(self.jobs) - 1)))
        self.directory.unpin(job)

    @rule()
    def clear(self) -> None:
        self.directory.clear()

    @invariant()
    def books_agree(self) -> None:
        self.directory.check_integrity()

    @invariant()
    def nobody_but_jobs_holds_anything(self) -> None:
        held = Counter(id(entry) for job in self.jobs for entry in job)
        assert all(self.directory.pins(entry) == held[id(entry)] for entry in self.directory._entries.values())

    @invariant()
    def nobody_reads_another_one_s_rows(self) -> None:
        held = [entry for job in self.jobs for entry in job] + [entry for _, entry in self.reading]
        for entry in held:
            if entry.state is EntryState.FILLED or (
                entry.state is EntryState.GONE and entry in [e for _, e in self.reading]
            ):
                assert set(self.rows[entry.start : entry.start + entry.rows]) == {entry.key}


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
