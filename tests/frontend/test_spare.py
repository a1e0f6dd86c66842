"""SP1 to SP3 of `frontend.spare`, with real processes that die and hang; they are small and stand by at once.

What the real one holds, and that it becomes a worker or an engine, is seen in tests/chaos/test_kills.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest

from frontend.process import kill
from frontend.spare import Spare
from frontend.supervisor import Supervisor
from tests.frontend.small_child import MODULE, environment, is_dead, is_gone, launch_of

LIMIT = 30.0  # seconds that anything here may take
LAUNCH = launch_of(patience=60.0)


@pytest.fixture(autouse=True)
def small_spares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.spare.MODULE", MODULE)
    monkeypatch.setattr("frontend.spare.FIRST_BACKOFF", 0.01)


class Standing:
    """A `Spare` that runs, and what it says to people."""

    def __init__(self) -> None:
        self.lines: asyncio.Queue[str] = asyncio.Queue()
        self.spare = Spare(environment(stands_by=True), self.lines.put_nowait)
        self.running = asyncio.create_task(self.spare.run())

    @property
    def pid(self) -> int:
        assert self.spare._standing_by is not None
        return self.spare._standing_by.process.pid

    async def until_it_stands_by(self) -> int:
        assert await self.lines.get() == "spare: stands by"
        return self.pid


@contextlib.asynccontextmanager
async def standing() -> AsyncIterator[Standing]:
    """One that is wanted."""
    made = Standing()
    made.spare.want()
    async with asyncio.timeout(LIMIT):
        try:
            yield made
        finally:
            made.spare.close()
            await made.running


async def end(process: asyncio.subprocess.Process) -> None:
    kill(process)
    await process.wait()


def test_who_asks_gets_the_process_that_stands_by() -> None:
    async def run() -> None:
        async with standing() as made:
            pid = await made.until_it_stands_by()
            process = await made.spare.start(LAUNCH)
            assert process.pid == pid
            made.spare.want()
            assert await made.until_it_stands_by() != pid
            await end(process)

    asyncio.run(run())


def test_who_asks_gets_a_new_process_where_the_one_that_stands_by_has_just_died() -> None:
    """SP1: before anybody has noticed."""

    async def run() -> None:
        async with standing() as made:
            pid = await made.until_it_stands_by()
            os.kill(pid, signal.SIGKILL)
            while not is_dead(pid):
                pass
            process = await made.spare.start(LAUNCH)
            assert process.pid != pid and process.returncode is None and is_gone(pid)
            await end(process)

    asyncio.run(run())


@pytest.mark.parametrize("is_born", [True, False], ids=["stands-by", "is-still-importing"])
def test_who_asks_gets_a_new_process_where_the_one_that_stands_by_hangs(
    is_born: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SP2: it is alive, its pipes are open, and it says nothing."""
    monkeypatch.setattr("frontend.spare.PROMOTION_LIMIT", 0.2)

    async def run() -> None:
        async with standing() as made:
            if is_born:
                await made.until_it_stands_by()
            while made.spare._standing_by is None:
                await asyncio.sleep(0)
            hung = made.pid
            os.kill(hung, signal.SIGSTOP)
            process = await made.spare.start(LAUNCH)
            assert process.pid != hung and process.returncode is None
            assert is_gone(hung)
            await end(process)

    asyncio.run(run())


def test_who_asks_gets_a_new_process_where_the_one_that_stands_by_dies_as_it_is_promoted() -> None:
    """SP1: to the supervisor that is no death of its child."""

    async def run() -> None:
        async with standing() as made:
            pid = await made.until_it_stands_by()
            os.kill(pid, signal.SIGSTOP)  # so that it has not answered when it dies
            is_up = asyncio.Event()
            supervisor = Supervisor(
                *("child", lambda: LAUNCH, LIMIT, lambda summary: is_up.set(), lambda: None, made.lines.put_nowait),
                made.spare.start,
            )
            supervised = asyncio.create_task(supervisor.run())
            while made.spare._in_promotion is None:
                await asyncio.sleep(0)
            os.kill(pid, signal.SIGKILL)
            await is_up.wait()
            assert supervisor.restarts == 0 and supervisor.pid != pid
            assert made.lines.empty()
            supervisor.close_lifeline()
            await supervised

    asyncio.run(run())


def test_however_often_one_is_wanted_there_is_one() -> None:
    """SP3."""

    async def run() -> None:
        async with standing() as made:
            first = await made.until_it_stands_by()
            for _ in range(3):
                made.spare.want()
                for _ in range(10):
                    await asyncio.sleep(0)
                assert made.pid == first
        assert made.lines.empty()

    asyncio.run(run())


def test_one_that_dies_while_it_stands_by_is_followed_by_another() -> None:
    """SP1."""

    async def run() -> None:
        async with standing() as made:
            first = await made.until_it_stands_by()
            os.kill(first, signal.SIGKILL)
            assert await made.lines.get() == "spare: killed by signal 9 while it stood by; another one follows"
            second = await made.until_it_stands_by()
            assert second != first and is_gone(first)
        assert is_gone(second)

    asyncio.run(run())


@pytest.mark.parametrize("is_born", [True, False], ids=["stands-by", "is-still-importing"])
def test_it_ends_with_the_launch(is_born: bool) -> None:
    """SP3: also one that hangs, and no other one follows."""

    async def run() -> None:
        async with standing() as made:
            if is_born:
                await made.until_it_stands_by()
            while made.spare._standing_by is None:
                await asyncio.sleep(0)
            pid = made.pid
            os.kill(pid, signal.SIGSTOP)
        assert is_gone(pid)
        assert made.lines.empty()

    asyncio.run(run())


def test_one_in_promotion_ends_with_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """SP3: at once, not when it has had its time to answer."""
    monkeypatch.setattr("frontend.spare.PROMOTION_LIMIT", 10 * LIMIT)

    async def run() -> None:
        async with standing() as made:
            pid = await made.until_it_stands_by()
            os.kill(pid, signal.SIGSTOP)
            asking = asyncio.create_task(made.spare.start(LAUNCH))
            while made.spare._in_promotion is None:
                await asyncio.sleep(0)
            made.spare.close()
            await end(await asking)  # whoever asked ends what it got: the launch stops every child
            assert is_gone(pid)

    asyncio.run(run())
