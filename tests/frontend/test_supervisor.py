"""V3 and V4 of `frontend.supervisor` with real processes: who hangs is killed, and reaped before another one starts.

When it is started again, and when not, is seen on a fake clock in test_restart_policy.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
from itertools import chain, repeat

from frontend.supervisor import Supervisor
from tests.frontend.small_child import is_gone, launch_of

LIMIT = 30.0  # seconds that anything here may take
AMPLE = 60.0


class Child:
    """A supervisor of real processes, and what it said.

    Args:
        patience: of the first one; the others have ample.
    """

    def __init__(self, patience: float = AMPLE) -> None:
        self.pids: list[int] = []  # of those that have been up
        self.lines: list[str] = []
        self.were_reaped: list[bool] = []
        self._is_up = asyncio.Event()
        launches = chain([launch_of(patience)], repeat(launch_of(AMPLE)))
        self.supervisor = Supervisor(
            "child", lambda: next(launches), AMPLE, self._note_up, self._note_down, self.lines.append
        )
        self._running = asyncio.create_task(self.supervisor.run())

    def _note_up(self, summary: dict[str, str]) -> None:
        assert self.supervisor.pid is not None
        self.pids.append(self.supervisor.pid)
        self._is_up.set()

    def _note_down(self) -> None:
        assert self.supervisor.pid is not None
        self.were_reaped.append(is_gone(self.supervisor.pid))

    async def next_up(self) -> int:
        """The pid of the next one that is up."""
        await self._is_up.wait()
        self._is_up.clear()
        return self.pids[-1]

    async def stop(self) -> None:
        self.supervisor.close_lifeline()
        await self._running


def test_a_process_that_hangs_is_killed_and_reaped_before_the_next_one_starts() -> None:
    async def run() -> None:
        child = Child(patience=1.0)
        first = await child.next_up()
        os.kill(first, signal.SIGSTOP)  # it cannot even close its pipes: nothing but its silence tells
        second = await child.next_up()
        assert second != first and is_gone(first)
        assert child.lines == ["child: its working loop has been silent for 1 s; starting it again"]
        assert child.supervisor.restarts == 1
        await child.stop()
        assert is_gone(second)
        assert child.were_reaped == [True, True]

    asyncio.run(asyncio.wait_for(run(), LIMIT))


def test_a_process_that_is_killed_is_reaped_before_the_next_one_starts() -> None:
    async def run() -> None:
        child = Child()
        first = await child.next_up()
        os.kill(first, signal.SIGKILL)
        assert await child.next_up() != first
        assert child.lines == ["child: killed by signal 9; starting it again"]
        await child.stop()
        assert child.were_reaped == [True, True]

    asyncio.run(asyncio.wait_for(run(), LIMIT))
