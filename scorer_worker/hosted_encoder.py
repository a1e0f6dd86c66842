"""The encoder inside the worker: token ids in, filled entries of the store out, and embeddings for who asks for those.

H1  An entry that is being encoded is held by the encoder itself, besides the jobs that wait for it: what was encoded
    stays, even if its requests died.
H2  A text is dropped before it is encoded only when its last waiter is gone.
H3  Who asks for embeddings by value waits in the same queue as the jobs, and a text is encoded once for both; its
    embeddings are stored only if a job waits for it too.
H4  The encoder writes into the entries that a batch had when it was started: they are held (H1), so they
    stay where they are. The control thread marks them as filled, after the device has done it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import torch

from engine.encode_queue import EncodeQueue, QueuedText
from engine.encoder import EncodedTexts
from engine.encoder_thread import EncodedBatch, EncoderThread
from engine.text_rules import TextRules
from ipc.messages import Role
from ipc.running import RequestName, RunningFile
from scorer_worker.arena import Arena
from scorer_worker.jobs import Job, SuppliedIds
from scorer_worker.store import Entry


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A waiter no longer waits for a text: it has been encoded, or the device has no memory to encode it."""

    waiter: RequestName
    key: bytes
    is_encoded: bool  # a job's entry is filled
    embeddings: torch.Tensor | None = None  # [rows, dim] on the CPU, for who asked for them by value


