"""The worker's control thread: from requests to jobs, from jobs to batches, from batches to answers.

One turn: take what came, drop what nobody waits for, score one batch, answer, and take one step for larger requests:
give finished embeddings to their jobs, start the encoder, read a request, or give it room. It decides nothing by
itself: the batcher says what is scored next, the directory who gets room, the encode queue what is encoded.

    W1  Every request is answered once, or dropped because its client has gone or cancelled it.
    W2  A waiting job holds nothing. Jobs that need room get it in turn: clients take turns, the jobs of one come in
        order, and whose turn it is keeps it until there is room. A job that brings few texts (W6) gets it as it is
        read, while there is room for all. A job that brings no texts needs none, and does not wait behind them; unless
        the first of them has found no room for STUCK_SECONDS, because what is held may be in its way.
    W3  Entries are unpinned by whoever ends the job, whatever ended it.
    W4  Whatever is done for a request, its name stands in the running file meanwhile, not only while it is scored: a
        request that ends the worker as it is read, or as it gets room, is known to the next one too.
    W5  Pairs are aligned only for a job that wants it, in the batch that scores them, and that counts as this job's
        work: nobody waits longer for it than for scoring.
    W6  A request that brings many texts, or asks for many, takes a good part of a millisecond to read, and again to
        admit, to encode and to finish. Between two such steps the worker looks for what came and scores a batch, and
        after a batch it looks again: who asks for a few texts that the store has, and comes while a batch is scored,
        waits for no step, and who comes during a step, for one batch of others at most. A Score of a few texts that
        brings their ids is read and has room at once too, as many of those as READ_SECONDS are enough for; more of them
        take turns with the others.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from typing import cast

from engine.encode_requests import EncodeRequests
from ipc.arrays import FrameWriter
from ipc.messages import MAX_ALIGNED_ROWS, Alignment, Encode, ErrorCode, Missing, Score, Scores, SuppliedTokens
from ipc.running import MAX_DEATHS, RequestName, RunningFile
from ipc.service import Cancelled, Endpoint, Event, Gone, Request
from scorer_worker.arena import Arena, as_tensor, is_finite
from scorer_worker.batcher import Batcher, PairSlice, ScoringJob
from scorer_worker.by_client import ByClient
from scorer_worker.complaints import complaint_about
from scorer_worker.device import TRAITS
from scorer_worker.hosted_encoder import EncodedText, HostedEncoder
from scorer_worker.job_pairs import groups_of, note_texts, num_aligned_rows
from scorer_worker.jobs import NO_SLOTS, Job, JobState, SuppliedIds, SuppliedRows, read_job
from scorer_worker.memory_plan import memory_statistics
from scorer_worker.pairs import AlignedRows, PairGroup
from scorer_worker.scorer import Scorer
from scorer_worker.store import Entry, NewEntry, TooLarge, slots_of

LIGHT_TEXTS = 64  # of a request that is read when it comes
FEW_NEW_TEXTS, FEW_IDS = 32, 8192  # of a request that brings ids: some 0.2 ms for ten texts
READ_SECONDS = 0.0003  # of one step, or of what brings ids when it comes: more requests are read, if they are small
ENCODER_STEPS = 2  # in a row while others wait for one: to take a batch, and to start the next
MOST_STEPS = 16  # until an encoder that waits gets what there is, though more may come to go with it
STUCK_SECONDS = 1.0
IDLE_WAIT = 0.25  # seconds: how often an idle worker looks at deadlines and silent clients
NOT_READ = "not read within the request's time"
COUNTERS = (
    *("requests", "answered", "cancelled", "expired", "batches", "pairs", "aligned_pairs", "score_seconds"),
    *("store_hits", "store_insertions", "store_misses"),
)


class Worker:
    """The scorer worker without its process: sockets and tensors come from outside."""

    def __init__(
        self,
        endpoint: Endpoint,
        arena: Arena,
        scorer: Scorer,
        batcher: Batcher,
        running: RunningFile,
        encoder: HostedEncoder | None,
        keep_entries: bool,
    ) -> None:
        self._endpoint = endpoint
        self._arena = arena
        self._directory = arena.directory
        self._scorer = scorer
        self._batcher = batcher
        self._running = running
        self._encoder = encoder
        self._encode_requests = (
            EncodeRequests(endpoint, encoder, encoder.rules.check, self._forgive) if encoder is not None else None
        )
        self._keep_entries = keep_entries
        self._dim = arena.rows.shape[1]
        self._traits = TRAITS[arena.rows.device.type]
        self._jobs: dict[RequestName, Job] = {}
        self._unread: ByClient[Request] = ByClient()  # those that are not light (W6)
        self._waiting: ByClient[Job] = ByClient()  # W2
        self._read_until = 0.0  # of what has come: whoever brings a few ids and is read at once (W6)
        self._has_taken_step = False
        self._encoder_steps = 0  # in a row
        self._reads_first = False  # in the last step for others
        self._steps = 0  # since the encoder had something new
        self._next_expiry = 0.0
        self.counters = dict.fromkeys(COUNTERS, 0.0)

    def run(
        self,
        is_stopping: Callable[[], bool],
        on_turn: Callable[[], None],
        on_idle: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until `is_stopping`.

        Args:
            on_turn: called once a turn: the proof that the loop is alive.
            on_idle: called after a turn in which there was nothing to do.
        """
        while not is_stopping():
            if not self.turn():
                on_idle()
            on_turn()

    def turn(self) -> bool:
        """See the file's docstring. False: there was nothing to do, and nobody waits for anything."""
        self._endpoint.wait(0 if len(self._batcher) or self._has_taken_step else IDLE_WAIT)
        has_come = self._receive()
        self._drop_expired(time.monotonic())
        if self._encode_requests is not None:
            self._encode_requests.drop_expired(time.monotonic())
        batch = self._batcher.next_batch()
        if batch:
            self._score(batch)
            has_come |= self._receive()
            if self._batcher.is_small_next:  # who came meanwhile does not wait for the step too
                self._score(self._batcher.next_batch())
        self._has_taken_step = self._take_step()
        return has_come or self._has_taken_step or self._is_waited_for

    @property
    def _is_waited_for(self) -> bool:
        return bool(self._jobs) or (self._encode_requests is not None and len(self._encode_requests) > 0)

    def _take_step(self) -> bool:
        """One thing that takes a while, if there is one (W6).

        First what keeps the encoder busy; but after some steps for it in a row there is one for others, as who brings
        few ids gives it something to do without a step. It gets a batch that is not due only when nothing more is to
        be read, or after some steps; and to read and to admit take turns, so that neither waits for ever.
        """
        are_others_next = self._encoder_steps >= ENCODER_STEPS and bool(len(self._unread) or len(self._waiting))
        if not are_others_next and (self._take_encoded() or self._launch(only_due=True)):
            self._encoder_steps += 1
            self._steps = 0
            return True
        self._encoder_steps = 0
        self._steps += 1
        if self._steps > MOST_STEPS and self._launch(only_due=False):
            self._steps = 0
            return True
        self._reads_first = not self._reads_first
        if self._reads_first:
            has_moved = self._read_next() or self._admit_next()
        else:
            has_moved = self._admit_next() or self._read_next()
        return has_moved or self._launch(only_due=False)

    def statistics(self) -> dict[str, float]:
        """Counters and gauges by name."""
        store = self._directory.statistics()
        values = dict(self.counters)
        values |= {f"store_{name}": float(getattr(store, name)) for name in store.__slots__}
        values |= {
            "store_bytes": float(self._arena.num_bytes),
            "jobs": float(len(self._jobs) + len(self._unread)),
            "jobs_waiting_for_room": float(len(self._waiting)),
            "malformed_messages": float(self._endpoint.malformed_messages),
            "dropped_clients": float(self._endpoint.dropped_clients),
            "suspects": float(
                len(self._running.suspects | (self._encoder.suspects if self._encoder is not None else set()))
            ),
        }
        if self._encoder is not None:
            values |= self._encoder.statistics()
        if self._encode_requests is not None:
            values |= {f"encode_{name}": value for name, value in self._encode_requests.counters.items()}
            values["encode_requests_waiting"] = float(len(self._encode_requests))
        return values | memory_statistics(self._arena.rows.device)

    # --- events ---------------------------------------------------------------------------------------------------

    def _receive(self) -> bool:
        """Handle what came. False: nothing did."""
        has_come = False
        self._read_until = time.monotonic() + READ_SECONDS
        for event in self._endpoint.receive():
            has_come = True
            self._handle(event)
        return has_come

    def _handle(self, event: Event) -> None:
        match event:
            case Request() if _is_light(event) or (_brings_few(event) and time.monotonic() < self._read_until):
                self._read(event)
            case Request():
                self._unread.add(event.message.client, event.name, event)
            case Cancelled(name):
                job = self._jobs.get(name)
                if job is not None:
                    self._end(job)
                    self.counters["cancelled"] += 1
                elif self._unread.remove(name):
                    self._forgive(name)
                elif self._encode_requests is not None:
                    self._encode_requests.drop(name)
            case Gone(identity):
                for name in self._unread.of_identity(identity):
                    self._unread.remove(name)
                    self._forgive(name)
                if self._encode_requests is not None:
                    self._encode_requests.drop_client(identity)
                for job in [job for job in self._jobs.values() if job.name[0] == identity]:
                    self._end(job)
                    self.counters["cancelled"] += 1

    def _read_next(self) -> bool:
        """Read requests that were not light, one at least, for a moment. False: there is none."""
        if not len(self._unread):
            return False
        end = time.monotonic() + READ_SECONDS
        while len(self._unread):
            request = self._unread.first()
            self._unread.remove(request.name)
            if request.deadline <= time.monotonic():
                self._expire(request.name, NOT_READ)
            else:
                self._read(request)
            if time.monotonic() >= end:
                break
        return True

    def _read(self, request: Request) -> None:
        self._running.write([request.name])  # W4
        self._take(request)
        self._running.clear()

    def _take(self, request: Request) -> None:
        """A job for a Score; who needs no room, or little, is admitted at once (W2)."""
        message = request.message
        if isinstance(message, Encode) and self._encode_requests is None:
            self._refuse(request, "this worker hosts no encoder: Encode goes to the engine")
            return
        deaths = self._find_deaths(request.name, message.deaths if isinstance(message, Score) else 0)
        if deaths >= MAX_DEATHS:
            self._forgive(request.name)
            self._endpoint.fail(
                request.name, ErrorCode.WORKER_CRASHED, f"{deaths} workers died while this request was running in them"
            )
            return
        if isinstance(message, Encode):
            assert self._encode_requests is not None
            self._encode_requests.take(request, message, deaths > 0)
            return
        count_rows = self._encoder.rules.rows_of if self._encoder is not None else None
        job = read_job(request, deaths > 0, time.monotonic(), count_rows)
        complaint = complaint_about(job, self._dim, self._encoder.rules if self._encoder is not None else None)
        if complaint is not None:
            self._refuse(request, *complaint)
            return
        self._jobs[job.name] = job
        self.counters["requests"] += 1
        is_to_wait = self._is_to_wait(job)
        if is_to_wait or not self._admit(job):
            self._waiting.add(job.message.client, job.name, job)
            if not is_to_wait and self._waiting.first() is job:
                job.without_room_since = time.monotonic()

    def _is_to_wait(self, job: Job) -> bool:
        """Whether others are to have room first (W2)."""
        if not job.supplied:
            return self._is_first_stuck
        has_found_none = len(self._waiting) > 0 and self._waiting.first().without_room_since is not None
        return has_found_none or not _brings_few(job.request)

    def _find_deaths(self, name: RequestName, told: int) -> int:
        """In how many workers that died the request was running.

        Both running files know it from now on: a worker may die while it encodes for a request, and the next one while
        it scores it.

        Args:
            told: what the request says of it, which may have had another name.
        """
        deaths = max(self._deaths(name), told)
        self._running.blame(name, deaths)
        if self._encoder is not None:
            self._encoder.blame(name, deaths)
        return deaths

    def _deaths(self, name: RequestName) -> int:
        encoding = self._encoder.deaths(name) if self._encoder is not None else 0
        return max(self._running.deaths(name), encoding)

    def _forgive(self, name: RequestName) -> None:
        self._running.forgive(name)
        if self._encoder is not None:
            self._encoder.forgive(name)

    def _refuse(self, request: Request, message: str, which: int | None = None) -> None:
        self._forgive(request.name)
        self._endpoint.fail(request.name, ErrorCode.INVALID_REQUEST, message, which=which)

    def _drop_expired(self, now: float) -> None:
        if now < self._next_expiry:
            return
        self._next_expiry = now + IDLE_WAIT / 5
        for job in [job for job in self._jobs.values() if job.request.deadline <= now]:
            self._expire(job.name, "not scored within the request's time")
            self._end(job)
        for request in [request for request in self._unread if request.deadline <= now]:
            self._unread.remove(request.name)
            self._expire(request.name, NOT_READ)

    def _expire(self, name: RequestName, why: str) -> None:
        self._endpoint.fail(name, ErrorCode.DEADLINE_EXCEEDED, why, 1000)
        self._forgive(name)
        self.counters["expired"] += 1

    def _end(self, job: Job) -> None:
        """The job leaves, in whatever state it is (W3)."""
        del self._jobs[job.name]
        self._forgive(job.name)
        self._waiting.remove(job.name)
        self._batcher.remove(job.name)
        if self._encoder is not None and job.state is JobState.ENCODING:
            self._encoder.drop(job.name)
        slots, job.slots, job.pinned = job.slots, NO_SLOTS, ()
        self._directory.unpin_slots(slots)

    # --- room -----------------------------------------------------------------------------------------------------

    @property
    def _is_first_stuck(self) -> bool:
        """Whether a job has had its turn for so long that nobody may take hold of anything before it (W2)."""
        since = self._waiting.first().without_room_since if len(self._waiting) else None
        return since is not None and since + STUCK_SECONDS < time.monotonic()

    def _admit_next(self) -> bool:
        """Give room to jobs whose turn it is, one at least, for a moment. False: there is none, or it does not fit."""
        end = time.monotonic() + READ_SECONDS
        has_moved = False
        while len(self._waiting) and self._admit_first():
            has_moved = True
            if time.monotonic() >= end:
                break
        return has_moved

    def _admit_first(self) -> bool:
        """Give room to the job whose turn it is. False: it does not fit."""
        job = self._waiting.first()
        self._running.write([job.name])  # W4
        is_admitted = self._admit(job)
        self._running.clear()
        if is_admitted:
            self._waiting.remove(job.name)
        elif job.without_room_since is None:
            job.without_room_since = time.monotonic()
        return is_admitted

    def _admit(self, job: Job) -> bool:
        """Pin what is there, reserve room for what was supplied; or answer Missing.

        False: no room now, nothing held.
        """
        found, new, missing = self._sort_texts(job)
        if missing:
            self._answer_missing(job, missing)
            return True
        try:
            reserved = self._pin(job, found, new)
        except TooLarge as error:
            self._endpoint.fail(
                job.name, ErrorCode.INVALID_REQUEST, f"{error}; send fewer or raise --embedding-cache-size"
            )
            self._end(job)
            return True
        if reserved is None:
            if not self._directory.is_unheld:
                return False
            self._directory.clear()  # pinned entries of this job alone are in its way: see S5
            return self._admit(job)
        note_texts(job, self._directory)
        if job.message.want_alignment and (entries := num_aligned_rows(job)) > MAX_ALIGNED_ROWS:
            self._end(job)
            self._refuse(
                job.request, f"want_alignment: {entries} query rows over all pairs, at most {MAX_ALIGNED_ROWS}"
            )
            return True
        job.admitted = time.monotonic()
        self.counters["store_hits"] += len(found) - len(new)
        self.counters["store_insertions"] += len(new)
        self._fill(job, reserved)
        return True

    def _pin(self, job: Job, found: Sequence[Entry | None], new: list[NewEntry]) -> list[Entry] | None:
        """Have the job hold what was found, and room for what was not.

        Returns:
            The new entries; None: there is no room now, nothing is held.

        Raises:
            TooLarge: they cannot fit, whoever else leaves.
        """
        if not new:
            job.pinned = cast("Sequence[Entry]", found)
            job.slots = self._directory.pin(job.pinned)
            return []
        reserved = self._directory.admit([entry for entry in found if entry is not None], new)
        if reserved is None:
            return None
        others = iter(reserved)
        job.pinned = [entry if entry is not None else next(others) for entry in found]
        job.slots = slots_of(job.pinned)
        return reserved

    def _sort_texts(self, job: Job) -> tuple[Sequence[Entry | None], list[NewEntry], list[bytes]]:
        """Of each key, once, what is in the store; of the others what was supplied, and the keys of the rest."""
        keys = job.keys if job.is_unique else list(job.places())
        found = self._directory.lookup_all(keys)
        if all(found):
            return found, [], []
        new: list[NewEntry] = []
        missing: list[bytes] = []
        for key in [key for key, entry in zip(keys, found, strict=True) if entry is None]:
            text = job.supplied.get(key)
            if isinstance(text, SuppliedRows):
                new.append(NewEntry(key, text.rows, text.prompt_tokens, text.keep and self._keep_entries))
            elif isinstance(text, SuppliedIds) and self._encoder is not None:
                tokens = len(text.token_ids) - text.expansion
                new.append(NewEntry(key, self._encoder.num_rows(key, text), tokens, self._keep_entries))
            else:
                missing.append(key)
        return found, new, missing

    def _answer_missing(self, job: Job, missing: list[bytes]) -> None:
        writer, places = FrameWriter(), job.places()
        self.counters["store_misses"] += len(missing)
        deaths = self._deaths(job.name)
        message = Missing(
            job.name[1], writer.add_ints([places[key] for key in missing]), self._endpoint.credits(), deaths
        )
        self._end(job)
        self._endpoint.answer(job.name, message, writer.frames)

    def _fill(self, job: Job, reserved: Sequence[Entry]) -> None:
        """Write the embeddings that came by value; have the encoder make the others, if they are not being made."""
        by_value = [(entry, text) for entry in reserved if isinstance(text := job.supplied[entry.key], SuppliedRows)]
        for entry, text in by_value:
            embeddings = as_tensor(text.embeddings, text.dtype, text.rows, self._dim)
            if not is_finite(embeddings):
                self._end(job)
                self._refuse(job.request, "embeddings: a value is not finite", text.position)
                return
            self._arena.write(entry, embeddings)
        if self._encoder is not None:
            new = {entry.slot for entry in reserved}
            for entry in self._directory.unfilled(job.slots):
                ids = job.supplied[entry.key] if entry.slot in new else None
                if isinstance(ids, SuppliedIds):
                    self._encoder.fill(entry, ids, job)
                elif ids is None:
                    self._encoder.join(entry, job)
        job.supplied.clear()  # lets the message's frames go
        if job.unfilled:
            job.state = JobState.ENCODING
        else:
            self._start_scoring(job)

    def _launch(self, only_due: bool) -> bool:
        """Give the encoder its next batch. False: it has one, or nothing waits."""
        if self._encoder is None or (only_due and not self._encoder.has_due_batch):
            return False
        return self._encoder.launch()

    def _take_encoded(self) -> bool:
        """Embeddings that the encoder has made; jobs that have all of theirs are scored. False: it has not finished."""
        if self._encoder is None:
            return False
        finished = self._encoder.take_finished()
        for text in finished:
            job = self._jobs.get(text.waiter)
            if job is None:
                self._give(text)
                continue
            if not text.is_encoded:
                self._endpoint.fail(job.name, ErrorCode.UNAVAILABLE, "the device has no memory to encode a text", 1000)
                self._end(job)
                continue
            job.unfilled.discard(text.key)
            if not job.unfilled and job.state is JobState.ENCODING:
                self._start_scoring(job)
        return bool(finished)

    def _give(self, text: EncodedText) -> None:
        """To an Encode; a job that has ended meanwhile is unknown there too."""
        assert self._encode_requests is not None
        self._encode_requests.give(text.waiter, text.key, text.embeddings if text.is_encoded else None)

    # --- scoring --------------------------------------------------------------------------------------------------

    def _start_scoring(self, job: Job) -> None:
        job.state = JobState.SCORING
        job.scores = array("f", bytes(4 * job.num_pairs))
        num_queries = job.message.num_queries
        query_rows = sum(job.rows[:num_queries]) / num_queries
        document_rows = sum(job.rows[num_queries:]) / (len(job.rows) - num_queries)
        work = self._traits.pair_work(query_rows, document_rows, self._dim)
        if job.message.want_alignment:
            job.aligned = AlignedRows()
            work = 2 * work + self._traits.aligned_pair_work  # W5
        self._batcher.add(ScoringJob(job.name, job.message.client, job.num_pairs, work, job.is_suspect))

    def _score(self, batch: list[PairSlice]) -> None:
        """Score the slices in one launch, and answer the jobs that are complete."""
        jobs = [self._jobs[part.job.name] for part in batch]
        groups: list[PairGroup] = []
        to_align: list[tuple[AlignedRows, list[PairGroup]]] = []
        for part, job in zip(batch, jobs, strict=True):
            own = groups_of(job, part.start, part.stop)
            groups += own
            if job.aligned is not None:
                to_align.append((job.aligned, own))
        self._running.write([job.name for job in jobs])
        ticket = self._directory.launched()
        started = time.monotonic()
        scores = self._scorer.score(groups)
        for aligned, own in to_align:
            aligned.extend(self._scorer.align(own))
            self.counters["aligned_pairs"] += sum(len(group.documents) for group in own)
        elapsed = time.monotonic() - started
        self._directory.completed(ticket)
        self._running.clear()
        self.counters["batches"] += 1
        self.counters["pairs"] += len(scores)
        self.counters["score_seconds"] += elapsed
        offset = 0
        for part, job in zip(batch, jobs, strict=True):
            count = part.stop - part.start
            job.scores[part.start : part.stop] = array("f", scores[offset : offset + count])
            job.scored += count
            job.score_seconds += elapsed * count / len(scores)
            offset += count
            if job.scored == job.num_pairs:
                self._answer(job)

    def _answer(self, job: Job) -> None:
        writer = FrameWriter()
        queued = max(0.0, time.monotonic() - job.arrived - job.score_seconds)
        message = Scores(
            request_id=job.name[1],
            scores=writer.add(job.scores, "float32", [len(job.scores)]),
            rows=writer.add_ints(job.rows),
            prompt_tokens=writer.add_ints(job.prompt_tokens),
            credits=self._endpoint.credits(),
            score_us=int(job.score_seconds * 1e6),
            queue_us=int(queued * 1e6),
            alignment=_write_alignment(job.aligned, writer) if job.aligned is not None else None,
        )
        self.counters["answered"] += 1
        self._end(job)  # before the answer: who has it finds nothing held
        self._endpoint.answer(job.name, message, writer.frames)


def _is_light(request: Request) -> bool:
    """Whether to read it and give it what it needs takes next to no time (W6)."""
    message = request.message
    return isinstance(message, Score) and not message.supplied and message.keys.shape[0] <= LIGHT_TEXTS


def _brings_few(request: Request) -> bool:
    """Whether it brings the ids of a few texts (W6). Embeddings take longer, each of them is copied."""
    message = request.message
    return (
        isinstance(message, Score)
        and message.keys.shape[0] <= FEW_NEW_TEXTS
        and all(isinstance(part, SuppliedTokens) for part in message.supplied)
        and sum(part.token_ids.shape[0] for part in message.supplied if isinstance(part, SuppliedTokens)) <= FEW_IDS
    )


def _write_alignment(aligned: AlignedRows, writer: FrameWriter) -> Alignment:
    return Alignment(
        document_rows=writer.add_ints(aligned.document_rows),
        similarities=writer.add(aligned.similarities, "float32", [len(aligned.similarities)]),
    )
