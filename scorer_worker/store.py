"""The embedding store's directory: which embeddings lie where, who holds them, and who has to go. Pure bookkeeping.

Rows of one arena are given out in contiguous extents, so that a document is one run of memory (decision 0001). The
arena is cut into slabs; a slab serves one size class at a time (extents of equal size), an entry larger than a slab
takes a run of slabs. Eviction is by recency: within a class an entry makes room for an entry; between classes a whole
slab changes hands.

    S1  Extents of entries, retired extents and free room do not overlap and add up to the arena.
    S2  A pinned entry is never evicted and never moves.
    S3  Room that was in use is handed out again only after the last device operation that may touch it has completed.
    S4  `admit` happens as a whole or not at all: who does not fit holds nothing.
    S5  Whatever is within `max_job_rows`, each text in whole grains, fits an empty store. (Pinned entries may lie so
        that a slab of another class cannot be had; a job that finds no room although nobody holds anything therefore
        has the store cleared.)
"""

from __future__ import annotations

import enum
import struct
from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from scorer_worker.by_slot import BySlot
from scorer_worker.recency import Ints, Recency

ROW_GRAIN = 16  # extents are multiples of this: kernels reduce dense blocks of 16 rows
SLAB_BYTES = 2 * 2**20
_PLACE = struct.Struct("=ii")
MIN_SLABS = 128  # a small arena gets smaller slabs, so that every class can have some (S5)


class TooLarge(Exception):
    """This can never be admitted. The text says what was wanted and what there is."""


class EntryState(enum.Enum):
    """RESERVED: has room, its embeddings are being made. FILLED: they are there. GONE: not in the store any more."""

    RESERVED = "reserved"
    FILLED = "filled"
    GONE = "gone"


