"""Keeps one child process running: starts it by command line, reads its status, restarts it, stops it.

V1  A child that dies is started again; a child that dies before it was up waits a little longer each time.
V2  Five deaths in a row before it was up, or wrong settings at the first start, end the launch with its error.
V3  A child whose working loop is silent for longer than its patience is killed.
V4  The next child starts after the last one has been reaped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from ipc.child import EXIT_USAGE, Alive, Broken, Progress, Status, Up

MAX_EARLY_DEATHS = 5
FIRST_BACKOFF = 0.1  # seconds; doubled at each early death
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

    module: str  # run as `python -P -m module`: a user's own folder of that name must not shadow ours
    settings: msgspec.Struct
    environment: dict[str, str] = field(default_factory=dict)  # on top of our own
    descriptors: Sequence[int] = ()  # inherited


class Supervisor:
    """One child that is kept running.

    Args:
        name: for people, "worker", "engine", "api server 3".
        prepare: called before each start.
        on_up: called when the child serves, with its summary; may be called again with more.
        on_down: called when a child has been reaped, before the next one starts.
        narrate: called with a line for people.
    """

    def __init__(
        self,
        name: str,
        prepare: Callable[[], Launch],
        startup_timeout: float,
        on_up: Callable[[dict[str, str]], None],
        on_down: Callable[[], None],
        narrate: Callable[[str], None],
    ) -> None:
        self.name = name
        self.restarts = 0
        self._prepare = prepare
        self._startup_timeout = startup_timeout
        self._on_up = on_up
        self._on_down = on_down
        self._narrate = narrate
        self._process: asyncio.subprocess.Process | None = None
        self._is_up = False
        self._was_ever_up = False
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
        early_deaths = 0
        while not self._is_stopping:
            code, was_up = await self._run_once()
            if self._is_stopping:
                return
            self.restarts += 1
            early_deaths = 0 if was_up else early_deaths + 1
            reason = self._error or _describe_exit(code)
            if not self._was_ever_up and (code == EXIT_USAGE or not self._may_retry):
                raise StartFailed(f"{self.name}: {reason}", EXIT_USAGE)
            if early_deaths == MAX_EARLY_DEATHS:
                raise StartFailed(f"{self.name}: died {early_deaths} times before it was ready; last: {reason}", 1)
            self._narrate(f"{self.name}: {reason}; starting it again")
            await asyncio.sleep(FIRST_BACKOFF * 2**early_deaths if early_deaths else 0)

    def close_lifeline(self) -> None:
        """Ask the child to end; `run` returns when it has."""
        self._is_stopping = True
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def stop_restarting(self) -> None:
        """The child will end by itself; that is fine."""
        self._is_stopping = True

    def kill(self) -> None:
        """End the child at once."""
        if self._process is not None:
            _kill(self._process)

    async def _run_once(self) -> tuple[int, bool]:
        """Start the child and follow it to its end.

        Returns:
            Its exit code and whether it was up.
        """
        self._is_up, self._error, self._may_retry = False, "", True
        launch = self._prepare()
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            launch.module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **launch.environment},
            pass_fds=launch.descriptors,
        )
        try:
            await self._feed(process, launch.settings)
            await self._follow(process)
        finally:
            if not self._is_stopping:
                _kill(process)
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
                _kill(process)
                return
            if not line:
                return
            match _decoder.decode(line):
                case Progress(text):
                    self._narrate(f"{self.name}: {text}")
                case Up(summary):
                    self._is_up = self._was_ever_up = True
                    self._on_up(summary)
                case Broken(message, retry):
                    self._error, self._may_retry = message, retry
                case Alive(patience):
                    pass

    def _describe_silence(self, patience: float) -> str:
        if self._is_up:
            return f"its working loop has been silent for {patience:.0f} s"
        return f"not ready within --startup-timeout {self._startup_timeout:.0f} s"


def _kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL.

    Not `process.kill()`: that reaps a child that has just died, and asyncio then never learns its exit code.
    """
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _describe_exit(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exited with {code}"
