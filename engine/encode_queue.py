"""What waits for encoding, and what is encoded next. Pure: no clock, no socket, no tensor.

    Q1  A key is encoded at most once at a time: who asks for one that waits or runs, joins.
    Q2  A text that waits is dropped only when the last of its waiters is gone; one that runs is finished.
    Q3  A batch holds at most `max_batch_tokens` ids, unless it is a single text.
    Q4  Clients take turns, and within a client its requests do; a turn is one text. So a small request waits for the running
        batch, and then has a place in the next one.
    Q5  Texts of a suspect (a request that was running in an engine that died) are alone in their batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ipc.messages import Role
from ipc.running import RequestName


@dataclass(slots=True, eq=False)
class QueuedText:
    """One text to encode, and who waits for it."""

    key: bytes
    role: Role
    token_ids: memoryview  # int32, expansion rows included
    expansion: int  # how many of the last ids are expansion rows
    waiters: dict[RequestName, None] = field(default_factory=dict)
    is_suspect: bool = False


class EncodeQueue:
    """The texts that wait, by client and request, and those that run."""

    def __init__(self, max_batch_tokens: int) -> None:
        self._max_batch_tokens = max_batch_tokens
        self._waiting: dict[bytes, QueuedText] = {}
        self._running: dict[bytes, QueuedText] = {}
        self._keys_of: dict[RequestName, dict[bytes, None]] = {}  # waiter -> keys it waits for
        self._turns: dict[bytes, deque[RequestName]] = {}  # client -> requests with texts of their own in the row
        self._rows: dict[RequestName, deque[QueuedText]] = {}  # request -> its texts, in order; dropped ones are passed over

    def __len__(self) -> int:
        return len(self._waiting)

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
        """`waiter` wants this text encoded."""
        if self.join(key, waiter):
            return
        text = QueuedText(key, role, token_ids, expansion, {waiter: None}, alone)
        self._waiting[key] = text
        self._keys_of.setdefault(waiter, {})[key] = None
        if waiter not in self._rows:
            self._rows[waiter] = deque()
            self._turns.setdefault(client, deque()).append(waiter)
        self._rows[waiter].append(text)

    def join(self, key: bytes, waiter: RequestName) -> bool:
        """`waiter` wants a text that waits or runs already. False: none of this name does."""
        text = self._waiting.get(key) or self._running.get(key)
        if text is None:
            return False
        text.waiters[waiter] = None
        self._keys_of.setdefault(waiter, {})[key] = None
        return True

    def drop(self, waiter: RequestName) -> list[bytes]:
        """`waiter` has gone.

        Returns:
            The keys of texts that will not be encoded now (Q2).
        """
        dropped = []
        for key in self._keys_of.pop(waiter, ()):
            text = self._waiting.get(key) or self._running[key]
            del text.waiters[waiter]
            if not text.waiters and key in self._waiting:
                del self._waiting[key]
                dropped.append(key)
        return dropped

    def next_batch(self) -> Sequence[QueuedText]:
        """The texts to encode now; empty if none waits. They run until `finish`."""
        batch: list[QueuedText] = []
        tokens = 0
        while (text := self._next_text()) is not None:
            size = len(text.token_ids)
            mixes_suspect = bool(batch) and (text.is_suspect or batch[0].is_suspect)
            if batch and (tokens + size > self._max_batch_tokens or mixes_suspect):
                break
            self._take_turn(text)
            batch.append(text)
            tokens += size
        return batch

    def running_waiters(self) -> list[RequestName]:
        """Who waits for texts that run."""
        return list({waiter: None for text in self._running.values() for waiter in text.waiters})

    def finish(self, texts: Sequence[QueuedText]) -> list[tuple[bytes, list[RequestName]]]:
        """These texts have been encoded.

        Returns:
            Each key with those who still wait for it.
        """
        finished = []
        for text in texts:
            del self._running[text.key]
            for waiter in text.waiters:
                keys = self._keys_of[waiter]
                del keys[text.key]
                if not keys:
                    del self._keys_of[waiter]
            finished.append((text.key, list(text.waiters)))
        return finished

    def check_integrity(self) -> None:
        """The books agree with each other.

        Raises:
            AssertionError: they do not.
        """
        assert not self._waiting.keys() & self._running.keys(), "Q1: a key waits and runs"
        listed = {text.key for row in self._rows.values() for text in row if self._waiting.get(text.key) is text}
        assert listed == self._waiting.keys(), "a waiting text stands in no row"
        for text in self._waiting.values():
            assert text.waiters, "Q2: a text waits for nobody"
        for waiter, keys in self._keys_of.items():
            assert keys, "a waiter waits for nothing"
            for key in keys:
                assert waiter in (self._waiting.get(key) or self._running[key]).waiters
        assert self._rows.keys() == {waiter for turns in self._turns.values() for waiter in turns}

    def _next_text(self) -> QueuedText | None:
        """The text whose turn it is; rows that have nothing left are cleared away."""
        while self._turns:
            client = next(iter(self._turns))
            waiter = self._turns[client][0]
            row = self._rows[waiter]
            while row and self._waiting.get(row[0].key) is not row[0]:
                row.popleft()
            if row:
                return row[0]
            self._remove_row(client, waiter)
        return None

    def _take_turn(self, text: QueuedText) -> None:
        """The text runs; its request and its client go to the back."""
        client = next(iter(self._turns))
        requests = self._turns.pop(client)
        self._rows[requests[0]].popleft()
        requests.rotate(-1)
        self._turns[client] = requests
        self._running[text.key] = self._waiting.pop(text.key)

    def _remove_row(self, client: bytes, waiter: RequestName) -> None:
        del self._rows[waiter]
        self._turns[client].remove(waiter)
        if not self._turns[client]:
            del self._turns[client]
