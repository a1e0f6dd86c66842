"""What is encoded next: Q1 to Q6 of engine.encode_queue."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Sequence

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.encode_queue import MAX_BATCH_TEXTS, SMALL_BATCH, WARY_BATCHES, EncodeQueue, QueuedText
from ipc.running import RequestName

MAX_BATCH_TOKENS = 20


def named(number: int) -> RequestName:
    return b"i" * 16, number


def key_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def ids_of(length: int) -> memoryview:
    return memoryview(array("i", range(length)))


def queue_of(*texts: tuple[int, int, int, bytes], suspects: Sequence[int] = ()) -> EncodeQueue:
    """A queue with (key, length, waiter, client) added in this order."""
    queue = EncodeQueue(MAX_BATCH_TOKENS)
    for key, length, waiter, client in texts:
        queue.add(key_of(key), "document", ids_of(length), 0, named(waiter), client, alone=waiter in suspects)
    return queue


def keys_of(batch: Sequence[QueuedText]) -> list[int]:
    return [int.from_bytes(text.key, "big") for text in batch]


def all_batches(queue: EncodeQueue) -> list[list[int]]:
    """The keys of every batch until nothing waits."""
    batches = []
    while batch := queue.next_batch():
        batches.append(keys_of(batch))
        queue.finish(batch)
    queue.check_integrity()
    return batches


def test_nothing_waiting_is_an_empty_batch() -> None:
    assert EncodeQueue(MAX_BATCH_TOKENS).next_batch() == []


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        pytest.param([10, 10, 1], [[0, 1], [2]], id="exactly-full"),
        pytest.param([10, 11], [[0], [1]], id="one-id-over"),
        pytest.param([50, 1], [[0], [1]], id="longer-than-a-batch-goes-alone"),
        pytest.param([1, 50, 1], [[0], [1], [2]], id="longer-than-a-batch-behind-a-short-one"),
    ],
)
def test_batch_stays_within_its_tokens(lengths: list[int], expected: list[list[int]]) -> None:  # Q3
    queue = queue_of(*((number, length, 1, b"a") for number, length in enumerate(lengths)))
    assert all_batches(queue) == expected


@pytest.mark.parametrize("suspects", [[], [1]])
def test_batch_of_short_texts_stays_within_a_number_of_them(suspects: list[int]) -> None:  # Q3
    queue = EncodeQueue(10 * MAX_BATCH_TEXTS)
    for number in range(2 * MAX_BATCH_TEXTS + 1):
        assert queue.has_due_batch == (number >= MAX_BATCH_TEXTS)
        queue.add(key_of(number), "document", ids_of(1), 0, named(1), b"a", alone=1 in suspects)
    assert [len(batch) for batch in all_batches(queue)] == [MAX_BATCH_TEXTS, MAX_BATCH_TEXTS, 1]


def test_text_wanted_twice_is_encoded_once_for_both() -> None:  # Q1
    queue = queue_of((7, 5, 1, b"a"), (7, 5, 2, b"b"))
    batch = queue.next_batch()
    assert keys_of(batch) == [7]
    assert queue.finish(batch) == [(key_of(7), [named(1), named(2)])]
    assert all_batches(queue) == []


def test_text_that_runs_is_joined() -> None:  # Q1
    queue = queue_of((7, 5, 1, b"a"))
    batch = queue.next_batch()
    queue.add(key_of(7), "document", ids_of(5), 0, named(2), b"b")
    assert queue.next_batch() == []
    assert queue.running_waiters() == [named(1), named(2)]
    assert queue.finish(batch) == [(key_of(7), [named(1), named(2)])]


def test_unknown_text_cannot_be_joined() -> None:
    queue = queue_of((7, 5, 1, b"a"))
    assert not queue.join(key_of(8), named(2))
    assert queue.join(key_of(7), named(2))
    queue.check_integrity()


def test_text_is_encoded_anew_after_it_has_finished() -> None:
    queue = queue_of((7, 5, 1, b"a"))
    assert all_batches(queue) == [[7]]
    queue.add(key_of(7), "document", ids_of(5), 0, named(1), b"a")
    assert all_batches(queue) == [[7]]


def test_text_is_dropped_with_its_last_waiter() -> None:  # Q2
    queue = queue_of((7, 5, 1, b"a"), (8, 5, 1, b"a"))
    queue.join(key_of(7), named(2), b"b")
    assert queue.drop(named(1)) == [key_of(8)]
    queue.check_integrity()
    assert queue.drop(named(2)) == [key_of(7)]
    assert all_batches(queue) == []
    assert queue.statistics() == {"texts_waiting": 0, "tokens_waiting": 0, "texts_running": 0}


def test_running_text_is_finished_for_nobody() -> None:  # Q2
    queue = queue_of((7, 5, 1, b"a"))
    batch = queue.next_batch()
    assert queue.drop(named(1)) == []
    assert queue.finish(batch) == [(key_of(7), [])]
    queue.check_integrity()


def test_clients_take_turns() -> None:  # Q4
    queue = queue_of(*((number, 10, 1, b"a") for number in range(4)), (9, 10, 2, b"b"))
    assert all_batches(queue) == [[0, 9], [1, 2], [3]]


def test_the_request_with_the_fewest_texts_left_comes_first() -> None:  # Q4
    queue = queue_of(*((number, 10, 1, b"a") for number in range(4)), (9, 10, 2, b"a"))
    assert all_batches(queue) == [[9, 0], [1, 2], [3]]


def test_equal_requests_are_finished_one_after_the_other() -> None:  # Q4
    queue = queue_of(*((10 * request + number, 10, request, b"a") for number in range(3) for request in range(3)))
    assert all_batches(queue) == [[0, 1], [2, 10], [11, 12], [20, 21], [22]]


def test_the_oldest_request_has_every_fourth_turn() -> None:  # Q4
    queue = queue_of(*((number, 10, 0, b"a") for number in range(9)))
    done = []
    for number in range(12):  # small ones keep coming
        queue.add(key_of(100 + 2 * number), "document", ids_of(10), 0, named(100 + number), b"a")
        queue.add(key_of(101 + 2 * number), "document", ids_of(10), 0, named(100 + number), b"a")
        batch = queue.next_batch()
        queue.finish(batch)
        done += keys_of(batch)
    assert [key < 100 for key in done] == [turn % 4 == 3 for turn in range(24)]


def test_many_requests_do_not_give_a_client_more_turns() -> None:  # Q4
    queue = queue_of(*((number, 10, number, b"a") for number in range(4)), (9, 10, 9, b"b"))
    assert all_batches(queue)[0] == [0, 9]


def test_joined_text_comes_at_the_turn_of_whoever_is_first() -> None:  # Q4
    queue = queue_of(*((number, 10, 1, b"a") for number in range(6)), (5, 10, 2, b"b"))
    assert all_batches(queue) == [[0, 5], [1, 2], [3, 4]]


def test_batches_are_small_while_little_is_wanted_beside_much_and_for_some_time_after() -> None:  # Q6
    small = MAX_BATCH_TOKENS // SMALL_BATCH
    count = (WARY_BATCHES + 1) * small + 2 * MAX_BATCH_TOKENS
    queue = queue_of(*((number, 1, 1, b"much") for number in range(count)), (count, 1, 2, b"little"))
    batches = all_batches(queue)
    assert count in batches[0]
    assert [len(batch) for batch in batches[:WARY_BATCHES]] == [small] * WARY_BATCHES
    assert len(batches[WARY_BATCHES]) == MAX_BATCH_TOKENS


def test_batches_are_small_also_where_all_that_waits_would_fit_one() -> None:  # Q6
    small = MAX_BATCH_TOKENS // SMALL_BATCH
    queue = queue_of(*((number, 1, 1, b"much") for number in range(MAX_BATCH_TOKENS - 1)), (99, 1, 2, b"little"))
    assert queue.has_due_batch
    queue = queue_of(*((number, 1, 1, b"much") for number in range(MAX_BATCH_TOKENS - 2)), (99, 1, 2, b"little"))
    assert not queue.has_due_batch
    batch = queue.next_batch()
    assert len(batch) == small and key_of(99) in [text.key for text in batch]
    assert queue.has_due_batch, "a small one"


def test_nothing_waits_for_more_to_go_with_it_while_batches_are_small() -> None:  # Q6
    queue = queue_of((1, 1, 1, b"little"))
    assert not queue.has_due_batch
    queue = little_beside_much()
    queue.finish(queue.next_batch())
    queue.drop(named(1))
    assert not queue.has_due_batch, "nothing waits"
    queue.add(key_of(1000), "document", ids_of(1), 0, named(3), b"little")
    assert queue.has_due_batch


def test_what_is_left_of_much_is_not_little() -> None:  # Q6
    """Clients that all ask for as much, one after the other: one of them is always near its end."""
    queue = EncodeQueue(MAX_BATCH_TOKENS)
    next_key = itertools.count()

    def ask(client: int, count: int) -> None:
        name = named(next(next_key))
        for _ in range(count):
            queue.add(key_of(next(next_key)), "document", ids_of(1), 0, name, bytes([client]))

    clients, each = 8, 2 * MAX_BATCH_TOKENS
    for client in range(clients):
        ask(client, each + client * each // clients)  # they are not near their ends together
    left = 0
    for _ in range(100):
        batch = queue.next_batch()
        assert len(batch) == MAX_BATCH_TOKENS
        queue.finish(batch)
        asking = {client[0] for client in queue._turns if queue._wanted(client)}
        left += any(queue._wanted(client) <= MAX_BATCH_TOKENS // SMALL_BATCH for client in queue._turns)
        for client in set(range(clients)) - asking:
            ask(client, each)
    assert left > 10, "of somebody little was left"
    queue.check_integrity()


def test_who_has_all_it_wants_on_its_way_does_not_want_much() -> None:  # Q6
    """Its row is cleared away only when its turn comes."""
    queue = queue_of(*((number, 1, number % 7, bytes([number % 7])) for number in range(MAX_BATCH_TOKENS + 1)))
    assert len(queue.next_batch()) == MAX_BATCH_TOKENS
    for number in range(100, 106):
        queue.add(key_of(number), "document", ids_of(1), 0, named(number), b"%d" % number)
    assert len(queue.next_batch()) == 1 + 6, "more than a small batch, but all of them want little"


def test_batches_are_small_also_where_much_is_many_short_texts() -> None:  # Q6
    queue = EncodeQueue(10 * MAX_BATCH_TEXTS)
    for number in range(MAX_BATCH_TEXTS + 10):
        queue.add(key_of(number), "document", ids_of(1), 0, named(1), b"much")
    queue.add(key_of(number + 1), "document", ids_of(1), 0, named(2), b"little")
    batch = queue.next_batch()
    assert len(batch) == MAX_BATCH_TEXTS // SMALL_BATCH
    assert key_of(number + 1) in [text.key for text in batch]


def little_beside_much(suspects: Sequence[int] = ()) -> EncodeQueue:
    """100 texts, from 0 on, of one client; as many as fit a small batch, from 100 on, of another one."""
    little = range(100, 100 + MAX_BATCH_TOKENS // SMALL_BATCH)
    much = [(number, 1, 1, b"much") for number in range(100)]
    return queue_of(*much, *((number, 1, 2, b"little") for number in little), suspects=suspects)


def test_who_wants_little_beside_much_has_it_in_one_batch() -> None:  # Q6
    queue = little_beside_much()
    batches = all_batches(queue)
    assert [key >= 100 for key in batches[0]] == [True] * (MAX_BATCH_TOKENS // SMALL_BATCH)
    assert sorted(key for batch in batches for key in batch) == list(range(100 + len(batches[0])))


def test_who_always_wants_little_leaves_others_their_turns_in_every_other_batch() -> None:  # Q6
    queue = little_beside_much()
    size = MAX_BATCH_TOKENS // SMALL_BATCH
    next_key = 1000
    shares = []
    for number in range(3, 9):
        batch = queue.next_batch()
        shares.append(sum(text.waiters.keys() == {named(1)} for text in batch))
        for _ in range(size - shares[-1]):  # it wants as many again
            queue.add(key_of(next_key), "document", ids_of(1), 0, named(number), b"little")
            next_key += 1
        queue.finish(batch)
    assert shares[0::2] == [0] * 3
    assert min(shares[1::2]) >= size // 2
    queue.check_integrity()


@pytest.mark.parametrize("suspect", [1, 2])
def test_suspects_do_not_come_first_for_wanting_little(suspect: int) -> None:  # Q5, Q6
    batches = all_batches(little_beside_much(suspects=[suspect]))
    assert sum(map(len, batches)) == 100 + MAX_BATCH_TOKENS // SMALL_BATCH
    assert all(len({key >= 100 for key in batch}) == 1 for batch in batches)


def test_batches_are_full_where_all_want_much_or_all_want_little() -> None:  # Q6
    much = [(number, 1, number % 2, bytes([number % 2])) for number in range(4 * MAX_BATCH_TOKENS)]
    assert {len(batch) for batch in all_batches(queue_of(*much))} == {MAX_BATCH_TOKENS}
    little = [(number, 1, number, bytes([number])) for number in range(2 * MAX_BATCH_TOKENS)]
    assert {len(batch) for batch in all_batches(queue_of(*little))} == {MAX_BATCH_TOKENS}


def test_suspect_shares_its_batch_with_nobody() -> None:  # Q5
    queue = queue_of((1, 2, 1, b"a"), (2, 2, 2, b"b"), (3, 2, 3, b"c"), (4, 2, 2, b"b"), suspects=[2])
    assert all_batches(queue) == [[1], [2, 4], [3]]


def test_two_suspects_are_not_blamed_for_each_other() -> None:  # Q5
    queue = queue_of((1, 2, 1, b"a"), (1, 2, 2, b"b"), (2, 2, 1, b"a"), (3, 2, 2, b"b"), suspects=[1, 2])
    assert sorted(all_batches(queue)) == [[1], [2], [3]]


def test_text_is_alone_as_soon_as_a_suspect_joins_it() -> None:  # Q5
    queue = queue_of((1, 2, 1, b"a"), (2, 2, 1, b"a"))
    queue.join(key_of(1), named(2), b"b", alone=True)
    assert all_batches(queue) == [[1], [2]]


def test_text_is_alone_no_longer_when_the_suspect_has_gone() -> None:  # Q5
    queue = queue_of((1, 2, 1, b"a"), (2, 2, 1, b"a"))
    queue.join(key_of(1), named(2), b"b", alone=True)
    queue.drop(named(2))
    assert all_batches(queue) == [[1, 2]]


class AnyOrder(RuleBasedStateMachine):
    """Adds, joins, drops, batches and finishes in any order; `wanted` is what each request waits for."""

    KEYS, WAITERS = st.integers(0, 15), st.integers(0, 7)

    def __init__(self) -> None:
        super().__init__()
        self.queue = EncodeQueue(MAX_BATCH_TOKENS)
        self.wanted: dict[RequestName, set[bytes]] = {}
        self.suspects: set[RequestName] = set()
        self.waiting: set[bytes] = set()
        self.running: list[QueuedText] = []

    @rule(key=KEYS, number=WAITERS, length=st.integers(1, 30), alone=st.booleans())
    def add(self, key: int, number: int, length: int, alone: bool) -> None:
        name = named(number)
        client = b"%d" % (number % 3)
        self.queue.add(key_of(key), "document", ids_of(length), 0, name, client, alone)
        if key_of(key) not in {text.key for text in self.running}:
            self.waiting.add(key_of(key))
        self._want(name, key_of(key), alone)

    @rule(key=KEYS, number=WAITERS, alone=st.booleans(), has_client=st.booleans())
    def join(self, key: int, number: int, alone: bool, has_client: bool) -> None:
        name = named(number)
        known = self.waiting | {text.key for text in self.running}
        client = b"%d" % (number % 3) if has_client else None
        assert self.queue.join(key_of(key), name, client, alone) == (key_of(key) in known)
        if key_of(key) in known:
            self._want(name, key_of(key), alone)

    @rule(number=WAITERS)
    def drop(self, number: int) -> None:
        gone = self.wanted.pop(named(number), set())
        self.suspects.discard(named(number))
        left = {key for keys in self.wanted.values() for key in keys}
        expected = {key for key in gone if key in self.waiting and key not in left}
        assert set(self.queue.drop(named(number))) == expected  # Q2
        self.waiting -= expected

    @rule()
    def launch(self) -> None:
        if self.running:
            return
        self.running = list(self.queue.next_batch())
        assert bool(self.running) == bool(self.waiting)
        keys = [text.key for text in self.running]
        assert len(set(keys)) == len(keys)  # Q1
        assert set(keys) <= self.waiting
        self.waiting -= set(keys)
        tokens = sum(len(text.token_ids) for text in self.running)
        assert tokens <= MAX_BATCH_TOKENS or len(keys) == 1  # Q3
        waiters = [{name for name, wanted in self.wanted.items() if key in wanted} for key in keys]
        if any(names & self.suspects for names in waiters):
            assert all(names == waiters[0] for names in waiters)  # Q5
        assert set(self.queue.running_waiters()) == set().union(*waiters)

    @rule()
    def finish(self) -> None:
        finished = self.queue.finish(self.running)
        assert [key for key, _ in finished] == [text.key for text in self.running]
        for key, names in finished:
            assert set(names) == {name for name, wanted in self.wanted.items() if key in wanted}
            for name in names:
                self.wanted[name].discard(key)
                if not self.wanted[name]:
                    del self.wanted[name]
                    self.suspects.discard(name)
        self.running = []

    @invariant()
    def books_agree(self) -> None:
        self.queue.check_integrity()
        assert len(self.queue) == len(self.waiting)

    def teardown(self) -> None:
        """Everything that waits is encoded in the end."""
        self.queue.finish(self.running)
        assert {key for batch in all_batches(self.queue) for key in batch} == {
            int.from_bytes(key, "big") for key in self.waiting
        }

    def _want(self, name: RequestName, key: bytes, alone: bool) -> None:
        self.wanted.setdefault(name, set()).add(key)
        if alone:
            self.suspects.add(name)


TestAnyOrder = AnyOrder.TestCase
