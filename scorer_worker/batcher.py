"""Which pairs the next launch scores. Pure: no clock, no socket, no tensor.

Work-conserving: whenever the device is free, what is there becomes a batch; no timer. There are two lanes, one of small
jobs and one of the others; clients take turns in each, and within a client its jobs do. A turn is one slice of at most
`slice_work`. While jobs wait in both lanes, a batch is of one lane and no larger than a slice, and the lanes alternate:
a small job waits for what is running, and in its own batch for others like it. And for some time after a small job was
there, batches of larger ones are smaller: the next small job will wait for one.

    B1  A batch's work stays within `max_batch_work`, its pairs within `max_batch_pairs`, unless it is a single slice.
    B2  Every pair of a job is handed out exactly once.
    B3  A suspect (a job that was running in a worker that died) is alone in its batch.
    B4  With k clients waiting in a lane, a client is passed over by at most k - 1 slices, and by one batch of the other
        lane for each of this one.
    B5  A small job that waits with larger ones is in no batch with them.
    B6  Within WARY_BATCHES batches after a small job, slices and batches of larger ones stay within `wary_work`, unless
        it is a single pair.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ipc.running import RequestName

SMALL_SHARE = 8  # a job whose work is at most this part of a slice is small
WARY_BATCHES = 64


@dataclass(slots=True, eq=False)
class ScoringJob:
    """A job as the batcher sees it: so many pairs of about so much work each."""

    name: RequestName
    client: bytes
    num_pairs: int
    work_per_pair: int  # multiply-adds, on average
    is_suspect: bool = False
    handed_out: int = 0  # pairs


@dataclass(slots=True)
class PairSlice:
    """Pairs `start` to `stop` of a job."""

    job: ScoringJob
    start: int
    stop: int


class Batcher:
    """The jobs whose embeddings are all on the device, and whose turn it is."""

    def __init__(self, max_batch_pairs: int, max_batch_work: int, slice_work: int, wary_work: int) -> None:
        self._max_batch_pairs = max_batch_pairs
        self._max_batch_work = max_batch_work
        self._slice_work = slice_work
        self._wary_work = wary_work
        self._jobs: dict[RequestName, ScoringJob] = {}
        self._small = _Lane()
        self._large = _Lane()
        self._is_small_next = True  # when jobs wait in both
        self._wary = 0  # batches that B6 is still about
        self._suspects: deque[ScoringJob] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def is_small_next(self) -> bool:
        """Whether the next batch is one of small jobs."""
        return bool(self._small) and not self._suspects and (self._is_small_next or not self._large)

    def add(self, job: ScoringJob) -> None:
        """A job that can be scored now."""
        assert job.name not in self._jobs
        self._jobs[job.name] = job
        if job.is_suspect:
            self._suspects.append(job)
        else:
            self._lane_of(job).add(job)

    def remove(self, name: RequestName) -> None:
        """Nobody waits for this job any more. Unknown names are ignored."""
        job = self._jobs.pop(name, None)
        if job is None:
            return
        if job.is_suspect:
            self._suspects.remove(job)
        else:
            self._lane_of(job).remove(job)

    def next_batch(self) -> list[PairSlice]:
        """The slices to score now; empty if there is nothing to do. Slices of one job are merged."""
        if self._suspects:
            job = self._suspects[0]
            return [self._cut(job, job.num_pairs)]
        if self._small:
            self._wary = WARY_BATCHES
        elif self._large:
            self._wary = max(0, self._wary - 1)
        if not (self._small and self._large):
            self._is_small_next = not self._small  # whoever comes while these run
            if self._large and self._wary:
                return self._batch_of(self._large, self._wary_work)
            return self._batch_of(self._small or self._large, self._max_batch_work)
        lane = self._small if self._is_small_next else self._large
        self._is_small_next = not self._is_small_next
        return self._batch_of(lane, self._slice_work if lane is self._small else self._wary_work)

    def _batch_of(self, lane: _Lane, work_left: int) -> list[PairSlice]:
        """Slices of a lane's jobs in turn while there is work left; one at least."""
        slices: dict[RequestName, PairSlice] = {}
        slice_work = min(self._slice_work, work_left)
        pairs_left = self._max_batch_pairs
        while lane:
            job = lane.first()
            size = min(self._slice_pairs(job, slice_work), job.num_pairs - job.handed_out)
            if slices and (size > pairs_left or size * job.work_per_pair > work_left):
                break
            pairs_left -= size
            work_left -= size * job.work_per_pair
            lane.end_turn()
            part = self._cut(job, size)
            merged = slices.setdefault(job.name, part)
            merged.stop = part.stop
        return list(slices.values())

    def _lane_of(self, job: ScoringJob) -> _Lane:
        return self._small if SMALL_SHARE * job.num_pairs * job.work_per_pair <= self._slice_work else self._large

    def _slice_pairs(self, job: ScoringJob, slice_work: int) -> int:
        return max(1, min(self._max_batch_pairs, slice_work // max(1, job.work_per_pair)))

    def _cut(self, job: ScoringJob, size: int) -> PairSlice:
        start = job.handed_out
        job.handed_out += size
        if job.handed_out == job.num_pairs:
            self.remove(job.name)
        return PairSlice(job, start, job.handed_out)


class _Lane:
    """Jobs by client, the one whose turn it is first."""

    def __init__(self) -> None:
        self._turns: dict[bytes, deque[ScoringJob]] = {}

    def __bool__(self) -> bool:
        return bool(self._turns)

    def add(self, job: ScoringJob) -> None:
        self._turns.setdefault(job.client, deque()).append(job)

    def remove(self, job: ScoringJob) -> None:
        jobs = self._turns[job.client]
        jobs.remove(job)
        if not jobs:
            del self._turns[job.client]

    def first(self) -> ScoringJob:
        return next(iter(self._turns.values()))[0]

    def end_turn(self) -> None:
        """The first client goes to the back of the row, its job to the back of its own."""
        client = next(iter(self._turns))
        jobs = self._turns.pop(client)
        jobs.rotate(-1)
        self._turns[client] = jobs
