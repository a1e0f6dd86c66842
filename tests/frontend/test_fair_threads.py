"""Threads in turn: clients, then requests; what is given up leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frontend.fair_threads import FairThreads
from tests.frontend.leftovers import is_gone_without_the_collector


class Failure(Exception):
    """Of a piece of work."""


def fail() -> None:
    raise Failure


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


class Roomy(ThreadPoolExecutor):
    """An executor with more threads than `FairThreads` may use, so that only those can hold pieces back. It fails so
    many times first."""

    def __init__(self, failures: int = 0) -> None:
        super().__init__(max_workers=8)
        self.failures = failures
        self.unfinished = self.most = 0
        self._lock = threading.Lock()

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("can't start new thread")
        with self._lock:
            self.unfinished += 1
            self.most = max(self.most, self.unfinished)

        def counted() -> Any:
            try:
                return work(*arguments, **named)
            finally:
                with self._lock:
                    self.unfinished -= 1

        return super().submit(counted)


def roomy(count: int, failures: int = 0) -> tuple[FairThreads, Roomy]:
    threads, executor = FairThreads(count, "test"), Roomy(failures)
    threads.close()
    threads._executor = executor
    return threads, executor


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
        with pytest.raises(Failure):
            await threads.run(b"", "", fail)
        try:
            return await threads.run(b"", "", lambda: 7)
        finally:
            threads.close()

    assert asyncio.run(run()) == 7


def test_failure_is_gone_without_the_collector() -> None:
    """It would keep what the frames of its traceback hold: a request of many megabytes."""

    async def fail_in_a_thread() -> None:
        threads = FairThreads(1, "test")
        try:
            await threads.run(b"", "", fail)
        finally:
            threads.close()

    assert is_gone_without_the_collector(Failure, fail_in_a_thread)


def test_where_no_thread_can_be_started_only_those_who_ask_then_fail() -> None:
    async def run() -> int:
        threads, _ = roomy(2, failures=3)
        async with asyncio.timeout(20):
            for _ in range(3):
                with pytest.raises(RuntimeError):
                    await threads.run(b"", "", lambda: 0)
            result = await threads.run(b"", "", lambda: 7)
        assert threads._free == 2
        threads.close()
        return result

    assert asyncio.run(run()) == 7


def test_who_waits_when_it_is_closed_is_cancelled() -> None:
    async def run() -> None:
        threads, gate = FairThreads(1, "test"), Gate()
        running = asyncio.create_task(threads.run(b"one", "", gate.work))
        await asyncio.to_thread(gate.has_begun.wait)
        waiting = [asyncio.create_task(threads.run(bytes([number]), "", int)) for number in range(3)]
        await asyncio.sleep(0)
        threads.close()
        async with asyncio.timeout(20):
            assert all(isinstance(each, asyncio.CancelledError) for each in await answers_of(waiting))
            gate.open()
            await running

    asyncio.run(run())


async def answers_of(tasks: list[asyncio.Task[int]]) -> list[int | BaseException]:
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_a_piece_that_is_given_up_while_it_runs_has_its_thread_until_it_ends() -> None:
    async def run() -> None:
        threads, executor = roomy(1)
        gate, last = Gate(), Gate()
        given_up = asyncio.create_task(threads.run(b"one", "", gate.work))
        await asyncio.to_thread(gate.has_begun.wait)
        other = asyncio.create_task(threads.run(b"two", "", last.work))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert executor.unfinished == 1
        assert not last.has_begun.is_set()
        gate.open()
        last.open()
        await other
        assert executor.most == threads._free == 1
        threads.close()

    asyncio.run(run())


def test_a_turn_that_is_given_up_as_it_comes_goes_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the moment in which a thread is free for it and the one in which it hears of that."""

    async def run() -> int:
        threads, gate = FairThreads(1, "test"), Gate()
        first = asyncio.create_task(threads.run(b"one", "", gate.work))
        await asyncio.to_thread(gate.has_begun.wait)
        second = asyncio.create_task(threads.run(b"two", "", int))
        third = asyncio.create_task(threads.run(b"three", "", lambda: 3))
        await asyncio.sleep(0)
        give_back = threads._wake_next

        def wake_and_cancel() -> None:
            give_back()
            second.cancel()

        monkeypatch.setattr(threads, "_wake_next", wake_and_cancel)
        gate.open()
        await first
        async with asyncio.timeout(20):
            result = await third
        assert second.cancelled() or second.cancelling()
        threads.close()
        return result

    assert asyncio.run(run()) == 3


def test_a_piece_that_is_given_up_while_it_waits_costs_its_client_no_turn() -> None:
    async def run() -> list[str]:
        threads, gate = FairThreads(1, "test"), Gate()
        done: list[str] = []
        first = asyncio.create_task(threads.run(b"before", "", gate.work))
        await asyncio.to_thread(gate.has_begun.wait)
        names = ["a1", "a2", "b1", "b2"]
        tasks = [asyncio.create_task(threads.run(name[:1].encode(), "", partial(done.append, name))) for name in names]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        gate.open()
        await asyncio.gather(first, *tasks, return_exceptions=True)
        assert not threads._waiting
        threads.close()
        return done

    assert asyncio.run(run()) == ["a2", "b1", "b2"]


@settings(deadline=None)
@given(
    count=st.integers(1, 3),
    pieces=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=20),
    given_up=st.sets(st.integers(0, 19)),
    rounds=st.integers(0, 3),
)
def test_all_that_is_not_given_up_is_done_never_more_at_once_than_threads(
    count: int, pieces: list[tuple[int, int, bool]], given_up: set[int], rounds: int
) -> None:
    def work(fails: bool) -> int:
        if fails:
            raise ValueError
        return 1

    async def run() -> None:
        threads, executor = roomy(count)
        tasks = [
            asyncio.create_task(threads.run(bytes([client]), request, partial(work, fails)))
            for client, request, fails in pieces
        ]
        for _ in range(rounds):
            await asyncio.sleep(0)
        for number, each in enumerate(tasks):
            if number in given_up:
                each.cancel()  # some have not begun, some run, some wait, some have ended
        async with asyncio.timeout(20):
            answers = await answers_of(tasks)
            await threads.run(b"", "last", int)
            while executor.unfinished or threads._free < count:  # those that were given up as they ran
                await asyncio.sleep(0)
        for number, (answer, (_, _, fails)) in enumerate(zip(answers, pieces, strict=True)):
            is_cancelled = number in given_up and isinstance(answer, asyncio.CancelledError)
            assert is_cancelled or (isinstance(answer, ValueError) if fails else answer == 1), answer
        assert executor.most <= count
        assert threads._free == count
        assert not threads._waiting
        threads.close()

    asyncio.run(run())
