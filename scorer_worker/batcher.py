"""Which pairs the next launch scores. Pure: no clock, no socket, no tensor.

Work-conserving: whenever the device is free, what is there becomes a batch; no timer. Clients take turns, and within a
client its jobs do; a turn is one slice of at most `slice_work`, so that a small job waits for at most one batch, in
which it has a place of its own.

    B1  A batch's work stays within `max_batch_work`, its pairs within `max_batch_pairs`, unless it is a single slice.
    B2  Every pair of a job is handed out exactly once.
    B3  A suspect (a job that was running in a worker that died) is alone in its batch.
    B4  With k clients waiting, a client is passed over by at most k - 1 slices.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ipc.running import RequestName


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

    def __init__(self, max_batch_pairs: int, max_batch_work: int, slice_work: int) -> None:
        self._max_batch_pairs = max_batch_pairs
        self._max_batch_work = max_batch_work
        self._slice_work = slice_work
        self._jobs: dict[RequestName, ScoringJob] = {}
        self._turns: dict[bytes, deque[ScoringJob]] = {}  # clients with jobs, next one first
        self._suspects: deque[ScoringJob] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: ScoringJob) -> None:
        """A job that can be scored now."""
        assert job.name not in self._jobs
        self._jobs[job.name] = job
        if job.is_suspect:
            self._suspects.append(job)
        else:
            self._turns.setdefault(job.client, deque()).append(job)

    def remove(self, name: RequestName) -> None:
        """Nobody waits for this job any more. Unknown names are ignored."""
        job = self._jobs.pop(name, None)
        if job is None:
            return
        if job.is_suspect:
            self._suspects.remove(job)
            return
        jobs = self._turns[job.client]
        jobs.remove(job)
        if not jobs:
            del self._turns[job.client]

    def next_batch(self) -> list[PairSlice]:
        """The slices to score now; empty if there is nothing to do. Slices of one job are merged."""
        if self._suspects:
            job = self._suspects[0]
            return [self._cut(job, job.num_pairs)]
        slices: dict[RequestName, PairSlice] = {}
        pairs_left, work_left = self._max_batch_pairs, self._max_batch_work
        while self._turns:
            client = next(iter(self._turns))
            job = self._turns[client][0]
            size = min(self._slice_pairs(job), job.num_pairs - job.handed_out)
            if slices and (size > pairs_left or size * job.work_per_pair > work_left):
                break
            pairs_left -= size
            work_left -= size * job.work_per_pair
            self._end_turn(client)
            part = self._cut(job, size)
            merged = slices.setdefault(job.name, part)
            merged.stop = part.stop
        return list(slices.values())

    def _slice_pairs(self, job: ScoringJob) -> int:
        return max(1, min(self._max_batch_pairs, self._slice_work // max(1, job.work_per_pair)))

    def _end_turn(self, client: bytes) -> None:
        """The client goes to the back of its row, its job to the back of its own."""
        jobs = self._turns.pop(client)
        jobs.rotate(-1)
        self._turns[client] = jobs

    def _cut(self, job: ScoringJob, size: int) -> PairSlice:
        start = job.handed_out
        job.handed_out += size
        if job.handed_out == job.num_pairs:
            self.remove(job.name)
        return PairSlice(job, start, job.handed_out)
