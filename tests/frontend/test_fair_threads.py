"""Threads in turn: clients, then requests; what is given up leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.fair_threads import FairThreads


class Gate:
    """Work that waits in its thread until it is let go."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self._may_end = threading.Event()

    def work(self) -> None:
        self.has_begun.set()
        assert self._may_end.wait(30)

    def open(self) -> None:
        self._may_end.set()


def order_of(pieces: list[tuple[bytes, str, str]]) -> list[str]:
    """In which order one thread does these, which all come while it is busy: (client, request, what to note)."""

    async def run() -> list[str]:
        threads, gate = FairThreads(1, "test"), Gate()
        done: list[str] = []
        first = asyncio.create_task(threads.run(b"before", "before", gate.work))
        await asyncio.to_thread(gate.has_begun.wait)
        others = [
            asyncio.create_task(threads.run(client, request, partial(done.append, text)))
            for client, request, text in pieces
        ]
        await asyncio.sleep(0)
        gate.open()
        await asyncio.gather(first, *others)
        threads.close()
        return done

    return asyncio.run(run())


def test_who_has_one_piece_waits_for_one_of_who_has_many() -> None:
    large = [(b"large", "request", f"large {number}") for number in range(5)]
    assert order_of([*large, (b"small", "request", "small")])[:3] == ["large 0", "small", "large 1"]


def test_the_requests_of_one_client_take_turns_and_the_clients_do_whatever_they_ask() -> None:
    pieces = [
        *((b"one", "first", f"one's first {number}") for number in range(2)),
        *((b"one", "second", f"one's second {number}") for number in range(2)),
        *((b"two", "first", f"two's {number}") for number in range(3)),
    ]
    assert order_of(pieces) == [
        *("one's first 0", "two's 0", "one's second 0", "two's 1", "one's first 1", "two's 2", "one's second 1")
    ]


def test_what_work_raises_is_raised_to_who_asked_and_the_thread_is_free() -> None:
    async def run() -> int:
        threads = FairThreads(1, "test")
        with pytest.raises(ZeroDivisionError):
            await threads.run(b"", "", lambda: 1 // 0)
        try:
            return await threads.run(b"", "", lambda: 7)
        finally:
            threads.close()

    assert asyncio.run(run()) == 7


def test_a_piece_that_is_given_up_while_it_runs_has_its_thread_until_it_ends() -> None:
    async def run() -> None:
        threads, gate = FairThreads(1, "test"), Gate()
        done: list[str] = []
        given_up = asyncio.create_task(threads.run(b"one", "", gate.work))
        await asyncio.to_thread(gate.has_begun.wait)
        other = asyncio.create_task(threads.run(b"two", "", partial(done.append, "other")))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert not other.done() and not done
        gate.open()
        await other
        assert done == ["other"]
        threads.close()

    asyncio.run(run())


@settings(deadline=None)
@given(
    count=st.integers(1, 3),
    pieces=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=20),
    given_up=st.sets(st.integers(0, 19)),
)
def test_all_that_is_not_given_up_is_done_never_more_at_once_than_threads(
    count: int, pieces: list[tuple[int, int, bool]], given_up: set[int]
) -> None:
    lock = threading.Lock()
    running = most = 0

    def work(fails: bool) -> bool:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            if fails:
                raise ValueError
            return True
        finally:
            with lock:
                running -= 1

    def task(threads: FairThreads, client: int, request: int, what: Callable[[], bool]) -> asyncio.Task[bool]:
        return asyncio.create_task(threads.run(bytes([client]), request, what))

    async def run() -> None:
        threads = FairThreads(count, "test")
        tasks = [task(threads, client, request, partial(work, fails)) for client, request, fails in pieces]
        await asyncio.sleep(0)
        for number, each in enumerate(tasks):
            if number in given_up:
                each.cancel()  # some run, some wait, some have ended
        async with asyncio.timeout(20):
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            for number, (answer, (_, _, fails)) in enumerate(zip(answers, pieces, strict=True)):
                is_cancelled = number in given_up and isinstance(answer, asyncio.CancelledError)
                assert is_cancelled or (isinstance(answer, ValueError) if fails else answer is True), answer
            gates = [Gate() for _ in range(count)]  # every thread is there again
            last = [asyncio.create_task(threads.run(b"", "last", gate.work)) for gate in gates]
            for gate in gates:
                await asyncio.to_thread(gate.has_begun.wait)
            for gate in gates:
                gate.open()
            await asyncio.gather(*last)
        threads.close()

    asyncio.run(run())
    assert most <= count
