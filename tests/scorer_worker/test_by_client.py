"""Turns of clients, order within a client, nothing lost."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scorer_worker.by_client import ByClient

CLIENTS = st.integers(0, 2)


def test_who_has_one_waits_for_one_of_who_has_many() -> None:
    waiting: ByClient[str] = ByClient()
    for number in range(3):
        waiting.add(b"large", (b"i", number), f"large {number}")
    waiting.add(b"small", (b"j", 0), "small")
    order = []
    while len(waiting):
        order.append(waiting.first())
        assert waiting.remove((b"i", int(order[-1][-1])) if order[-1] != "small" else (b"j", 0))
    assert order == ["large 0", "small", "large 1", "large 2"]


class Turns(RuleBasedStateMachine):
    """Against a plain list in which a turn is looked for."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: ByClient[int] = ByClient()
        self.clients: list[int] = []  # with something that waits, next one first
        self.items: list[tuple[int, int]] = []  # (client, number), in the order they came
        self.next = 0

    def own(self, client: int) -> list[int]:
        return [number for owner, number in self.items if owner == client]

    def name(self, number: int) -> tuple[bytes, int]:
        return bytes([number % 2]) * 16, number

    @rule(client=CLIENTS)
    def add(self, client: int) -> None:
        self.waiting.add(bytes([client]), self.name(self.next), self.next)
        self.items.append((client, self.next))
        if client not in self.clients:
            self.clients.append(client)
        self.next += 1

    @precondition(lambda self: self.items)
    @rule()
    def take(self) -> None:
        client = self.clients[0]
        expected = self.own(client)[0]
        assert self.waiting.first() == expected
        self.leave(client, expected)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.leave(*data.draw(st.sampled_from(self.items)))

    def leave(self, client: int, number: int) -> None:
        was_its_turn = self.clients[0] == client and self.own(client)[0] == number
        self.items.remove((client, number))
        assert self.waiting.remove(self.name(number))
        assert not self.waiting.remove(self.name(number))
        if was_its_turn or not self.own(client):
            self.clients.remove(client)
            if self.own(client):
                self.clients.append(client)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.waiting) == len(self.items)
        for identity in (0, 1):
            names = [self.name(number) for _, number in self.items if number % 2 == identity]
            assert sorted(self.waiting.of_identity(bytes([identity]) * 16)) == sorted(names)


TestTurns = Turns.TestCase


def test_an_unknown_one_is_not_removed() -> None:
    assert not ByClient[int]().remove((b"i", 1))
    with pytest.raises(StopIteration):
        ByClient[int]().first()
