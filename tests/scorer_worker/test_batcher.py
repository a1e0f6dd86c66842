"""What goes into the next launch: B1 to B6 of scorer_worker.batcher."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ipc.running import RequestName
from scorer_worker.batcher import SMALL_SHARE, WARY_BATCHES, Batcher, ScoringJob

MAX_PAIRS, MAX_WORK, SLICE_WORK, WARY_WORK = 50, 1000, 200, 100


def named(number: int) -> RequestName:
    return b"i" * 16, number


def batcher() -> Batcher:
    return Batcher(MAX_PAIRS, MAX_WORK, SLICE_WORK, WARY_WORK)


def is_small(job: ScoringJob) -> bool:
    return job.num_pairs * job.work_per_pair * SMALL_SHARE <= SLICE_WORK


def test_nothing_to_do_is_an_empty_batch() -> None:
    assert batcher().next_batch() == []


def test_small_jobs_of_all_clients_share_a_batch() -> None:
    waiting = batcher()
    for number, client in enumerate((b"a", b"b", b"c")):
        waiting.add(ScoringJob(named(number), client, 3, 10))
    assert sorted(part.job.client for part in waiting.next_batch()) == [b"a", b"b", b"c"]
    assert len(waiting) == 0


def test_small_job_behind_a_large_one_is_first_and_alone() -> None:
    waiting = batcher()
    waiting.add(ScoringJob(named(1), b"a", 1000, 10))
    waiting.add(ScoringJob(named(2), b"b", 1, 10))
    assert [part.job.name for part in waiting.next_batch()] == [named(2)]


def test_small_jobs_without_end_leave_a_slice_to_the_large_one() -> None:
    waiting = batcher()
    waiting.add(ScoringJob(named(0), b"a", 60, 10))
    shares = []
    for number in range(1, 7):
        waiting.add(ScoringJob(named(number), b"b", 1, 10))
        shares.append([(part.job.name[1], part.stop - part.start) for part in waiting.next_batch()])
    assert shares == [[(1, 1)], [(0, 10)], [(2, 1), (3, 1)], [(0, 10)], [(4, 1), (5, 1)], [(0, 10)]]


def test_while_a_large_job_waits_small_ones_go_a_slice_at_a_time() -> None:
    waiting = batcher()
    waiting.add(ScoringJob(named(0), b"a", 60, 10))
    for number in range(1, 50):
        waiting.add(ScoringJob(named(number), b"b", 1, 10))
    assert sum(sizes(waiting)) == SLICE_WORK / 10
    assert [part.job.name[1] for part in waiting.next_batch()] == [0]


def test_large_job_alone_has_whole_batches_until_a_small_one_comes_and_some_time_after() -> None:
    waiting = batcher()
    waiting.add(ScoringJob(named(0), b"a", 40 + 10 * (WARY_BATCHES - 1) + 80, 10))
    assert sizes(waiting) == [40]
    waiting.add(ScoringJob(named(1), b"b", 1, 10))
    assert [part.job.name[1] for part in waiting.next_batch()] == [1]
    assert [sizes(waiting) for _ in range(WARY_BATCHES - 1)] == [[10]] * (WARY_BATCHES - 1)
    assert [sizes(waiting) for _ in range(2)] == [[40], [40]]


def test_larger_jobs_do_not_share_a_batch_while_small_ones_keep_coming() -> None:
    waiting = batcher()
    waiting.add(ScoringJob(named(0), b"a", 1, 10))
    waiting.add(ScoringJob(named(1), b"b", 6, 10))
    waiting.add(ScoringJob(named(2), b"c", 6, 10))
    assert [sizes(waiting) for _ in range(3)] == [[1], [6], [6]]


def sizes(waiting: Batcher) -> list[int]:
    return [part.stop - part.start for part in waiting.next_batch()]


def test_slices_of_one_job_are_merged() -> None:
    waiting = batcher()
    waiting.add(ScoringJob(named(1), b"a", 45, 10))
    (part,) = waiting.next_batch()
    assert (part.start, part.stop) == (0, 45)


def test_job_with_pairs_above_every_limit_still_goes() -> None:
    waiting = batcher()
    waiting.add(ScoringJob(named(1), b"a", 2, 10 * MAX_WORK))
    assert [(part.start, part.stop) for part in waiting.next_batch()] == [(0, 1)]
    assert [(part.start, part.stop) for part in waiting.next_batch()] == [(1, 2)]


def test_suspect_is_alone() -> None:
    waiting = batcher()
    waiting.add(ScoringJob(named(1), b"a", 1, 1))
    waiting.add(ScoringJob(named(2), b"b", 1, 1, is_suspect=True))
    assert [[part.job.name for part in waiting.next_batch()] for _ in range(2)] == [[named(2)], [named(1)]]


@given(
    st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(1, 30)), min_size=1, max_size=12),
    st.sampled_from([0, SLICE_WORK]),
)
def test_clients_take_turns(jobs: list[tuple[bytes, int]], work: int) -> None:
    """B4: while two clients wait in a lane, neither gets two slices more than the other."""
    waiting = Batcher(1, MAX_WORK, SLICE_WORK, WARY_WORK)  # one pair a batch: the order of turns is visible
    left: dict[bytes, int] = defaultdict(int)
    for number, (client, pairs) in enumerate(jobs):
        waiting.add(ScoringJob(named(number), client, pairs, work))
        left[client] += pairs
    served: dict[bytes, int] = defaultdict(int)
    while len(waiting):
        (part,) = waiting.next_batch()
        served[part.job.client] += 1
        left[part.job.client] -= 1
        hungry = [client for client in left if left[client]]
        assert all(served[part.job.client] - served[client] <= 1 for client in hungry)


class BatcherMachine(RuleBasedStateMachine):
    """Jobs come, go and are served at random; every pair is handed out exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.batcher = batcher()
        self.handed: dict[int, list[int]] = {}
        self.sizes: dict[int, int] = {}
        self.next_name = 0

    @rule(
        client=st.sampled_from([b"a", b"b", b"c"]),
        pairs=st.integers(1, 200),
        work=st.integers(0, 2000),
        suspect=st.booleans(),
    )
    def add(self, client: bytes, pairs: int, work: int, suspect: bool) -> None:
        self.batcher.add(ScoringJob(named(self.next_name), client, pairs, work, suspect))
        self.sizes[self.next_name] = pairs
        self.handed[self.next_name] = []
        self.next_name += 1

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.sizes:
            name = data.draw(st.sampled_from(sorted(self.sizes)))
            self.batcher.remove(named(name))
            del self.sizes[name]

    @rule()
    def serve(self) -> None:
        is_small_next = self.batcher.is_small_next
        batch = self.batcher.next_batch()
        jobs = [part.job for part in batch]
        is_of_small = bool(jobs) and all(is_small(job) and not job.is_suspect for job in jobs)
        assert is_small_next == is_of_small
        pairs = sum(part.stop - part.start for part in batch)
        work = sum((part.stop - part.start) * part.job.work_per_pair for part in batch)
        if len(batch) > 1:
            assert pairs <= MAX_PAIRS and work <= MAX_WORK  # B1
            assert not any(part.job.is_suspect for part in batch)  # B3
            assert len({is_small(part.job) for part in batch}) == 1  # B5
        for part in batch:
            name = part.job.name[1]
            self.handed[name] += range(part.start, part.stop)
            if part.stop == self.sizes[name]:
                assert self.handed[name] == list(range(self.sizes.pop(name)))  # B2

    @invariant()
    def has_work_while_jobs_wait(self) -> None:
        assert len(self.batcher) == len(self.sizes)


TestBatcher = BatcherMachine.TestCase