class HostedEncoder:
    """Queue and thread of the encoder, and the entries it fills.

    Args:
        rules: the encoder's.
    """

    def __init__(
        self,
        queue: EncodeQueue,
        thread: EncoderThread,
        arena: Arena,
        running: RunningFile,
        rules: TextRules,
    ) -> None:
        self._queue = queue
        self._thread = thread
        self._arena = arena
        self._running = running
        self.rules = rules
        self._entries: dict[bytes, Entry] = {}  # H1
        self._started: deque[Mapping[bytes, Entry]] = deque()  # of the batches on their way, the entries they had: H4
        self._by_value: set[RequestName] = set()  # waiters who want embeddings, not an entry: H3
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

    @property
    def suspects(self) -> Set[RequestName]:
        """As `RunningFile.suspects`."""
        return self._running.suspects

    def blame(self, name: RequestName, deaths: int) -> None:
        """As `RunningFile.blame`."""
        self._running.blame(name, deaths)

    def forgive(self, name: RequestName) -> None:
        self._running.forgive(name)

    def num_rows(self, key: bytes, text: SuppliedIds) -> int:
        """How many rows an entry for this text gets.

        The text that is being encoded under its key decides, if there is one: that is the one `fill` joins. They differ
        only where a client breaks the rule that a key names one text; its entry must have the size of what comes.
        """
        queued = self._queue.find(key)
        if queued is not None:
            return self.rules.num_rows(queued.role, queued.token_ids)
        return text.rows

    def fill(self, entry: Entry, text: SuppliedIds, job: Job) -> None:
        """Encode a text into its reserved entry; the job waits for it."""
        self._arena.directory.hold(entry)
        self._entries[entry.key] = entry
        job.unfilled.add(entry.key)
        self._queue.add(
            entry.key,
            text.role,
            text.token_ids,
            text.expansion,
            job.name,
            job.message.client,
            alone=job.is_suspect,
        )

    def add(
        self,
        key: bytes,
        role: Role,
        token_ids: memoryview,
        expansion: int,
        waiter: RequestName,
        client: bytes,
        alone: bool = False,
    ) -> None:
        """Encode a text for a waiter who wants its embeddings by value; as `EncodeQueue.add`."""
        self._by_value.add(waiter)
        self._queue.add(key, role, token_ids, expansion, waiter, client, alone)

    def join(self, entry: Entry, job: Job) -> None:
        """The job waits for an entry that is being encoded for another one."""
        joined = self._queue.join(entry.key, job.name)
        assert joined, "a reserved entry is in the queue or running"
        job.unfilled.add(entry.key)

    def drop(self, name: RequestName) -> None:
        """The job, or who asked for embeddings, waits no longer."""
        self._by_value.discard(name)
        for key in self._queue.drop(name):
            if key in self._entries:
                self._arena.directory.unpin([self._entries.pop(key)])

    @property
    def has_due_batch(self) -> bool:
        """As `EncodeQueue.has_due_batch`."""
        return self._queue.has_due_batch

    def launch(self) -> bool:
        """Start the next batch if the encoder is free, or if it is due, to follow the one that runs.

        Another one waits: until the first has finished, more may have come to go with it. And none follows another one
        while there are suspects: of those who are blamed for a death, none was only beside the one that caused it (Q5).

        Returns:
            Whether one was started; another one may follow.
        """
        may_follow = self._thread.has_room and self._queue.has_due_batch and not self._queue.has_suspects
        if not (self._thread.is_idle or may_follow):
            return False
        batch = self._queue.next_batch()
        if not batch:
            return False
        self._running.write(self._queue.running_waiters())
        entries = {text.key: self._entries[text.key] for text in batch if text.key in self._entries}
        self._started.append(entries)
        self._thread.submit(batch, partial(write_into, self._arena, entries))
        return True

    def take_finished(self) -> list[EncodedText]:
        """Fill the entries of a finished batch: one item for each waiter of each of its texts."""
        finished = self._thread.take()
        if finished is None:
            return []
        self._counters["encode_batches"] += 1
        self._counters["encoded_texts"] += len(finished.texts)
        self._counters["encoded_tokens"] += sum(len(text.token_ids) for text in finished.texts)
        self._counters["encode_seconds"] += finished.seconds
        self._fill_entries(finished)
        waited = self._queue.finish(finished.texts)
        self._running.write(self._queue.running_waiters())  # of the batch that followed, if one did
        values = self._values(finished, [waiters for _, waiters in waited])
        return [
            EncodedText(name, key, place not in finished.failed, self._value_for(name, values, place))
            for place, (key, waiters) in enumerate(waited)
            for name in waiters
        ]

    def _fill_entries(self, finished: EncodedBatch) -> None:
        """What was only asked for by value has no entry (H3); what a job has asked for since, has one by now."""
        started = self._started.popleft()
        firsts = [0, *accumulate(finished.rows)]
        late: list[tuple[Entry, int]] = []
        entries: list[Entry] = []
        for place, text in enumerate(finished.texts):
            entry = self._entries.pop(text.key, None)
            if entry is None:
                continue
            entries.append(entry)
            if place in finished.failed:
                continue
            if text.key not in started:
                late.append((entry, firsts[place]))
            self._arena.directory.fill(entry)
        if late:
            if finished.embeddings.is_cuda:  # made on the encoder's stream
                finished.embeddings.record_stream(torch.cuda.current_stream())
            self._arena.copy_batch([entry for entry, _ in late], [first for _, first in late], finished.embeddings)
        self._arena.directory.unpin(entries)

    def _values(self, finished: EncodedBatch, waiters: Sequence[list[RequestName]]) -> Sequence[torch.Tensor]:
        """Each text's embeddings on the CPU, in one copy; none where nobody asked for them."""
        if all(self._by_value.isdisjoint(names) for names in waiters):
            return []
        return torch.split(finished.embeddings.cpu(), finished.rows)

    def _value_for(self, waiter: RequestName, values: Sequence[torch.Tensor], place: int) -> torch.Tensor | None:
        return values[place] if waiter in self._by_value else None

    def statistics(self) -> dict[str, float]:
        return dict(self._counters)


def write_into(
    arena: Arena, entries: Mapping[bytes, Entry], texts: Sequence[QueuedText], encoded: EncodedTexts
) -> None:
    """Embeddings of texts to their entries' rows, where they have one. On the encoder's stream."""
    places = [
        (entries[text.key], end - rows)
        for text, rows, end in zip(texts, encoded.rows, accumulate(encoded.rows), strict=True)
        if text.key in entries
    ]
    arena.copy_batch([entry for entry, _ in places], [first for _, first in places], encoded.embeddings)
