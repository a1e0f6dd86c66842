"""A process that stands by to take a dead service's place, everything imported: a restart without the imports' seconds.

It is started once all services are up, so that it takes no time from them, and again after it was used. It becomes a
worker or an engine when it is told to; until then it has nothing that could be lost. See docs/decisions/0007.

    SP1  A death while it stands by, or while it is promoted, is nobody's crash: another one is started, or for the
         service a new process.
    SP2  Whoever asks for a process gets one: promoting waits for at most PROMOTION_LIMIT.
    SP3  At most one stands by; it ends with the launch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from frontend.process import describe_exit, kill, start_process
from frontend.supervisor import Launch, start_new
from ipc.child import Promotion

MODULE = "scorer_worker.spare"
PROMOTION_LIMIT = 10.0  # seconds until it has answered; one that is still importing has all of them
FIRST_BACKOFF, LONGEST_BACKOFF = 1.0, 60.0  # seconds; doubled at each death while it stands by


@dataclass(frozen=True, slots=True)
class _Standing:
    process: asyncio.subprocess.Process
    born: asyncio.Task[bytes]  # reads its first status line: everything is imported


class Spare:
    """The process that stands by, if there is one.

    Args:
        environment: of the service that it is most likely to become: what is read while importing.
        narrate: called with a line for people.
    """

    def __init__(self, environment: Mapping[str, str], narrate: Callable[[str], None]) -> None:
        self._environment = environment
        self._narrate = narrate
        self._standing_by: _Standing | None = None
        self._in_promotion: _Standing | None = None
        self._is_wanted = asyncio.Event()
        self._is_taken = asyncio.Event()
        self._is_closed = asyncio.Event()
        self._backoff = FIRST_BACKOFF

    def want(self) -> None:
        """The services are up: let one stand by."""
        self._is_wanted.set()

    async def run(self) -> None:
        """Keep one standing by, whenever it is wanted, until `close`."""
        while True:
            await self._is_wanted.wait()
            self._is_wanted.clear()
            if self._is_closed.is_set():
                return
            failure = await self._stand_by()
            if failure is not None and not self._is_closed.is_set():
                self._narrate(f"spare: {failure}; another one follows")
                await self._back_off()
                self.want()

    async def start(self, launch: Launch) -> asyncio.subprocess.Process:
        """A process for this launch: the one that stands by, else a new one. Its settings have not been written yet.

        Raises:
            OSError: the system has no room for a new one.
        """
        spare, self._standing_by = self._standing_by, None
        if spare is not None:
            self._is_taken.set()
            self._backoff = FIRST_BACKOFF
            if await self._promote(spare, launch):
                return spare.process
        return await start_new(launch)

    def close(self) -> None:
        """End it at once: it has nothing to finish. `run` returns when it has been reaped."""
        self._is_closed.set()
        self._is_wanted.set()
        for spare in (self._standing_by, self._in_promotion):
            if spare is not None:
                kill(spare.process)

    async def _stand_by(self) -> str | None:
        """Start one, and wait until it is taken (None), or is gone (why)."""
        try:
            process = await start_process(MODULE, self._environment)
        except OSError as error:
            return f"cannot be started: {error}"
        assert process.stdout is not None
        if self._is_closed.is_set():
            kill(process)
        self._is_taken.clear()
        born = asyncio.create_task(process.stdout.readline())
        self._standing_by = spare = _Standing(process, born)
        taken, gone = asyncio.create_task(self._is_taken.wait()), asyncio.create_task(process.wait())
        try:
            await asyncio.wait({born, taken, gone}, return_when=asyncio.FIRST_COMPLETED)
            if born.done() and born.result():
                self._narrate("spare: stands by")
            await asyncio.wait({taken, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            taken.cancel()
            gone.cancel()
        if self._standing_by is not spare:
            return None
        self._standing_by = None
        return f"{describe_exit(await process.wait())} while it stood by"

    async def _back_off(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._backoff):
                await self._is_closed.wait()
        self._backoff = min(LONGEST_BACKOFF, 2 * self._backoff)

    async def _promote(self, spare: _Standing, launch: Launch) -> bool:
        """Tell it what it becomes. False: it has died or does not answer; it is gone then."""
        process = spare.process
        assert process.stdin is not None and process.stdout is not None
        self._in_promotion = spare
        try:
            async with asyncio.timeout(PROMOTION_LIMIT):
                process.stdin.write(msgspec.json.encode(Promotion(launch.module, launch.environment)) + b"\n")
                await process.stdin.drain()
                if await spare.born and await process.stdout.readline():
                    return True
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            pass
        finally:
            self._in_promotion = None
        kill(process)
        await process.wait()
        return False
