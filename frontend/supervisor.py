"""Keeps one child process running: starts it by command line, reads its status, restarts it, stops it.

V1  A child that dies is started again, as `frontend.restart_policy` says.
V2  Where that says so, a death ends the launch with the child's error.
V3  A child whose working loop is silent for longer than its patience is killed.
V4  The next child starts after the last one has been reaped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from frontend.process import describe_exit, kill, start_process
from frontend.restart_policy import EXIT_FAILED, GiveUp, RestartPolicy, StartAgain
from ipc.child import STOP, Alive, Broken, Progress, Status, Up

PATIENCE = 10.0  # seconds of silence after which a child that is up counts as hung, unless it says otherwise

_log = logging.getLogger("maxsimd.launcher")
_decoder = msgspec.json.Decoder(Status)


class StartFailed(Exception):
    """A child cannot be started. `exit_code` is the launcher's own."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start one child, once."""

    module: str  # run as `python -P -m module`
    settings: msgspec.Struct
    environment: dict[str, str] = field(default_factory=dict)  # on top of our own
    descriptors: Sequence[int] = ()  # inherited


async def start_new(launch: Launch) -> asyncio.subprocess.Process:
    """A process of its own; its settings have not been written yet."""
    return await start_process(launch.module, launch.environment, launch.descriptors)


class Supervisor:
    """One child that is kept running.

    Args:
        name: for people, "worker", "engine", "api server 3".
        prepare: called before each start.
        on_up: called when the child serves, with its summary; may be called again with more.
        on_down: called when a child has been reaped, before the next one starts.
        narrate: called with a line for people.
        start: how to get a process for a launch: a new one, or one that stands by.
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[[], Launch],
        startup_timeout: float,
        on_up: Callable[[dict[str, str]], None],
        on_down: Callable[[], None],
        narrate: Callable[[str], None],
        start: Callable[[Launch], Awaitable[asyncio.subprocess.Process]] = start_new,
    ) -> None:
        self.name = name
        self.restarts = 0
        self._prepare = prepare
        self._startup_timeout = startup_timeout
        self._on_up = on_up
        self._on_down = on_down
        self._narrate = narrate
        self._start = start
        self._policy = RestartPolicy()
        self._process: asyncio.subprocess.Process | None = None
        self._is_up = False
        self._is_stopping = False
        self._error = ""
        self._may_retry = True

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def is_up(self) -> bool:
        return self._is_up

    async def run(self) -> None:
        """Until `stop`, or until the child cannot be started.

        Raises:
            StartFailed: see V2.
        """
        while not self._is_stopping:
            code, was_up = await self._run_once()
            if self._is_stopping:
                return
            self.restarts += 1
            reason = self._error or describe_exit(code)
            match self._policy.died(was_up, code, self._may_retry):
                case GiveUp(exit_code):
                    raise StartFailed(f"{self.name}: {self._describe_giving_up(exit_code)}{reason}", exit_code)
                case StartAgain(delay):
                    self._narrate(f"{self.name}: {reason}; starting it again")
                    await asyncio.sleep(delay)

    def close_lifeline(self) -> None:
        """Ask the child to end; `run` returns when it has."""
        self._is_stopping = True
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(STOP)
            self._process.stdin.close()

    def stop_restarting(self) -> None:
        """The child will end by itself; that is fine."""
        self._is_stopping = True

    def kill(self) -> None:
        """End the child at once."""
        if self._process is not None:
            kill(self._process)

    async def _run_once(self) -> tuple[int, bool]:
        """Start the child and follow it to its end.

        Returns:
            Its exit code and whether it was up.
        """
        self._is_up, self._error, self._may_retry = False, "", True
        launch = self._prepare()
        try:
            self._process = process = await self._start(launch)
        except OSError as error:  # out of processes, memory or descriptors: that may pass
            self._error = f"cannot be started: {error}"
            self._on_down()
            return EXIT_FAILED, False
        try:
            if self._is_stopping:
                kill(process)
            await self._feed(process, launch.settings)
            await self._follow(process)
        finally:
            if not self._is_stopping:
                kill(process)
            code = await process.wait()
            was_up, self._is_up = self._is_up, False
            self._on_down()
        return code, was_up

    async def _feed(self, process: asyncio.subprocess.Process, settings: msgspec.Struct) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(settings) + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            self._error = "died at once"
        if self._is_stopping:
            process.stdin.close()

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        """Read the child's status lines until it closes them, hangs, or takes too long to start."""
        assert process.stdout is not None
        patience = PATIENCE
        started = asyncio.get_running_loop().time()
        while True:
            timeout = patience if self._is_up else started + self._startup_timeout - asyncio.get_running_loop().time()
            try:
                line = await asyncio.wait_for(process.stdout.readline(), timeout)
            except TimeoutError:
                self._error = self._describe_silence(patience)
                _log.error("%s: %s; killing it", self.name, self._error)
                kill(process)
                return
            if not line:
                return
            match _decoder.decode(line):
                case Progress(text):
                    self._narrate(f"{self.name}: {text}")
                case Up(summary):
                    self._is_up = True
                    self._policy.came_up()
                    self._on_up(summary)
                case Broken(message, retry):
                    self._error, self._may_retry = message, retry
                case Alive(patience):
                    pass

    def _describe_giving_up(self, exit_code: int) -> str:
        if exit_code != EXIT_FAILED:
            return ""
        return f"died {self._policy.early_deaths} times before it was ready; last: "

    def _describe_silence(self, patience: float) -> str:
        if self._is_up:
            return f"its working loop has been silent for {patience:.0f} s"
        return f"not ready within --startup-timeout {self._startup_timeout:.0f} s"
