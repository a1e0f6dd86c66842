"""The encoder inside the worker: token ids in, filled entries of the store out.

H1  An entry that is being encoded is held by the encoder itself, besides the jobs that wait for it: what was encoded
    stays, even if its requests died.
H2  A text is dropped before it is encoded only when its last waiter is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.encode_queue import EncodeQueue
from engine.encoder_thread import EncoderThread
from ipc.running import RequestName, RunningFile
from scorer_worker.arena import Arena
from scorer_worker.jobs import Job, SuppliedIds
from scorer_worker.store import Entry


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A job no longer waits for an entry: it is filled, or the device has no memory to encode its text."""

    job: RequestName
    key: bytes
    is_filled: bool


class HostedEncoder:
    """Queue and thread of the encoder, and the entries it fills.

    Args:
        check: token ids -> what is wrong with them, or None.
        num_rows: (role, token ids) -> how many rows will be scored (skipped tokens left out).
    """

    def __init__(
        self,
        queue: EncodeQueue,
        thread: EncoderThread,
        arena: Arena,
        running: RunningFile,
        check: Callable[[memoryview], str | None],
        num_rows: Callable[[str, memoryview], int],
    ) -> None:
        self._queue = queue
        self._thread = thread
        self._arena = arena
        self._running = running
        self._check = check
        self._num_rows = num_rows
        self._entries: dict[bytes, Entry] = {}  # H1
        self._counters = {"encoded_texts": 0.0, "encoded_tokens": 0.0, "encode_batches": 0.0, "encode_seconds": 0.0}

    @property
    def descriptor(self) -> int:
        """Readable when a batch is finished."""
        return self._thread.descriptor

    def busy_seconds(self) -> float:
        """How long the running batch has been running."""
        return self._thread.busy_seconds()

    def deaths(self, name: RequestName) -> int:
        """How many workers died while they encoded for this request."""
        return self._running.deaths(name)

    def forgive(self, name: RequestName) -> None:
        self._running.forgive(name)

    def check(self, text: SuppliedIds) -> str | None:
        """What is wrong with a text, or None."""
        return self._check(text.token_ids)

    def num_rows(self, text: SuppliedIds) -> int:
        return self._num_rows(text.role, text.token_ids)

    def add(self, entry: Entry, text: SuppliedIds, job: Job) -> None:
        """Encode a text into its reserved entry; the job waits for it."""
        self._arena.directory.hold(entry)
        self._entries[entry.key] = entry
        job.unfilled.add(entry.key)
        self._queue.add(
            entry.key,
            "query" if text.role == "query" else "document",
            text.token_ids,
            text.expansion,
            job.name,
            job.message.client,
            alone=job.is_suspect,
        )

    def join(self, entry: Entry, job: Job) -> None:
        """The job waits for an entry that is being encoded for another one."""
        joined = self._queue.join(entry.key, job.name)
        assert joined, "a reserved entry is in the queue or running"
        job.unfilled.add(entry.key)

    def drop(self, name: RequestName) -> None:
        """The job waits no longer."""
        for key in self._queue.drop(name):
            self._arena.directory.unpin([self._entries.pop(key)])

    def launch(self) -> None:
        """Start the next batch if the encoder is free; one more, to follow it at once, if that is a full one.

        A smaller one waits: until the first has finished, more may have come to go with it.
        """
        while self._thread.is_idle or (self._thread.has_room and self._queue.has_full_batch):
            batch = self._queue.next_batch()
            if not batch:
                return
            self._running.write(self._queue.running_waiters())
            self._thread.submit(batch)

    def take_finished(self) -> list[EncodedText]:
        """Fill the entries of a finished batch: one item for each job that waited for each of them."""
        finished = self._thread.take()
        if finished is None:
            return []
        self._running.clear()
        self._counters["encode_batches"] += 1
        self._counters["encoded_texts"] += len(finished.texts)
        self._counters["encoded_tokens"] += sum(len(text.token_ids) for text in finished.texts)
        self._counters["encode_seconds"] += finished.seconds
        entries = [self._entries.pop(text.key) for text in finished.texts]
        filled = [entry for place, entry in enumerate(entries) if place not in finished.failed]
        self._arena.write_batch(filled, finished.embeddings)
        unencoded = {finished.texts[place].key for place in finished.failed}
        waited = [
            EncodedText(name, key, key not in unencoded)
            for key, waiters in self._queue.finish(finished.texts)
            for name in waiters
        ]
        self._arena.directory.unpin(entries)
        return waited

    def statistics(self) -> dict[str, float]:
        return dict(self._counters)
