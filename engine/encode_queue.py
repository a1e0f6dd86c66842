"""What waits for encoding, and what is encoded next. Pure: no clock, no socket, no tensor.

    Q1  A key is encoded at most once at a time: who asks for one that waits or runs, joins.
    Q2  A text that waits is dropped only when the last of its waiters is gone; one that runs is finished.
    Q3  A batch holds at most `max_batch_tokens` ids, unless it is a single text. However short a text is, it counts as
        one MAX_BATCH_TEXTS-th of them.
    Q4  Clients take turns, and within a client its requests do, as `request_turns` says; a turn is one text. So a small
        request waits for the running batch, and then has a place in the next one. A text has a place in the row of
        everyone who waits for it.
    Q5  Where a suspect (a request that was running in a service that died) waits for a text of a batch, all texts of
        that batch have the same waiters: a second death is blamed on nobody who did not want just these texts.
    Q6  While one client wants more than a small batch and another one little, batches are small, and for some time
        after: who wants little waits for what runs and for what it is in, and both are shorter then. In every other one
        of them its texts come first: taking turns they would be in two batches, where they fit one. What is left of a
        large request is not little: where all clients ask for much, one of them is always near its end.

A row keeps a text that meanwhile runs, or is gone, until its turn comes: then it is passed over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain, islice

import msgspec

from engine.request_turns import RequestTurns
from ipc.messages import Role
from ipc.running import RequestName

MAX_BATCH_TEXTS = 256  # of a full batch: each costs the control thread 15 us or so, and others wait meanwhile
SMALL_BATCH = 4  # a full one is so many times larger (Q6)
WARY_BATCHES = 32  # stay small after little was wanted beside much
LOOKED_AT = 16  # clients, to find one that wants little


class QueuedText(msgspec.Struct, eq=False, gc=False):
    """One text to encode, and who waits for it."""

    key: bytes
    role: Role
    token_ids: memoryview  # int32, expansion rows included
    expansion: int  # how many of the last ids are expansion rows
    waiters: dict[RequestName, None] = msgspec.field(default_factory=dict)  # in the order they came


class EncodeQueue:
    """The texts that wait, by client and request, and those that run. A waiter is the name of a request.

    Args:
        max_batch_tokens: ids of one batch (Q3).
    """

    def __init__(self, max_batch_tokens: int) -> None:
        assert max_batch_tokens > 0
        self._max_batch_tokens = max_batch_tokens
        self._small_tokens = max(1, max_batch_tokens // SMALL_BATCH)
        self._least_size = max_batch_tokens // MAX_BATCH_TEXTS
        self._wary = 0  # small batches to come
        self._had_first = False  # the last batch began with texts of who wants little
        self._waiting: dict[bytes, QueuedText] = {}
        self._waiting_tokens = 0
        self._waiting_size = 0
        self._running: dict[bytes, QueuedText] = {}
        self._keys: dict[RequestName, dict[bytes, None]] = {}  # what each waits for, waiting or running
        self._suspects: set[RequestName] = set()
        self._turns: dict[bytes, RequestTurns] = {}  # of each client, next one first: its requests with a row
        self._rows: dict[RequestName, deque[QueuedText]] = {}
        self._asked: dict[RequestName, int] = {}  # size of all that was put into each row

    def __len__(self) -> int:
        """How many texts wait."""
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
        """`waiter` wants this text encoded: it joins if the key waits or runs already (Q1).

        Args:
            token_ids: int32; held, not copied, until the text has been encoded.
            client: whose turn it takes.
            alone: the waiter is a suspect (Q5).
        """
        if self.join(key, waiter, client, alone):
            return
        text = QueuedText(key, role, token_ids, expansion, {waiter: None})
        self._waiting[key] = text
        self._waiting_tokens += len(token_ids)
        self._waiting_size += self._size(text)
        self._remember(text, waiter, alone)
        self._line_up(text, waiter, client)

    def join(self, key: bytes, waiter: RequestName, client: bytes | None = None, alone: bool = False) -> bool:
        """`waiter` wants a text that waits or runs already.

        Args:
            client: gives the text a place in the waiter's own row; None leaves it in the places it has.
            alone: as in `add`.

        Returns:
            False: no text of this key waits or runs; nothing was done.
        """
        text = self.find(key)
        if text is None:
            return False
        is_new = waiter not in text.waiters
        text.waiters[waiter] = None
        self._remember(text, waiter, alone)
        if is_new and client is not None and key in self._waiting:
            self._line_up(text, waiter, client)
        return True

    def find(self, key: bytes) -> QueuedText | None:
        """The text of this key that waits or runs: what whoever adds the key would join."""
        return self._waiting.get(key) or self._running.get(key)

    def drop(self, waiter: RequestName) -> list[bytes]:
        """`waiter` has gone; an unknown one is ignored.

        Returns:
            The keys of texts that will not be encoded now (Q2).
        """
        dropped = []
        for key in self._keys.pop(waiter, ()):
            text = self._waiting.get(key) or self._running[key]
            del text.waiters[waiter]
            if not text.waiters and key in self._waiting:
                self._take(text)
                dropped.append(key)
        self._suspects.discard(waiter)
        if waiter in self._rows:  # others may wait for some of its texts: those keep their place
            self._rows[waiter] = deque(text for text in self._rows[waiter] if self._is_waiting(text))
        return dropped

    def next_batch(self) -> list[QueuedText]:
        """The texts to encode now; empty if none waits. They run until `finish`."""
        first = self._next_text()
        if first is None:
            return []
        batch = self._batch_of_suspects(first) if self._is_suspect(first) else self._batch_in_turns()
        self._running.update((text.key, text) for text in batch)
        return batch

    @property
    def has_due_batch(self) -> bool:
        """Whether what waits is not to wait for more to go with it: it fills a batch, or batches are small (Q6)."""
        return bool(self._waiting) if self._wary else self._waiting_size >= self._max_batch_tokens

    @property
    def has_suspects(self) -> bool:
        """Whether something of a suspect's waits or runs."""
        return bool(self._suspects)

    def running_waiters(self) -> list[RequestName]:
        """Who waits for texts that run."""
        return list({waiter: None for text in self._running.values() for waiter in text.waiters})

    def finish(self, texts: Sequence[QueuedText]) -> list[tuple[bytes, list[RequestName]]]:
        """These texts, which ran, have been encoded.

        Returns:
            Each key with those who still wait for it, in the order they came.
        """
        finished = []
        for text in texts:
            del self._running[text.key]
            for waiter in text.waiters:
                del self._keys[waiter][text.key]
                if not self._keys[waiter]:
                    del self._keys[waiter]
                    self._suspects.discard(waiter)
            finished.append((text.key, list(text.waiters)))
        return finished

    def statistics(self) -> dict[str, float]:
        """Gauges by name."""
        return {
            "texts_waiting": float(len(self._waiting)),
            "tokens_waiting": float(self._waiting_tokens),
            "texts_running": float(len(self._running)),
        }

    def check_integrity(self) -> None:
        """The books agree with each other.

        Raises:
            AssertionError: they do not.
        """
        assert not self._waiting.keys() & self._running.keys(), "Q1: a key waits and runs"
        assert self._waiting_tokens == sum(len(text.token_ids) for text in self._waiting.values())
        assert self._waiting_size == sum(map(self._size, self._waiting.values()))
        for text in self._waiting.values():
            assert text.waiters, "Q2: a text waits for nobody"
        listed = {text.key for row in self._rows.values() for text in row if self._is_waiting(text)}
        assert listed == self._waiting.keys(), "Q4: a waiting text stands in no row"
        assert sorted(map(repr, self._rows)) == sorted(repr(name) for row in self._turns.values() for name in row)
        assert self._asked.keys() == self._rows.keys()
        assert all(self._turns.values()), "a client without requests has turns"
        wanted = {(name, key) for name, keys in self._keys.items() for key in keys}
        held = [*self._waiting.values(), *self._running.values()]
        assert wanted == {(name, text.key) for text in held for name in text.waiters}
        assert all(self._keys.values()), "a waiter waits for nothing"
        assert self._suspects <= self._keys.keys()

    def _remember(self, text: QueuedText, waiter: RequestName, alone: bool) -> None:
        self._keys.setdefault(waiter, {})[text.key] = None
        if alone:
            self._suspects.add(waiter)

    def _line_up(self, text: QueuedText, waiter: RequestName, client: bytes) -> None:
        if waiter not in self._rows:
            self._rows[waiter] = deque()
            if client not in self._turns:
                self._turns[client] = RequestTurns(self._texts_left)
            self._turns[client].add(waiter)
            self._asked[waiter] = 0
        self._rows[waiter].append(text)
        self._asked[waiter] += self._size(text)

    def _texts_left(self, waiter: RequestName) -> int:
        return len(self._rows[waiter])

    def _is_waiting(self, text: QueuedText) -> bool:
        return self._waiting.get(text.key) is text  # the key may have been added anew meanwhile

    def _is_suspect(self, text: QueuedText) -> bool:
        return not self._suspects.isdisjoint(text.waiters)

    def _size(self, text: QueuedText) -> int:
        """What it takes of a batch's budget (Q3)."""
        return max(len(text.token_ids), self._least_size)

    def _take(self, text: QueuedText) -> None:
        del self._waiting[text.key]
        self._waiting_tokens -= len(text.token_ids)
        self._waiting_size -= self._size(text)

    def _batch_in_turns(self) -> list[QueuedText]:
        """Texts in turn, up to the budget or the first suspect's."""
        batch: list[QueuedText] = []
        little = self._little_beside_much()
        budget = self._budget(bool(little))
        first = self._bring_forward(little)
        while (text := self._next_text()) is not None and not self._is_suspect(text):
            budget -= self._size(text)
            if batch and budget < 0:
                break
            self._take(text)
            batch.append(text)
            self._end_turn(first)
        return batch

    def _little_beside_much(self) -> list[bytes]:
        """Clients that want little, where another one wants more than a small batch (Q6)."""
        if len(self._turns) < 2 or self._waiting_size <= self._small_tokens:
            return []
        wanted = {client: self._wanted(client) for client in islice(self._turns, LOOKED_AT)}
        if all(size <= self._small_tokens for size in wanted.values()):
            return []
        return [
            client
            for client, size in wanted.items()
            if 0 < size <= self._small_tokens and not self._has_asked_for_much(client)
        ]

    def _bring_forward(self, little: Sequence[bytes]) -> frozenset[bytes]:
        """Let these clients have their turns first, all of them, unless they had them in the batch before (Q6).

        Returns:
            Whose turn it stays until nothing of theirs waits. Nobody's where there are suspects, who end a batch.
        """
        self._had_first = bool(little) and not self._had_first and not self._suspects
        if not self._had_first:
            return frozenset()
        self._turns = {client: self._turns[client] for client in little} | self._turns
        return frozenset(little)

    def _budget(self, is_little_beside_much: bool) -> int:
        """Tokens of the next batch (Q6)."""
        if is_little_beside_much:
            self._wary = WARY_BATCHES
        if not self._wary:
            return self._max_batch_tokens
        self._wary -= 1
        return self._small_tokens

    def _wanted(self, client: bytes) -> int:
        """What waits for a client, in a batch's budget; of more than fits a small batch, part of it.

        Nothing does where all its texts run, and its row has not been cleared away.
        """
        size = 0
        for request in self._turns[client]:
            for text in self._rows[request]:
                size += self._size(text) if self._is_waiting(text) else 0
                if size > self._small_tokens:
                    return size
        return size

    def _has_asked_for_much(self, client: bytes) -> bool:
        """Whether what waits is left of a request that would not have fitted a small batch."""
        large = [request for request in self._turns[client] if self._asked[request] > self._small_tokens]
        return any(self._is_waiting(text) for request in large for text in self._rows[request])

    def _batch_of_suspects(self, first: QueuedText) -> list[QueuedText]:
        """This text and others that just the same requests wait for (Q5), up to the budget."""
        waiter = next(iter(first.waiters))
        batch: list[QueuedText] = []
        budget = self._max_batch_tokens
        for key in chain([first.key], self._keys[waiter]):
            text = self._waiting.get(key)
            if text is None or text.waiters.keys() != first.waiters.keys():
                continue
            budget -= self._size(text)
            if batch and budget < 0:
                break
            self._take(text)
            batch.append(text)
        self._end_turn()
        return batch

    def _next_text(self) -> QueuedText | None:
        """The text whose turn it is. Rows in which nothing waits are cleared away."""
        while self._turns:
            client, requests = next(iter(self._turns.items()))
            request = requests.current()
            row = self._rows[request]
            while row and not self._is_waiting(row[0]):
                row.popleft()
            if row:
                return row[0]
            requests.remove(request)
            del self._rows[request], self._asked[request]
            if not requests:
                del self._turns[client]
        return None

    def _end_turn(self, stays: frozenset[bytes] = frozenset()) -> None:
        """The client whose turn it was goes to the back, unless it is one of those that stay."""
        client, requests = next(iter(self._turns.items()))
        requests.end_turn()
        if client not in stays:
            self._turns[client] = self._turns.pop(client)