class Entry(msgspec.Struct, eq=False, gc=False):
    """One text's embeddings: rows `start` to `start + rows` of the arena.

    There are hundreds of thousands, so the garbage collector does not count them: each pass over those that a thousand
    or two new texts brought kept the worker from its clients for 1 to 4 ms (by hand, on an H100's host).
    """

    key: bytes
    start: int
    rows: int
    extent: int  # rows reserved, a multiple of ROW_GRAIN
    prompt_tokens: int
    keep: bool  # False: leaves the store with its last pin
    slab: int
    slot: int  # in the store's `Recency`
    state: EntryState = EntryState.RESERVED
    # [2] int32, number of the first grain and rows: what a batch's table of pairs is made of
    place: bytes = b""

    def __post_init__(self) -> None:
        self.place = _PLACE.pack(self.start // ROW_GRAIN, self.rows)


class NewEntry(msgspec.Struct, frozen=True, gc=False):
    """A text that needs room."""

    key: bytes
    rows: int
    prompt_tokens: int
    keep: bool = True


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Counters since the start, and what lies in the store now."""

    entries: int
    held_entries: int  # by jobs, or by the encoder
    used_rows: int  # of entries, without what rounding costs
    reserved_rows: int  # extents of entries
    retired_rows: int
    capacity_rows: int
    evictions: int
    insertions: int


@dataclass(slots=True)
class _Slab:
    """A run of rows that serves extents of one size; or one part of a large entry."""

    first_row: int
    extent: int = 0  # 0: free
    free: list[int] = field(default_factory=list)  # starts of free extents
    entries: dict[int, Entry] = field(default_factory=dict)  # by start
    retired: int = 0  # extents that wait for the device


class StoreDirectory:
    """See the file's docstring. Belongs to one thread.

    Args:
        total_rows: rows of the arena; what does not fill a slab is left unused.
        slab_rows: see `slab_rows_for`.
    """

    def __init__(self, total_rows: int, slab_rows: int) -> None:
        assert slab_rows % ROW_GRAIN == 0 and total_rows >= slab_rows
        self.slab_rows = slab_rows
        self._slabs = [_Slab(start) for start in range(0, total_rows - slab_rows + 1, slab_rows)]
        self.capacity_rows = len(self._slabs) * slab_rows
        self.max_job_rows = self.capacity_rows // 4
        self._extents = _size_classes(slab_rows)
        self._class_of = _class_table(self._extents)
        self._entries: dict[bytes, Entry] = {}
        self._recency = Recency(groups=len(self._slabs))  # idle: filled and unpinned
        self._by_slot: dict[int, Entry] = {}
        self._numbers = BySlot()
        self._open_slabs: dict[int, dict[int, None]] = {extent: {} for extent in self._extents}  # with a free extent
        self._free_slabs: dict[int, None] = dict.fromkeys(range(len(self._slabs)))
        self._retired: deque[tuple[int, Entry]] = deque()
        self._launched = 0
        self._completed = 0
        self._used_rows = 0
        self._reserved_rows = 0
        self._evictions = 0
        self._insertions = 0

    # --- looking up, pinning ------------------------------------------------------------------------------------

    def lookup(self, key: bytes) -> Entry | None:
        """The entry of this name, filled or being filled. Not pinned: it may go with the next `admit`."""
        return self._entries.get(key)

    def lookup_all(self, keys: Iterable[bytes]) -> list[Entry | None]:
        """As `lookup`, of each."""
        return list(map(self._entries.get, keys))

    def pin(self, entries: Sequence[Entry]) -> Ints:
        """`admit` where there is nothing new.

        Returns:
            Their slots, for `unpin_slots`.

        Raises:
            TooLarge: one job may not hold so much.
        """
        slots = slots_of(entries)
        self._check_size(slots, entries, ())
        self._pin(slots)
        return slots

    def admit(self, resident: Sequence[Entry], new: Sequence[NewEntry]) -> list[Entry] | None:
        """Pin the resident entries, and reserve and pin room for the new ones, in one step (S4).

        Args:
            resident: entries that are in the store, each once.

        Returns:
            The entries of `new`, in its order, RESERVED; or None if there is no room now, and then nothing is held.

        Raises:
            TooLarge: they cannot fit, whoever else leaves.
        """
        slots = slots_of(resident)
        self._check_size(slots, resident, new)
        self._pin(slots)
        by_size = sorted(range(len(new)), key=lambda index: -new[index].rows)  # runs of slabs first
        reserved: dict[int, Entry] = {}
        for index in by_size:
            room = self._reserve(new[index])
            if room is None:
                for other in reserved.values():
                    self._forget(other)
                    self._give_back(other)
                self.unpin_slots(slots)
                return None
            reserved[index] = room
        self._insertions += len(new)
        entries = [reserved[index] for index in range(len(new))]
        self._numbers.note(
            slots_of(entries), b"".join([entry.place for entry in entries]), [text.prompt_tokens for text in new]
        )
        return entries

    def fill(self, entry: Entry) -> None:
        """The embeddings of a RESERVED entry have been written (or their writing has been launched)."""
        assert entry.state is EntryState.RESERVED  # so somebody holds it
        entry.state = EntryState.FILLED
        self._numbers.stays[entry.slot] = entry.keep

    def hold(self, entry: Entry) -> None:
        """One more pin, of an entry that is held."""
        assert self.pins(entry)
        self._numbers.pins[entry.slot] += 1

    def unpin(self, entries: Sequence[Entry]) -> None:
        """A job that held these entries, each once, has ended. One that was never filled leaves with its last pin."""
        self.unpin_slots(slots_of(entries))

    def unpin_slots(self, slots: Ints) -> None:
        """As `unpin`, by the entries' slots."""
        let_go = self._numbers.unpin(slots)
        if not len(let_go):
            return
        stays = self._numbers.stays[let_go]
        if not stays.all():
            for slot in let_go[~stays].tolist():
                self._retire(self._by_slot[slot])
            let_go = let_go[stays]
        if len(let_go):
            self._recency.let_go(let_go)

    def unfilled(self, slots: Ints) -> list[Entry]:
        """Those of the entries with these slots that are RESERVED."""
        some = slots[~self._numbers.stays[slots]]  # these, and what will not stay
        return [entry for slot in some.tolist() if (entry := self._by_slot[slot]).state is EntryState.RESERVED]

    def pins(self, entry: Entry) -> int:
        """How many hold an entry that is not gone."""
        return self._numbers.pins.item(entry.slot)

    def places(self, slots: Ints) -> bytes:
        """`Entry.place` of the entries with these slots, one after the other."""
        return self._numbers.places[slots].tobytes()

    def prompt_tokens(self, slots: Ints) -> array[int]:
        """Of the entries with these slots."""
        return array("i", self._numbers.prompt_tokens[slots].tobytes())

    @property
    def is_unheld(self) -> bool:
        """Whether nobody holds anything, and the device has ended all it was told."""
        return self._recency.num_idle == len(self._entries) and not self._retired

    def clear(self) -> None:
        """Evict everything that nobody holds."""
        for entry in [entry for entry in self._entries.values() if not self.pins(entry)]:
            self._evict(entry)

    # --- the device's time ----------------------------------------------------------------------------------------

    def launched(self) -> int:
        """A device operation that reads or writes the arena has been launched.

        Returns:
            Its ticket, for `completed`.
        """
        self._launched += 1
        return self._launched

    def completed(self, ticket: int) -> None:
        """All operations up to this ticket have ended: what they may have touched is free again (S3)."""
        self._completed = max(self._completed, ticket)
        while self._retired and self._retired[0][0] <= self._completed:
            _, entry = self._retired.popleft()
            self._slabs[entry.slab].retired -= 1
            self._give_back(entry)

    # --- what there is --------------------------------------------------------------------------------------------

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(
            entries=len(self._entries),
            held_entries=len(self._entries) - self._recency.num_idle,
            used_rows=self._used_rows,
            reserved_rows=self._reserved_rows,
            retired_rows=sum(entry.extent for _, entry in self._retired),
            capacity_rows=self.capacity_rows,
            evictions=self._evictions,
            insertions=self._insertions,
        )

    def check_integrity(self) -> None:
        """S1 and S2, at length. For idle moments and tests.

        Raises:
            AssertionError: the books are wrong.
        """
        seen: dict[int, str] = {}

        def claim(start: int, extent: int, who: str) -> None:
            for row in range(start, start + extent, ROW_GRAIN):
                assert row not in seen, f"S1: row {row} belongs to {who} and to {seen[row]}"
                seen[row] = who

        for entry in self._entries.values():
            assert entry.state is not EntryState.GONE, "S1: an entry that is gone has a name"
            claim(entry.start, entry.extent, f"entry {entry.key.hex()}")
        for _, entry in self._retired:
            claim(entry.start, entry.extent, "a retired extent")
        for number in self._free_slabs:
            assert not self._slabs[number].extent
            claim(self._slabs[number].first_row, self.slab_rows, f"free slab {number}")
        for slab in self._slabs:
            for start in slab.free:
                claim(start, slab.extent, "a free extent")
        for entry in self._entries.values():
            is_idle = self._recency.is_idle(entry.slot)
            assert is_idle == (not self.pins(entry)), "S2: an entry nobody holds is idle, and no other"
            stays = entry.state is EntryState.FILLED and entry.keep
            assert self._numbers.stays[entry.slot] == stays and (stays or not is_idle), "S2"
            slot = np.array([entry.slot])
            assert self.places(slot) == entry.place and self.prompt_tokens(slot)[0] == entry.prompt_tokens
        assert self._recency.num_idle == sum(not self.pins(entry) for entry in self._entries.values())
        assert {entry.slot: entry for entry in self._entries.values()} == self._by_slot, "a slot is one entry's"
        for number, slab in enumerate(self._slabs):
            assert self._recency.is_held(number) == any(map(self.pins, slab.entries.values())), "S2"
        assert self._used_rows == sum(entry.rows for entry in self._entries.values())
        assert self._reserved_rows == sum(entry.extent for entry in self._entries.values())

    # --- room -----------------------------------------------------------------------------------------------------

    def _check_size(self, slots: Ints, resident: Sequence[Entry], new: Sequence[NewEntry]) -> None:
        """
        Raises:
            TooLarge: one job may not hold so much.
        """
        of_new = sum([whole_grains(text.rows) for text in new])
        if of_new + (self._recency.size_of(slots) if resident else 0) <= self.max_job_rows:
            return
        # an extent may be larger than its rows' grains: only here is it looked at closely
        wanted = of_new + sum([whole_grains(entry.rows) for entry in resident])
        if wanted > self.max_job_rows:
            raise TooLarge(
                f"{wanted} rows in one request, each text in whole {ROW_GRAIN}, the store takes {self.max_job_rows}"
            )

    def _pin(self, slots: Ints) -> None:
        idle = self._numbers.pin(slots) if len(slots) else slots
        if len(idle):
            self._recency.hold(idle)

    def _extent_for(self, rows: int) -> int:
        if rows <= self.slab_rows:
            return self._class_of[-(-rows // ROW_GRAIN)]
        return -(-rows // self.slab_rows) * self.slab_rows

    def _reserve(self, new: NewEntry) -> Entry | None:
        assert new.key not in self._entries, "a key is stored once"
        extent = self._extent_for(new.rows)
        place = self._find_extent(extent) if extent <= self.slab_rows else self._find_run(extent // self.slab_rows)
        if place is None:
            return None
        slab, start = place
        slot = self._recency.add(extent, slab)
        entry = Entry(new.key, start, new.rows, extent, new.prompt_tokens, new.keep, slab, slot)
        self._numbers.add(slot)
        self._slabs[slab].entries[start] = entry
        self._entries[new.key] = self._by_slot[slot] = entry
        self._used_rows += new.rows
        self._reserved_rows += extent
        return entry

    def _find_extent(self, extent: int) -> tuple[int, int] | None:
        """(slab, start) of a free extent; evicts for it if it must."""
        if not self._open_slabs[extent] and not self._free_slabs and not self._make_room(extent):
            return None
        if not self._open_slabs[extent]:
            self._open_slab(next(iter(self._free_slabs)), extent)
        number = next(iter(self._open_slabs[extent]))
        slab = self._slabs[number]
        start = slab.free.pop()
        if not slab.free:
            del self._open_slabs[extent][number]
        return number, start

    def _open_slab(self, number: int, extent: int) -> None:
        del self._free_slabs[number]
        slab = self._slabs[number]
        slab.extent = extent
        first, last = slab.first_row, slab.first_row + self.slab_rows
        slab.free = list(range(first, last - extent + 1, extent))[::-1]
        self._open_slabs[extent][number] = None

    def _make_room(self, extent: int) -> bool:
        """Evict until an extent of this size or a slab is free. False: not now.

        The longest unused entry goes. If it is of another size, its whole slab goes with it, unless somebody holds a
        part of that slab; then the longest unused entry of our own size goes, or else the next slab that nobody holds.
        """
        if self._retired:
            return False  # room is on its way: evicting more would only empty the store
        oldest = self._recency.oldest()
        if oldest is None:
            return False
        victim = self._by_slot[oldest]
        if victim.extent == extent:
            self._evict(victim)
        elif not self._recency.is_held(victim.slab):
            self._evict_slab_of(victim)
        elif (own := self._recency.oldest_of(extent)) is not None:
            self._evict(self._by_slot[own])
        elif (other := self._recency.oldest_unheld()) is not None:
            self._evict_slab_of(self._by_slot[other])
        else:
            return False
        return bool(self._open_slabs[extent] or self._free_slabs)

    def _evict_slab_of(self, victim: Entry) -> None:
        """Empty the slab of an idle entry, of which nobody holds a part."""
        for entry in list(self._slabs[victim.slab].entries.values()):
            self._evict(entry)

    def _find_run(self, count: int) -> tuple[int, int] | None:
        """(first slab, start) of a run of free slabs; evicts the run that was unused the longest if it must."""
        best: tuple[int, int] | None = None
        for first in range(len(self._slabs) - count + 1):
            age = self._run_age(first, count)
            if age is not None and (best is None or age < best[0]):
                best = (age, first)
        if best is None:
            return None
        run = range(best[1], best[1] + count)
        for number in run:
            for entry in list(self._slabs[number].entries.values()):
                if entry.state is not EntryState.GONE:
                    self._evict(entry)
        if any(number not in self._free_slabs for number in run):
            return None  # the device may still read it: later
        for number in run:
            del self._free_slabs[number]
            self._slabs[number].extent = self.slab_rows * count
        return best[1], self._slabs[best[1]].first_row

    def _run_age(self, first: int, count: int) -> int | None:
        """When the run was last used: 0 if it is free, None if somebody holds a part of it."""
        newest, number, end = 0, first, first + count
        while number < end:
            slab = self._slabs[number]
            span = max(1, slab.extent // self.slab_rows)
            if slab.retired or number + span > end or (span > 1 and not slab.entries):
                return None  # the device may still read it; or a part of a large entry, which goes as a whole
            for entry in slab.entries.values():
                if self.pins(entry):
                    return None
                newest = max(newest, self._recency.became_idle(entry.slot))
            number += span
        return newest

    def _evict(self, entry: Entry) -> None:
        assert not self.pins(entry), "S2"
        self._evictions += 1
        self._retire(entry)

    def _forget(self, entry: Entry) -> None:
        """The entry has no name any more."""
        entry.state = EntryState.GONE
        del self._entries[entry.key]
        del self._slabs[entry.slab].entries[entry.start]
        del self._by_slot[entry.slot]
        self._recency.remove(entry.slot)
        self._used_rows -= entry.rows
        self._reserved_rows -= entry.extent

    def _retire(self, entry: Entry) -> None:
        """The entry leaves; its room is free at once if no operation can touch it any more (S3)."""
        self._forget(entry)
        if self._completed >= self._launched:
            self._give_back(entry)
        else:
            self._slabs[entry.slab].retired += 1
            self._retired.append((self._launched, entry))

    def _give_back(self, entry: Entry) -> None:
        """The extent is free; so is its slab, if it was the last one in it."""
        if entry.extent > self.slab_rows:
            for number in range(entry.slab, entry.slab + entry.extent // self.slab_rows):
                self._free_slab(number)
            return
        slab = self._slabs[entry.slab]
        slab.free.append(entry.start)
        self._open_slabs[slab.extent][entry.slab] = None
        if not slab.entries and not slab.retired:
            del self._open_slabs[slab.extent][entry.slab]
            self._free_slab(entry.slab)

    def _free_slab(self, number: int) -> None:
        slab = self._slabs[number]
        slab.extent, slab.free = 0, []
        self._free_slabs[number] = None


def slots_of(entries: Sequence[Entry]) -> Ints:
    """By these, loops over a thousand entries are a few calls of numpy."""
    return np.array([entry.slot for entry in entries], np.int64)


def whole_grains(rows: int) -> int:
    """The least room that a text of so many rows takes, in rows: one without any takes some too."""
    return max(ROW_GRAIN, -(-rows // ROW_GRAIN) * ROW_GRAIN)


def slab_rows_for(total_rows: int, row_bytes: int) -> int:
    """Rows of a slab: about 2 MiB, but at least MIN_SLABS slabs in the arena, in whole grains.

    Raises:
        TooLarge: the arena is smaller than MIN_SLABS grains.
    """
    rows = min(SLAB_BYTES // row_bytes, total_rows // MIN_SLABS) // ROW_GRAIN * ROW_GRAIN
    if not rows:
        raise TooLarge(f"a store of {total_rows} rows is too small: at least {MIN_SLABS * ROW_GRAIN}")
    return rows


def _size_classes(slab_rows: int) -> list[int]:
    """Extents: every grain up to 16 grains, then steps of an eighth, so that rounding costs at most an eighth."""
    extents = []
    extent = ROW_GRAIN
    while extent < slab_rows:
        extents.append(extent)
        step = 1 << max(0, (extent // ROW_GRAIN).bit_length() - 4)
        extent += step * ROW_GRAIN
    return [*extents, slab_rows]


def _class_table(extents: list[int]) -> list[int]:
    """The smallest extent that holds n grains, for each n."""
    table = []
    choice = iter(extents)
    extent = next(choice)
    for grains in range(extents[-1] // ROW_GRAIN + 1):
        while extent < grains * ROW_GRAIN:
            extent = next(choice)
        table.append(extent)
    return table
