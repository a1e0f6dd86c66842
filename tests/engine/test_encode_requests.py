"""G1 to G3 of `engine.encode_requests`: with a real queue, on an endpoint without a socket."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.encode_queue import EncodeQueue, QueuedText
from engine.encode_requests import EncodeRequests
from ipc.arrays import Buffer, FrameWriter
from ipc.codec import decode_to_service, encode
from ipc.messages import IDENTITY_BYTES, KEY_BYTES, Credits, Encode, Encoded, ErrorCode, Failed, Message
from ipc.running import RequestName
from ipc.service import Endpoint, Request

DIM = 2
LATER = 1e9
WRONG = 99  # a token id that the check refuses


@dataclass
class Desk:
    """An endpoint: what was answered, and to whom."""

    answers: dict[RequestName, Message] = field(default_factory=dict)
    rows: dict[RequestName, list[list[float]]] = field(default_factory=dict)
    dim: int = DIM

    def credits(self) -> Credits:
        return Credits(2**20, 2**20)

    def answer(self, name: RequestName, message: Message, frames: Sequence[Buffer] = ()) -> None:
        assert name not in self.answers, "answered twice"
        self.answers[name] = message
        if isinstance(message, Encoded):
            values = array("f", memoryview(frames[message.embeddings.frame - 1]).cast("B").tobytes()).tolist()
            self.rows[name] = [values[start : start + DIM] for start in range(0, len(values), DIM)]

    def fail(
        self, name: RequestName, code: ErrorCode, message: str, retry_after_ms: int = 0, which: int | None = None
    ) -> None:
        self.answer(name, Failed(name[1], code, message, retry_after_ms, which))

    def failure(self, name: RequestName) -> ErrorCode:
        answer = self.answers[name]
        assert isinstance(answer, Failed)
        return answer.code


class Books:
    """The books with their queue, and an encoder that takes a batch when it is told to."""

    def __init__(self, recent: dict[bytes, torch.Tensor] | None = None) -> None:
        self.desk = Desk()
        self.queue = EncodeQueue(20)
        self.forgiven: list[RequestName] = []
        self.requests = EncodeRequests(
            *(cast(Endpoint, self.desk), self.queue, self._check, self.forgiven.append), (recent or {}).get
        )

    def _check(self, token_ids: memoryview) -> str | None:
        return "a wrong id" if WRONG in token_ids else None

    def ask(self, name: RequestName, texts: Sequence[int], deadline: float = LATER) -> None:
        """A request comes, for texts that are named and made of a number."""
        writer = FrameWriter()
        message = Encode(
            epoch=0,
            request_id=name[1],
            client=name[0][:8],
            budget_ms=0,
            role="document",
            keys=writer.add_keys([key_of(text) for text in texts]),
            lengths=writer.add_ints([2] * len(texts)),
            expansion=writer.add_ints([0] * len(texts)),
            token_ids=writer.add_ints([text for text in texts for _ in range(2)]),
        )
        parts = [memoryview(bytearray(part)) for part in encode(message, writer.frames)]
        read, frames = decode_to_service(parts)
        assert isinstance(read, Encode)
        self.requests.take(Request(name, read, frames, deadline), read, is_suspect=False)

    def finish(self, batch: Sequence[QueuedText], has_memory: bool = True) -> None:
        """A batch that was taken from the queue has been encoded."""
        for key, waiters in self.queue.finish(batch):
            for waiter in waiters:
                self.requests.give(waiter, key, rows_of(key[0]) if has_memory else None)


def named(number: int, client: int = 0) -> RequestName:
    return bytes([65 + client]) * IDENTITY_BYTES, number


def key_of(text: int) -> bytes:
    return bytes([text]) * KEY_BYTES


def rows_of(text: int) -> torch.Tensor:
    return torch.full((2, DIM), float(text))


def test_a_text_is_encoded_once_for_all_who_wait_and_all_are_answered() -> None:
    books = Books()
    books.ask(named(1), [1, 2])
    books.ask(named(2), [2, 3, 2])
    batch = books.queue.next_batch()
    assert sorted(text.key[0] for text in batch) == [1, 2, 3]
    books.finish(batch)
    assert books.desk.rows == {
        named(1): [[1.0] * DIM] * 2 + [[2.0] * DIM] * 2,
        named(2): [[2.0] * DIM] * 2 + [[3.0] * DIM] * 2 + [[2.0] * DIM] * 2,
    }


def test_who_is_overdue_is_told_so_and_what_only_it_wanted_is_not_encoded() -> None:
    books = Books()
    books.ask(named(1), [1, 2], deadline=5.0)
    books.ask(named(2), [2])
    books.requests.drop_expired(4.0)
    assert not books.desk.answers
    books.requests.drop_expired(6.0)
    assert books.desk.failure(named(1)) is ErrorCode.DEADLINE_EXCEEDED
    assert [text.key[0] for text in books.queue.next_batch()] == [2]


def test_what_a_client_that_has_gone_wanted_is_not_encoded() -> None:
    books = Books()
    books.ask(named(1, client=0), [1, 2])
    books.ask(named(2, client=0), [3])
    books.ask(named(1, client=1), [2])
    books.requests.drop_client(named(0, client=0)[0])
    assert len(books.requests) == 1 and books.forgiven == [named(1), named(2)]
    assert [text.key[0] for text in books.queue.next_batch()] == [2]
    assert not books.desk.answers


def test_what_was_encoded_just_now_is_answered_at_once() -> None:
    books = Books(recent={key_of(1): rows_of(1)})
    books.ask(named(1), [1, 1])
    assert books.desk.rows[named(1)] == [[1.0] * DIM] * 4
    assert len(books.queue) == len(books.requests) == 0


def test_an_answered_request_leaves_nothing() -> None:
    """G3: who asks again has its text encoded again."""
    books = Books()
    for number in range(2):
        books.ask(named(number), [1])
        assert len(books.queue) == 1
        books.finish(books.queue.next_batch())
        assert len(books.requests) == len(books.queue) == 0
    assert books.requests._pending == {} and books.forgiven == [named(0), named(1)]


class AnyOrder(RuleBasedStateMachine):
    """Requests come, end for every reason there is, and share texts: each is answered once, or dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self.left: dict[RequestName, set[int]] = {}  # what each request that lives still waits for
        self.deadlines: dict[RequestName, float] = {}
        self.dropped: set[RequestName] = set()
        self.running: list[QueuedText] = []
        self.num_asked = 0
        self.now = 0.0

    def end(self, name: RequestName) -> None:
        del self.left[name], self.deadlines[name]

    @rule(
        client=st.integers(0, 2), texts=st.lists(st.integers(1, 6), min_size=1, max_size=4), seconds=st.integers(1, 20)
    )
    def ask(self, client: int, texts: list[int], seconds: int) -> None:
        self.num_asked += 1
        name = named(self.num_asked, client)
        self.left[name], self.deadlines[name] = set(texts), self.now + seconds
        self.books.ask(name, texts, self.deadlines[name])

    @rule(client=st.integers(0, 2))
    def ask_wrongly(self, client: int) -> None:
        self.num_asked += 1
        self.books.ask(named(self.num_asked, client), [1, WRONG])
        assert self.books.desk.failure(named(self.num_asked, client)) is ErrorCode.INVALID_REQUEST

    @precondition(lambda self: self.left)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.left)))
        self.books.requests.drop(name)
        self.dropped.add(name)
        self.end(name)

    @rule(client=st.integers(0, 2))
    def lose_client(self, client: int) -> None:
        identity, _ = named(0, client)
        self.books.requests.drop_client(identity)
        for name in [name for name in self.left if name[0] == identity]:
            self.dropped.add(name)
            self.end(name)

    @rule(seconds=st.integers(1, 10))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds
        self.books.requests.drop_expired(self.now)
        for name in [name for name, deadline in self.deadlines.items() if deadline <= self.now]:
            assert self.books.desk.failure(name) is ErrorCode.DEADLINE_EXCEEDED
            self.end(name)

    @precondition(lambda self: not self.running)
    @rule()
    def start_batch(self) -> None:
        self.running = self.books.queue.next_batch()
        assert len({text.key for text in self.running}) == len(self.running)

    @precondition(lambda self: self.running)
    @rule(has_memory=st.booleans())
    def finish_batch(self, has_memory: bool) -> None:
        batch, self.running = self.running, []
        self.books.finish(batch, has_memory)
        made = {text.key[0] for text in batch}
        for name in [name for name, left in self.left.items() if left & made]:
            self.left[name] -= made
            if not has_memory:
                assert self.books.desk.failure(name) is ErrorCode.UNAVAILABLE
                self.end(name)
            elif not self.left[name]:
                assert name in self.books.desk.rows
                self.end(name)

    @invariant()
    def each_request_lives_was_answered_or_was_dropped(self) -> None:
        answered = self.books.desk.answers.keys()
        assert self.num_asked == len(answered) + len(self.dropped) + len(self.left)
        assert answered.isdisjoint(self.dropped) and answered.isdisjoint(self.left)
        assert len(self.books.requests) == len(self.left)
        assert sorted(self.books.forgiven) == sorted([*answered, *self.dropped])

    @invariant()
    def just_what_somebody_waits_for_is_to_be_encoded(self) -> None:
        wanted = set().union(*self.left.values()) - {text.key[0] for text in self.running}
        assert {key[0] for key in self.books.queue._waiting} == wanted
        self.books.queue.check_integrity()


TestAnyOrder = AnyOrder.TestCase
